"""The engine of a cluster under test: its artifacts served, secrets in OpenBao, one environment of its own.

async with nomad_engine(place, home) as h:
    key = await h.start(await h.revision(HELLO))
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from modalnomad.hashicorp.artifact_server import ArtifactServer
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.hashicorp.http import HttpClient
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.sdk_archive import sdk_archive
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.model.revision import Revision
from modalnomad.render.environment import ticket_sha256
from modalnomad.render.nomad import Rendering
from modalnomad.settings import ArtifactSettings, NomadSettings, VaultSettings
from tests.support.cluster_servers import Place, this_environment
from tests.support.engines import IMAGE, PATIENCE, PLATFORM_KEY, Harness


@asynccontextmanager
async def nomad_engine(place: Place, home: Path, **options: Any) -> AsyncIterator[Harness]:
    """`options`: of the engine. What it started ends with it."""
    this_environment(place.store, IMAGE)
    nomad = NomadSettings(
        address=place.nomad,
        token=SecretStr(place.token),
        python=sys.executable,
        node_store=str(place.store),
        memory=64,
        cpu=10,
    )
    vault = VaultSettings(
        address=place.bao.address,
        token=SecretStr(place.bao.root_token),
        mount=place.mount,
        auth_mount=place.auth_mount,
    )
    async with AsyncExitStack() as stack:
        artifacts = ObjectArtifacts(ArtifactSettings(), home)
        server = ArtifactServer(artifacts, "127.0.0.1", 0)
        await server.start()
        stack.push_async_callback(server.close)
        sdk = await sdk_archive(artifacts)
        secrets = VaultSecrets(vault)
        stack.push_async_callback(secrets.close)
        http = HttpClient(nomad_server(nomad))
        stack.push_async_callback(http.close)

        async def rendering(revision: Revision, version: int) -> Rendering:
            return Rendering(
                nomad=nomad,
                vault=vault,
                artifacts_url=f"http://127.0.0.1:{server.port}",
                orphan_factor=3.0,
                sdk=sdk,
                ticket_sha256=ticket_sha256(PLATFORM_KEY, revision.id),
                web_urls={},
                version=version,
                deployed_at=time.time(),
                deployed_by="a test",
            )

        async def version_of(revision: Revision) -> int:
            return 1

        engine = NomadEngine(api=NomadApi(http), rendering=rendering, version_of=version_of, router="a test", **options)
        stack.push_async_callback(engine.close)
        await engine.open()
        harness = Harness(engine, artifacts, secrets, home, place.environment)
        try:
            yield harness
        finally:
            async with asyncio.timeout(PATIENCE):
                await _end_all(engine, harness)


async def _end_all(engine: NomadEngine, harness: Harness) -> None:
    for revision in {replica.key.pool.revision for replica in await harness.snapshot()}:
        await engine.retire(revision)
