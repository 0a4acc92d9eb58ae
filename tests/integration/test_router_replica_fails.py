"""Replicas that refuse, die, lie or take too long."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from modalnomad.model.replica import Address, TcpAddress, UnixAddress
from modalnomad.router.replies import Reply
from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.ports import held_port
from tests.support.router import route, served, until

BOTH_LOOPS = True


@pytest.fixture
def nowhere() -> Iterator[TcpAddress]:
    """Nobody listens there."""
    with held_port() as port:
        yield TcpAddress("127.0.0.1", port)


async def code_of(script: raw.Script, request: bytes = raw.get()) -> tuple[int, str | None]:
    """Status and error code of the answer, with a connection that is still usable."""
    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(request)
        await router.quiet()
        if answer.get("connection") != "close":
            assert (await client.request(raw.get(host="nobody.localhost"))).status == 404
        return answer.status, answer.get("modalnomad-error")


@pytest.mark.parametrize("script", [raw.closes_before_answer, raw.dies_mid_head])
async def test_replica_that_dies_before_its_answer(script: raw.Script) -> None:
    assert await code_of(script) == (502, "replica_gone")
    assert await code_of(script, raw.post(b"hello")) == (502, "replica_gone")


GARBAGE = {
    "no HTTP at all": b"SSH-2.0-OpenSSH\r\n",
    "no HTTP and no line": b"\x00\x01\x02",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n",
    "folded line": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "unasked switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 300_000,
    "endless interims": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
async def test_replica_that_answers_garbage(data: bytes) -> None:
    async def script(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read(reader)
        writer.write(data)
        await writer.drain()
        await reader.read()

    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(raw.get())
        assert (answer.status, answer["modalnomad-error"]) == (502, "bad_answer")
        await router.quiet()
        assert (await client.request(raw.get(host="nobody.localhost"))).status == 404


@pytest.mark.parametrize("script", [raw.dies_mid_answer, raw.dies_mid_chunks])
@pytest.mark.parametrize("request_", [raw.get(), b"GET / HTTP/1.0\r\nHost: app.localhost\r\n\r\n"])
async def test_answer_cut_short_never_ends_cleanly(script: raw.Script, request_: bytes) -> None:
    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(request_)
        assert (await client.head()).status == 200
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            async with asyncio.timeout(raw.WAIT):
                await client.reader.readexactly(1000)
        await router.quiet()


async def test_broken_chunks_in_an_answer_cut_it() -> None:
    script = raw.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzzz\r\n")
    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.get())
        rest = await client.at_end()
        assert b"0\r\n\r\n" not in rest


async def test_bytes_behind_an_answer_are_nobodys_answer() -> None:
    evil = raw.answer(b"stolen")
    async with (
        raw.replica(raw.says(raw.answer(b"first") + evil, close=False)) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        for _ in range(3):
            assert (await client.request(raw.get())).body == b"first"
        assert backend.connections == 3


@pytest.mark.parametrize("request_", [raw.get(), raw.post(b"hello")], ids=["GET", "POST"])
async def test_replica_that_is_gone_before_anything_was_sent_is_not_visible(
    request_: bytes, tmp_path: Path, nowhere: TcpAddress
) -> None:
    nobody: list[Address] = [nowhere, UnixAddress(str(tmp_path / "absent"))]
    async with (
        raw.replica(raw.polite) as backend,
        served(*nobody, backend.address) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(request_)
        assert (answer.status, len(router.activator.leases)) == (200, 3)
        assert [lease.events for lease in router.activator.leases] == [["gone"], ["gone"], []]
        keys = [lease.key for lease in router.activator.leases]
        assert router.activator.avoided == [frozenset(), frozenset(keys[:1]), frozenset(keys[:2])]
        assert router.router.gate.counters.retries == {"gone": 2}


async def test_nobody_takes_the_request(nowhere: TcpAddress) -> None:
    async with served(nowhere) as router, raw.client(router.port) as client:
        answer = await client.request(raw.get())
        assert (answer.status, answer["modalnomad-error"]) == (502, "replica_gone")


@pytest.mark.parametrize("body", [b"", b"hello", bytes(60_000)], ids=len)
async def test_busy_replica_is_not_visible(body: bytes) -> None:
    async with (
        raw.replica(raw.busy) as full,
        raw.replica(raw.polite) as backend,
        served(full.address, backend.address) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(raw.post(body))
        assert (answer.status, answer.body) == (200, body or b"ok")
        assert router.activator.leases[0].events == ["refused"]


async def test_busy_replica_after_too_much_of_the_body() -> None:
    async def late(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        await reader.readexactly(500_000)
        writer.write(raw.answer(b"", "503 Service Unavailable", "Modalnomad-Busy: 1"))
        await reader.read()

    async with raw.replica(late) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.post(bytes(500_000)))
        answer = await client.response()
        assert (answer.status, answer["modalnomad-error"], answer["retry-after"]) == (503, "no_capacity", "1")


async def test_an_apps_own_503_passes() -> None:
    assert await code_of(raw.says(raw.answer(b"", "503 Service Unavailable"))) == (503, None)


async def test_stale_connection_is_replaced_for_what_may_run_twice() -> None:
    async with raw.replica(raw.once) as backend, served(backend.address) as router, raw.client(router.port) as client:
        for _ in range(3):
            assert (await client.request(raw.get())).status == 200
        assert router.router.gate.counters.retries == {"stale": 2}
        assert all(lease.events == [] for lease in router.activator.leases)


async def test_stale_connection_is_not_tried_twice_for_what_may_not() -> None:
    async with raw.replica(raw.once) as backend, served(backend.address) as router, raw.client(router.port) as client:
        assert (await client.request(raw.get())).status == 200
        answer = await client.request(raw.post(b"once only"))
        assert (answer.status, answer["modalnomad-error"]) == (502, "replica_gone")
        assert len(backend.requests) == 2


async def test_connection_closed_while_idle_is_not_used() -> None:
    async with (
        raw.replica(raw.says(raw.answer())) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        for _ in range(3):
            assert (await client.request(raw.post(b"x"))).status == 200
            await until(lambda: router.upstream.connections == (0, 0))
        assert router.router.gate.counters.retries == {}


async def test_no_answer_within_the_timeout() -> None:
    async with (
        raw.replica(raw.never_answers) as backend,
        served(backend.address, routes=[route(timeout=0.2)]) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(raw.get())
        assert (answer.status, answer["modalnomad-error"]) == (504, "execution_timeout")
        async with asyncio.timeout(raw.WAIT):
            await backend.left.wait()


async def test_replica_that_never_accepts() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = TcpAddress("127.0.0.1", full.getsockname()[1])
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((address.host, address.port))
            fillers.append(filler)
        settings = RouterSettings(connect_timeout=0.2)
        async with (
            raw.replica(raw.polite) as backend,
            served(address, backend.address, settings=settings) as router,
            raw.client(router.port) as client,
        ):
            assert (await client.request(raw.get())).status == 200
            assert router.activator.leases[0].events == ["gone"]
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_private_detail_only_on_ephemeral_routes(ephemeral: bool, nowhere: TcpAddress) -> None:
    async with served(nowhere, routes=[route(ephemeral=ephemeral)]) as router, raw.client(router.port) as client:
        router.activator.refusal = Reply(
            503, "start_failed", "The replica crashed.", private="Traceback: secret plan", retry_after=2.1
        )
        answer = await client.request(raw.get())
        assert (answer.status, answer["retry-after"]) == (503, "3")
        assert ("secret plan" in json.loads(answer.body)["detail"]) is ephemeral


async def test_ask_is_one_private_request(nowhere: TcpAddress) -> None:
    async with raw.replica(raw.says(raw.answer(b"ready", "200 OK", "X-A: b"))) as backend, served() as router:
        status, headers, body = await router.upstream.ask(
            backend.address, b"POST", b"/.modalnomad/drain?idle_for=1", [(b"modalnomad-ticket", b"t")], 5
        )
        assert (status, body) == (200, b"ready")
        assert (b"x-a", b"b") in headers
        assert backend.requests[0].line == "POST /.modalnomad/drain?idle_for=1 HTTP/1.1"
        assert backend.requests[0].get("modalnomad-ticket") == "t"
    async with raw.replica(raw.never_answers) as backend, served() as router:
        with pytest.raises(TimeoutError):
            await router.upstream.ask(backend.address, b"GET", b"/", [], 0.1)
    async with raw.replica(raw.says(b"garbage\r\n\r\n")) as backend, served() as router:
        with pytest.raises(ConnectionError):
            await router.upstream.ask(backend.address, b"GET", b"/", [], 5)
    async with served() as router:
        with pytest.raises(ConnectionError):
            await router.upstream.ask(nowhere, b"GET", b"/", [], 5)
