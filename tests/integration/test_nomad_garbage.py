"""What answers as Nomad says something else: what is known stays, and is followed again as soon as Nomad is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from modalnomad.hashicorp.http import HttpClient, Server
from modalnomad.hashicorp.nomad import mirror
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.kit.http_log import http_logger
from modalnomad.model.errors import BackendRefused, ModalNomadError
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Address, PoolKey, Replica, ReplicaKey, ReplicaState, TcpAddress
from modalnomad.model.revision import Revision
from modalnomad.render.nomad import Rendering, dispatch_body
from tests.support.engines import eventually, within

REVISION = RevisionId("a1" * 16)
NAMESPACE = "modalnomad-main"


def key(number: int) -> ReplicaKey:
    return ReplicaKey(PoolKey(REVISION, ""), number, 1)


@dataclass
class Registered:
    key: ReplicaKey
    address: Address


class Nomad:
    """One revision with replicas; with `instead` every answer is that, with `event` every stream says that."""

    def __init__(self) -> None:
        self.replicas = [0]
        self.namespaces = [NAMESPACE]
        self.instead: bytes | None = None
        self.event: bytes | None = None
        self.changed = asyncio.Event()

    def say(self, instead: bytes | None = None, event: bytes | None = None) -> None:
        self.instead, self.event = instead, event
        before, self.changed = self.changed, asyncio.Event()
        before.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.instead is not None:
            return web.Response(body=self.instead, content_type="application/json", headers={"X-Nomad-Index": "900"})
        if request.path == "/v1/event/stream":
            return await self.stream(request)
        return web.json_response(self.items(request.path), headers={"X-Nomad-Index": "500"})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        changed = self.changed
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write((self.event or b"{}") + b"\n")
        await changed.wait()
        return response

    def items(self, path: str) -> list[dict[str, Any]]:
        parent = {"ID": "p", "Namespace": NAMESPACE, "ParameterizedJob": True, "Status": "running", "ModifyIndex": 1}
        children, allocations = [], []
        for number in self.replicas:
            meta = {**dispatch_body(key(number), reason="")["Meta"], "revision": REVISION}
            common = {"Namespace": NAMESPACE, "CreateIndex": 2, "ModifyIndex": 2}
            children.append({**common, "ID": f"c{number}", "ParentID": "p", "Status": "running", "Meta": meta})
            ports = {"Shared": {"Ports": [{"Label": "http", "HostIP": "127.0.0.1", "Value": 9}]}}
            state = {"ClientStatus": "running", "NodeID": "n", "AllocatedResources": ports}
            allocations.append({**common, **state, "ID": f"a{number}", "JobID": f"c{number}"})
        found: dict[str, list[dict[str, Any]]] = {
            "/v1/namespaces": [{"Name": name} for name in self.namespaces],
            "/v1/jobs": [{**parent, "Meta": {"revision": REVISION}}, *children],
            "/v1/allocations": allocations,
            "/v1/nodes": [{"ID": "n", "Name": "n", "Status": "ready", "ModifyIndex": 1}],
        }
        return found.get(path, [])


async def _rendering(revision: Revision, version: int) -> Rendering:
    raise AssertionError("nothing is registered here")


async def _version_of(revision: Revision) -> int:
    raise AssertionError("nothing is registered here")


@asynccontextmanager
async def watched(nomad: Nomad, **options: Any) -> AsyncIterator[tuple[NomadEngine, list[tuple[Replica, ...]]]]:
    """An engine that watches it, and what it told so far."""
    options = {"relist": 0.1, **options}
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", nomad.answer)
    runner = web.AppRunner(app, access_log=None, logger=http_logger, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    http = HttpClient(Server("Nomad", f"http://127.0.0.1:{runner.addresses[0][1]}", "NOMAD_ADDR (nomad.address)"))
    engine = NomadEngine(api=NomadApi(http), rendering=_rendering, version_of=_version_of, **options)
    told: list[tuple[Replica, ...]] = []

    async def follow() -> None:
        async for snapshot in engine.watch():
            told.append(snapshot)  # noqa: PERF401 - looked at meanwhile

    following = asyncio.ensure_future(follow())
    try:
        await eventually(lambda: bool(told and told[-1]), "it is known what runs")
        yield engine, told
    finally:
        nomad.say(b"")
        following.cancel()
        await asyncio.wait([following])
        await engine.close()
        await http.close()
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "TRIES", (0.05,))


GARBAGE = {
    "page": b"<html>log in</html>",
    "text": b'"x"',
    "bytes": b"\xff\xfe",
    "numbers": b"[1, 2]",
    "nothing": b"[null]",
    "deep": b"[" * 100_000,
    "types": b'[{"ID": 1, "Name": 2}]',
    "meta": b'[{"ID": "a", "Name": "modalnomad-main", "JobID": "j", "Meta": [1], "TaskStates": [1]}]',
    "index": b'[{"ID": "a", "Name": "modalnomad-main", "JobID": "j", "ModifyIndex": "x"}]',
}


@pytest.mark.parametrize("instead", GARBAGE.values(), ids=GARBAGE)
async def test_what_is_known_stays_and_is_followed_again(instead: bytes) -> None:
    nomad = Nomad()
    async with watched(nomad) as (engine, told):
        nomad.say(instead)
        await eventually(lambda: engine.stale_since is not None, "it is noticed")
        for asked in (engine.start(key(7), ""), engine.retire("b2" * 16), engine.alive("b2" * 16)):
            with suppress(ModalNomadError):  # anything else fails
                await within(asked)

        nomad.replicas = [0, 1]
        nomad.say()

        await eventually(lambda: {key(0), key(1)} <= {each.key for each in told[-1]}, "it is followed again")
        await eventually(lambda: engine.stale_since is None, "it is true again")
    alive = [[each.key for each in snapshot if each.state is ReplicaState.STARTING] for snapshot in told]
    assert all(key(0) in keys for keys in alive)


@pytest.mark.parametrize(
    "event",
    [
        b"[1]",
        b'{"Events": [1]}',
        b'{"Events": [{"Topic": "Job", "Type": "x", "Index": 1, "Key": "k", "Payload": []}]}',
        b'{"Events": [{"Topic": "Job", "Type": "x", "Index": 1, "Key": "k", "Payload": {"Job": {"ID": "a", "Meta": [1]'
        b"}}}]}",
        b"[" * 100_000,
    ],
    ids=["list", "number", "payload", "job", "deep"],
)
async def test_a_stream_that_says_something_else_is_opened_again(event: bytes) -> None:
    nomad = Nomad()
    async with watched(nomad) as (engine, told):
        nomad.say(event=event)
        await eventually(lambda: not engine._mirror.streaming(NAMESPACE), "it is noticed")
        nomad.replicas = [0, 1]
        nomad.say()

        await eventually(lambda: engine._mirror.streaming(NAMESPACE), "it is open again")
        await eventually(lambda: key(1) in {each.key for each in told[-1]}, "it is followed again")


@pytest.mark.parametrize("empty", [b"[]", b"null"])
async def test_an_empty_list_of_namespaces_ends_nothing(empty: bytes) -> None:
    """So Nomad answers a token that lost its rights."""
    nomad = Nomad()
    async with watched(nomad) as (engine, told):
        nomad.say(empty)
        await eventually(lambda: engine.stale_since is not None, "it is noticed")
        nomad.say()
        await eventually(lambda: engine.stale_since is None, "it is true again")
    assert all(key(0) in {each.key for each in snapshot} for snapshot in told)


async def test_what_only_consul_has_goes_as_soon_as_the_environments_are_known_again() -> None:
    """Not with the next list of everything: nobody hears of what Consul has by then."""
    nomad, registered = Nomad(), asyncio.Event()

    async def registrations() -> AsyncIterator[list[Registered]]:
        await registered.wait()
        yield [Registered(key(5), TcpAddress("127.0.0.1", 1))]
        await asyncio.Event().wait()

    async with watched(nomad, relist=3600.0, registrations=registrations) as (engine, told):
        nomad.namespaces = []
        engine._mirror.look_for_environments()
        await eventually(lambda: engine.stale_since is not None, "it is noticed")
        registered.set()
        await eventually(lambda: key(5) in {each.key for each in told[-1]}, "Consul's word counts")

        nomad.namespaces = [NAMESPACE]
        engine._mirror.look_for_environments()
        await eventually(lambda: {each.key for each in told[-1]} == {key(0)}, "Nomad's does")


async def test_the_refusal_says_what_to_do() -> None:
    nomad = Nomad()
    async with watched(nomad) as (engine, _):
        nomad.say(GARBAGE["page"])
        with pytest.raises(BackendRefused, match="says what Nomad does not") as refused:
            await engine.alive(REVISION)
        assert "nomad.address" in (refused.value.hint or "")
