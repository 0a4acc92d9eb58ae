"""Secrets as files, on a real Nomad and a real OpenBao: exact, in order, and out of sight of whoever reads jobs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk import contract

from modalnomad.deploy.bundle import make_bundle
from modalnomad.hashicorp.artifact_server import ArtifactServer
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.model.manifest import Function
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.render.cluster import namespace_of, vault_role
from modalnomad.render.nomad import dispatch_body, parent_job
from modalnomad.settings import ArtifactSettings
from tests.support.fakes.consul import FakeConsul
from tests.support.nomad_agent import NomadAgent, nomad_program
from tests.support.nomad_calls import PATIENCE
from tests.support.openbao import OpenBao
from tests.support.rendered import rendering, revision

pytestmark = [
    pytest.mark.skipif(nomad_program() is None, reason="no nomad on PATH: no task of a real one reads a secret"),
    pytest.mark.timeout(60),
]

ANONYMOUS = "f" * 64
VALUES = {
    "LINES": "a\nb\r\n\tc ",
    "QUOTES": '"it\'s" `x`',
    "SHELL": "$HOME ${NOMAD_ALLOC_ID} $(id) %s # \\n",
    "TEMPLATE": '{{ env "HOME" }}',
    "MARKUP": "<a>&</a>",
    "WORDS": "ů 日本 😀 \u2028",
    "EMPTY": "",
    "LONG": "x\n" * 15_000,
}
TELLS = """
import json, os, pathlib
folder = pathlib.Path(os.environ["NOMAD_SECRETS_DIR"])
bundle = os.listdir(os.environ["MODALNOMAD_BUNDLE"])
names = os.environ["MODALNOMAD_SECRET_FILES"].split(",")
files = {name: [oct((folder / name).stat().st_mode & 0o777), json.loads((folder / name).read_text())] for name in names}
told = {"files": files, "all": os.listdir(folder), "bundle": bundle, "environ": dict(os.environ)}
print(json.dumps(told), flush=True)
"""


async def test_every_value_arrives_as_it_was_stored(tmp_path: Path) -> None:
    program, bundle = tmp_path / "tells.pyz", tmp_path / "bundle.tar.gz"
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("__main__.py", TELLS)
    artifacts = ObjectArtifacts(ArtifactSettings(), tmp_path / "home")
    server = ArtifactServer(artifacts, "127.0.0.1", 0)
    await server.start()
    made = revision(secrets=[{"name": "db"}, {"anonymous": ANONYMOUS}], environment="staging")
    make_bundle(made.source, [Function(tag="resize", include_source=False)], bundle)
    made = made.model_copy(update={"bundle": await artifacts.put(bundle)})
    (tmp_path / "bao").mkdir()
    try:
        with OpenBao(tmp_path / "bao") as bao:
            mount = await asyncio.to_thread(bao.mount)
            settings = dataclasses.replace(
                rendering(made, vault={"mount": mount}),
                artifacts_url=f"http://127.0.0.1:{server.port}",
                sdk=await artifacts.put(program),
            )
            told, seen = await one_replica(bao, mount, parent_job(made, settings), ReplicaKey(PoolKey(made.id), 0, 1))
    finally:
        await server.close()

    assert told["files"] == {"00-db.json": ["0o400", VALUES], "01-anonymous.json": ["0o400", {"K": "tell-nobody"}]}
    assert told["bundle"] == [".modalnomad"]  # no source was wanted
    assert not [name for name in (*told["all"], *told["environ"]) if "token" in name.lower()]
    for text in (*seen, json.dumps(told["environ"])):
        assert "tell-nobody" not in text
        assert "日本" not in text


async def one_replica(bao: OpenBao, mount: str, body: dict[str, Any], key: ReplicaKey) -> tuple[Any, list[str]]:
    """What it says, and what Nomad's API says of it."""
    vault = {"enabled": True, "address": bao.address, "jwt_auth_backend_path": "jwt-nomad"}
    namespace = {"namespace": namespace_of("staging")}
    async with FakeConsul() as consul, NomadAgent(consul=consul.address.removeprefix("http://"), vault=vault) as agent:
        await asyncio.to_thread(store_secrets, bao, mount, f"{agent.address}/.well-known/jwks.json")
        await agent.calls.put(f"/v1/namespace/{namespace['namespace']}", {"Name": namespace["namespace"]})
        await agent.calls.put("/v1/jobs", body)
        path = f"/v1/job/{body['Job']['ID']}/dispatch"
        child = (await agent.calls.put(path, dispatch_body(key, reason="a test"), **namespace))["DispatchedJobID"]
        (allocation,) = await agent.calls.until(
            "/v1/allocations",
            lambda found: any(each["ClientStatus"] in {"complete", "failed"} for each in found),
            filter=f'JobID == "{child}"',
            **namespace,
        )
        events = [event["DisplayMessage"] for state in allocation["TaskStates"].values() for event in state["Events"]]
        assert allocation["ClientStatus"] == "complete", events
        where = f"/v1/client/fs/logs/{allocation['ID']}"
        async with asyncio.timeout(PATIENCE):
            logs = await agent.calls.call("GET", where, task="app", type="stdout", plain=True, **namespace)
        seen = [
            (await agent.calls.call("GET", path, **namespace)).text
            for path in (f"/v1/allocation/{allocation['ID']}", f"/v1/job/{body['Job']['ID']}")
        ]
        return logs.json, seen


def store_secrets(bao: OpenBao, mount: str, keys: str) -> None:
    """Values, and the role that may read those of one environment."""
    with bao.client() as client:
        for path, values in (("db", VALUES), (f"_anonymous/{ANONYMOUS}", {"K": "tell-nobody"})):
            client.secrets.kv.v2.create_or_update_secret(
                path=f"modalnomad/staging/{path}", secret=values, mount_point=mount
            )
    bao.enable_jwt(jwks_url=keys)
    rule = f'path "{mount}/data/modalnomad/staging/*" {{ capabilities = ["read"] }}'
    bao.jwt_role(vault_role("staging"), namespace_of("staging"), [bao.policy("staging", rule)])


def test_the_variable_that_names_the_files_is_the_contracts() -> None:
    assert contract.ENV_SECRET_FILES in TELLS
