"""Servers of a cluster that cannot be used: who was asked what, what came back, what to do; and nothing is changed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.certificates import Authority
from tests.support.cluster_shop import World, shop, words
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.nomad.server import FakeNomad

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODY = "http://127.0.0.1:9"
SERVERS = {"Nomad": "NOMAD_ADDR", "Consul": "CONSUL_HTTP_ADDR", "Vault": "VAULT_ADDR"}
NO_RIGHTS = "`modalnomad doctor` tells its rights"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file; its next version waits to be deployed."""
    async with shop(tmp_path_factory.mktemp("bad")) as found:
        found.write()
        yield found


@pytest.fixture
def fresh(tmp_path: Path) -> dict[str, str]:
    """A machine that has never talked to this cluster: it keeps no platform key."""
    return {"MODALNOMAD_HOME": str(tmp_path / "fresh")}


async def refused(world: World, *cases: tuple[dict[str, str], tuple[str, ...]]) -> None:
    """A deploy with each of these variables fails, says this and changes nothing."""
    async with world.unchanged():
        done = [await world.cluster.cli("deploy", str(world.file), env=env, code=1) for env, _ in cases]
    for result, (_, says) in zip(done, cases, strict=True):
        for text in (*says, "Hint: ", "nothing was changed"):
            assert text in words(result), result.stderr
        assert "Traceback" not in result.stderr


def home(server: str, fresh: dict[str, str]) -> dict[str, str]:
    """Where a deploy cannot do without that server."""
    return fresh if server == "Vault" else {}


async def test_servers_that_are_not_there(world: World, fresh: dict[str, str]) -> None:
    def says(name: str) -> tuple[str, ...]:
        return f"{name} at {NOBODY} does not answer ", "Connection refused", f"the address comes from {SERVERS[name]}"

    await refused(world, *((home(name, fresh) | {SERVERS[name]: NOBODY}, says(name)) for name in SERVERS))


async def test_https_where_there_is_none(world: World, fresh: dict[str, str]) -> None:
    made = world.cluster
    found = {"Nomad": made.nomad.address, "Consul": made.consul.address, "Vault": made.vault.address}
    secure = {name: address.replace("http:", "https:") for name, address in found.items()}
    says = "it speaks no TLS there: is it http://?"
    await refused(
        world,
        *((home(name, fresh) | {SERVERS[name]: secure[name]}, (f"{name} at {secure[name]}", says)) for name in SERVERS),
    )


async def test_tls_that_does_not_come_about(world: World, fresh: dict[str, str], tmp_path: Path) -> None:
    """Everything else that can go wrong with it is in `test_cluster_tls`."""
    ours = Authority(tmp_path)
    signed = "its certificate is not trusted: ", "_CACERT (", "a PEM file; none is given"
    asked = "does not answer GET /v1/jobs: it ", "NOMAD_CLIENT_CERT (nomad.client_cert), NOMAD_CLIENT_KEY"
    async with secured(ours.issue("server").listener()) as at, secured(ours.issue("other").listener(ours)) as mutual:
        await refused(
            world,
            *((home(name, fresh) | {SERVERS[name]: at}, signed) for name in SERVERS),
            ({"NOMAD_ADDR": mutual, "NOMAD_CACERT": str(ours.cert)}, asked),
        )


@asynccontextmanager
async def secured(context: ssl.SSLContext) -> AsyncIterator[str]:
    """A server with this certificate, which says nothing."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_variables_that_are_none(world: World, fresh: dict[str, str]) -> None:
    await refused(
        world,
        ({"NOMAD_ADDR": "http://127.0.0.1:99999"}, ("no address of a server: NOMAD_ADDR (nomad.address)",)),
        ({"NOMAD_TOKEN": "a\nb"}, ("NOMAD_TOKEN (nomad.token) holds no token", "line ends")),
    )


async def test_tokens_that_may_not(world: World, fresh: dict[str, str]) -> None:
    vault = world.cluster.vault
    weak = await asyncio.to_thread(lambda: vault.token(vault.policy("other", 'path "a" { capabilities = ["read"] }')))
    async with FakeConsul(acl=True) as consul, FakeNomad(acl=True) as nomad:
        at_consul, at_nomad = {"CONSUL_HTTP_ADDR": consul.address}, {"NOMAD_ADDR": nomad.address}
        reads = consul.token('key_prefix "" { policy = "read" } session_prefix "" { policy = "write" }')
        looks = nomad.token('namespace "*" { policy = "read" }')
        await refused(
            world,
            (at_nomad | {"NOMAD_TOKEN": "nope"}, ("answered GET /v1/jobs with 403", "NOMAD_TOKEN", NO_RIGHTS)),
            (at_consul | {"CONSUL_HTTP_TOKEN": "nope"}, ("ACL not found", "CONSUL_HTTP_TOKEN", NO_RIGHTS)),
            (at_consul | {"CONSUL_HTTP_TOKEN": reads}, ("lacks permission 'key:write' on", NO_RIGHTS)),
        )
        await refused(
            world,
            (at_nomad | {"NOMAD_TOKEN": looks}, ("with 403: Permission denied", NO_RIGHTS)),
            (at_nomad, ("with 403: Permission denied", "no token is given: NOMAD_TOKEN (nomad.token)")),
            (fresh | {"VAULT_TOKEN": weak}, ("modalnomad-platform/key with 403", "VAULT_TOKEN", NO_RIGHTS)),
            (fresh | {"VAULT_TOKEN": ""}, ("with 403", "no token is given: VAULT_TOKEN")),
        )


async def test_a_sealed_vault(world: World, fresh: dict[str, str]) -> None:
    """Whoever has the platform key goes on with it; a secret cannot be looked at."""
    world.write(function='secrets=[modal.Secret.from_name("db")]')
    await asyncio.to_thread(world.cluster.vault.seal)
    try:
        says = "Vault is sealed", "unseal it: `bao operator unseal`"
        await refused(world, ({}, says), (fresh, says))
    finally:
        await asyncio.to_thread(world.cluster.vault.unseal)
        world.write()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b'{"kind":"app","format":99,"content":{}}', "was written by a newer modalnomad (format 99, this one knows"),
        (b"\x1f\x8bno", "is damaged: it is no app record"),
    ],
    ids=["newer", "damaged"],
)
async def test_records_that_cannot_be_read(world: World, value: bytes, says: str) -> None:
    """The router goes on with what it last read."""
    store = world.cluster.consul.store
    (key,) = world.records()
    good = store.keys[key].value
    store.put(key, value)
    try:
        await refused(world, ({}, (f"Consul's key {key} {says}",)))
        listed = await world.cluster.cli("app", "list")
        assert words(listed).count(says.removeprefix("is ")) == 1
    finally:
        store.put(key, good)
