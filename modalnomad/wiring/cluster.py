"""The servers of a cluster as the four ports: what every command of the back end `hashicorp` begins with."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from modalnomad.deploy.hosts import Naming, name_function
from modalnomad.hashicorp.artifacts import ObjectArtifacts, nodes_url
from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.discovery import ConsulDiscovery
from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.http import HttpClient
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.sdk_archive import sdk_archive
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.platform_key import PlatformKeys, platform_keys
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.model.ids import Digest
from modalnomad.model.revision import Revision
from modalnomad.ports.artifacts import Artifacts
from modalnomad.render.environment import ticket_sha256
from modalnomad.render.nomad import Rendering
from modalnomad.settings import Settings
from modalnomad.wiring.home import home_of
from modalnomad.wiring.parts import address

ROUTES_KEPT = "cluster/routes.json"
"""In the home: what a router last read of Consul."""
KEY_KEPT = "cluster/platform.key"
"""In the home: what was last read of Vault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Clients; nothing is asked before it is needed."""

    settings: Settings
    home: Path
    nomad: NomadApi
    consul: ConsulApi
    discovery: ConsulDiscovery
    vault: VaultClient
    secrets: VaultSecrets
    artifacts: ObjectArtifacts

    async def platform_keys(self, *, make: bool = False) -> PlatformKeys:
        """What tickets are made with; `make`: also when there is none yet. Raises BackendError."""
        return await platform_keys(self.vault, self.home / KEY_KEPT, make=make)

    async def next_version(self, revision: Revision) -> int:
        """The number the App's next deploy will have."""
        record = await self.discovery.app(revision.app, revision.environment)
        return (record.version if record else 0) + 1


@asynccontextmanager
async def open_cluster(settings: Settings) -> AsyncIterator[Cluster]:
    """Its connections end with it. Raises BackendRefused for settings that cannot be used (a token's file)."""
    home = home_of(settings)
    async with AsyncExitStack() as stack:
        nomad = HttpClient(nomad_server(settings.nomad))
        stack.push_async_callback(nomad.close)
        consul = HttpClient(consul_server(settings.consul))
        stack.push_async_callback(consul.close)
        api = ConsulApi(consul)
        vault = VaultClient(settings.vault)
        stack.push_async_callback(vault.close)
        yield Cluster(
            settings=settings,
            home=home,
            nomad=NomadApi(nomad, settings.nomad.region),
            consul=api,
            discovery=ConsulDiscovery(
                api,
                prefix=settings.consul.prefix,
                cache=home / ROUTES_KEPT,
                reconcile=settings.consul.reconcile,
            ),
            vault=vault,
            secrets=VaultSecrets(settings.vault, vault),
            artifacts=ObjectArtifacts(settings.artifacts, home),
        )


def renderer(
    cluster: Cluster,
    keys: PlatformKeys,
    deployed_by: str,
    source: Callable[[Revision], Awaitable[str]],
    *,
    archives: Artifacts | None = None,
) -> Callable[[Revision, int], Awaitable[Rendering]]:
    """Everything that goes into a revision's job beside the revision. `source`: the Function's file, for people.
    `archives`: where what starts replicas is put; None: where nodes find it."""
    settings = cluster.settings
    archive: list[Digest] = []

    async def rendering(revision: Revision, version: int) -> Rendering:
        if not archive:
            archive.append(await sdk_archive(archives or cluster.artifacts))
        return Rendering(
            nomad=settings.nomad,
            vault=settings.vault,
            artifacts_url=nodes_url(settings.artifacts),
            orphan_factor=settings.scaling.orphan_factor,
            sdk=archive[0],
            ticket_sha256=ticket_sha256(keys.key, revision.id),
            key_mark=keys.mark,
            prefix=settings.consul.prefix,
            web_urls=web_urls(settings, revision),
            version=version,
            deployed_at=time.time(),
            deployed_by=deployed_by,
            source=await source(revision),
        )

    return rendering


def web_urls(settings: Settings, revision: Revision) -> Mapping[str, str]:
    """Endpoint → the URL that a deploy would give it."""
    router = settings.router
    naming = Naming(router.domain, router.workspace, revision.environment)
    named, _ = name_function(revision.function, revision.app, naming, ephemeral=False)
    port, tls = public_port(settings), router.tls_cert is not None
    return {entry.endpoint.name: address(entry.hosts[0], port, tls=tls) for entry in named}


def public_port(settings: Settings) -> int:
    """Where routers listen, as far as the settings say."""
    from modalnomad.settings import UP_PORT

    return UP_PORT if settings.router.port is None else settings.router.port
