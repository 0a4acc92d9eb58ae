"""Bodies and their framing, both ways: streamed, flushed, held back, limited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.router import route, served

BOTH_LOOPS = True

HOST = b"Host: app.localhost\r\n"


async def pour(client: raw.Client, piece: bytes, most: int) -> int:
    """Send the piece again and again until nobody takes any more, or `most` bytes are sent; how many were."""
    sent = 0
    while sent < most:
        client.writer.write(piece)
        try:
            async with asyncio.timeout(0.5):
                await client.writer.drain()
        except TimeoutError:
            break
        sent += len(piece)
    return sent


async def one(script: raw.Script, request: bytes = raw.get(), settings: RouterSettings | None = None) -> raw.Response:
    """The answer to one request, and the connection is still usable when it says so."""
    async with (
        raw.replica(script) as backend,
        served(backend.address, settings=settings) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(request)
        if answer.get("connection") == "close":
            assert await client.at_end() == b""
        await router.quiet()
        return answer


async def test_counted_answer() -> None:
    answer = await one(raw.says(b"HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nX-A: 1\r\nX-A: 2\r\n\r\nabc"))
    assert answer.body == b"abc"
    assert answer["content-length"] == "3"
    assert [value for name, value in answer.headers if name == "x-a"] == ["1", "2"]
    assert answer.get("connection") is None


async def test_chunked_answer_with_trailers() -> None:
    script = raw.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n"
                      b"Content-Length: 9\r\nModalnomad-X: 1\r\n\r\n")  # fmt: skip
    answer = await one(script)
    assert answer.body == b"abcde"
    assert answer.trailers == [("x-sum", "5")]


async def test_answer_that_ends_with_its_connection() -> None:
    answer = await one(raw.says(b"HTTP/1.0 200 OK\r\n\r\nabc"))
    assert answer["transfer-encoding"] == "chunked"
    assert answer.body == b"abc"


async def test_http10_client_gets_no_chunks_and_no_interim() -> None:
    script = raw.says(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    answer = await one(script, b"GET / HTTP/1.0\r\n" + HOST + b"\r\n")
    assert answer.interims == []
    assert answer.get("transfer-encoding") is None
    assert answer["connection"] == "close"
    assert answer.body == b"abc"


BODYLESS: dict[str, tuple[bytes, bytes]] = {
    "HEAD with a length": (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
    "HEAD with chunked": (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "HEAD with neither": (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
    "204": (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "304 with a length": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
}


@pytest.mark.parametrize(("method", "data"), BODYLESS.values(), ids=BODYLESS.keys())
async def test_answers_without_a_body_leave_both_connections_usable(method: bytes, data: bytes) -> None:
    async with (
        raw.replica(raw.says(data, close=False)) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        for _ in range(3):
            answer = await client.request(method + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
            assert answer.status == int(data[9:12])
            if b"Content-Length" in data:
                assert answer["content-length"] == "1000"
        await router.quiet()
        assert backend.connections == 1


async def test_head_gets_the_routers_own_answer_without_a_body() -> None:
    async with served() as router, raw.client(router.port) as client:
        for _ in range(2):
            answer = await client.request(b"HEAD / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n")
            assert answer.status == 404
            assert int(answer["content-length"]) > 0


async def test_interims_pass() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nModalnomad-X: 1\r\nContent-Length: 3\r\n\r\n"
    answer = await one(raw.says(hints + hints + raw.answer()))
    assert [(interim.status, interim.headers) for interim in answer.interims] == [(103, [("link", "</a.css>")])] * 2


async def test_expect_continue_is_answered_when_the_replica_reads() -> None:
    async def careful(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await backend.read_head(reader)
        assert received.get("expect") == "100-continue"
        await backend.release.wait()
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        received.body = await reader.readexactly(5)
        writer.write(raw.answer(received.body))
        await writer.drain()

    async with raw.replica(careful) as backend, served(backend.address) as router, raw.client(router.port) as client:
        router.activator.ready.clear()
        await client.send(raw.post(b"", "Expect: 100-continue").replace(b"Content-Length: 0", b"Content-Length: 5"))
        router.activator.ready.set()
        async with asyncio.timeout(raw.WAIT):
            await backend.arrived.wait()
        backend.release.set()
        assert (await client.head()).status == 100
        await client.send(b"hello")
        answer = await client.response()
        assert answer.body == b"hello"
        assert answer.get("connection") is None


async def test_expect_continue_refused_closes_because_the_body_may_or_may_not_come() -> None:
    async with served() as router, raw.client(router.port) as client:
        head = b"POST / HTTP/1.1\r\nHost: nobody.localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        answer = await client.request(head)
        assert answer.status == 404
        assert answer["connection"] == "close"
        assert await client.at_end() == b""


async def test_events_are_flushed_at_once() -> None:
    async def events(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            writer.write(b"9\r\ndata: %d\n\n\r\n" % number)
            await writer.drain()
            await backend.release.wait()
            backend.release.clear()
        writer.write(b"0\r\n\r\n")

    async with raw.replica(events) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.get())
        assert (await client.head()).status == 200
        for number in range(3):
            async with asyncio.timeout(raw.WAIT):
                assert await client.chunk() == b"data: %d\n\n" % number
            backend.release.set()
        async with asyncio.timeout(raw.WAIT):
            assert await client.chunk() == b""
            assert await client.reader.readexactly(2) == b"\r\n"
        backend.release.set()


async def test_head_is_flushed_before_the_first_byte_of_a_body() -> None:
    async def slow(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await backend.release.wait()
        writer.write(b"ok")

    async with raw.replica(slow) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(raw.get())
        assert (await client.head()).status == 200
        backend.release.set()
        assert await client.reader.readexactly(2) == b"ok"


async def test_streams_in_both_directions_at_once() -> None:
    async def echo(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        peer = raw.Client(reader, writer)
        while chunk := await peer.chunk():
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with raw.replica(echo) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await client.head()).status == 200
        for word in (b"one", b"two", b"three"):
            await client.send(b"%x\r\n%b\r\n" % (len(word), word))
            async with asyncio.timeout(raw.WAIT):
                assert await client.chunk() == word
        await client.send(b"0\r\n\r\n")
        assert await client.chunk() == b""
        await router.quiet()


async def test_body_that_waited_arrives_whole() -> None:
    body = bytes(range(256)) * 4096  # 1 MiB: more than is taken off the socket while waiting
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        router.activator.ready.clear()
        sending = asyncio.ensure_future(client.send(raw.post(body)))
        await asyncio.sleep(0.1)
        router.activator.ready.set()
        await sending
        assert (await client.response()).body == body


async def test_body_is_not_read_while_the_request_waits() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        router.activator.ready.clear()
        await client.send(raw.post(b"", "X: 1").replace(b"Content-Length: 0", b"Content-Length: 100000000"))
        assert await pour(client, bytes(65536), 100_000_000) < 20_000_000, "the router takes the whole body in"
        client.abort()
        await router.quiet()


async def test_early_answer_ends_the_request() -> None:
    async def early(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(raw.answer(b"no thanks", "403 Forbidden"))
        await writer.drain()
        await reader.read()  # until the router closes

    async with raw.replica(early) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000000\r\n\r\nstart")
        answer = await client.response()
        assert (answer.status, answer.body) == (403, b"no thanks")
        assert answer["connection"] == "close"
        await router.quiet()
        assert router.upstream.connections == (0, 0), "a half-sent request leaves no reusable connection"
        assert await client.at_end() == b""


async def test_early_answer_and_close_is_not_lost_to_a_failing_write() -> None:
    async def early(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(raw.answer(b"too much", "413 Content Too Large", "Connection: close"))

    body = bytes(3_000_000)
    async with raw.replica(early) as backend, served(backend.address) as router, raw.client(router.port) as client:
        sending = asyncio.ensure_future(client.send(raw.post(body)))
        assert (await client.response()).status in {413, 502}  # a reset may overtake the answer: then nothing is hidden
        client.abort()
        await asyncio.wait([sending])
        assert sending.exception() is None or isinstance(sending.exception(), ConnectionError)
        await router.quiet()


async def test_small_rest_of_a_body_is_read_away() -> None:
    async def early(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(raw.answer())
        await reader.read()

    async with raw.replica(early) as backend, served(backend.address) as router, raw.client(router.port) as client:
        for _ in range(2):
            await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n")
            answer = await client.response()
            assert answer.get("connection") is None
            await client.send(bytes(1000))
        assert backend.connections == 2


async def test_body_over_the_limit_at_the_head() -> None:
    settings = RouterSettings(body_limit=1000)
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, settings=settings) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1001\r\n\r\n")
        assert (answer.status, answer["modalnomad-error"]) == (413, "body_too_large")
        assert backend.connections == 0
        assert await client.at_end() == b""


@pytest.mark.parametrize("waiting", [False, True])
async def test_body_over_the_limit_when_it_is_crossed(waiting: bool) -> None:
    settings = RouterSettings(body_limit=1000)
    async with (
        raw.replica(raw.waits) as backend,
        served(backend.address, settings=settings) as router,
        raw.client(router.port) as client,
    ):
        if waiting:
            router.activator.ready.clear()
        await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + bytes(1000))
        answer = await client.request(b"\r\n1\r\nx\r\n")
        assert (answer.status, answer["modalnomad-error"]) == (413, "body_too_large")
        await router.quiet()


async def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    async def script(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            received = await backend.read(reader)
            writer.write(raw.answer(received.line.encode() + received.body))

    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(
            raw.get("/1") + raw.post(b"body", path="/2") + raw.get("/3", "nobody.localhost") + raw.get("/4")
        )
        bodies = [(await client.response()).body for _ in range(4)]
        assert bodies[0] == b"GET /1 HTTP/1.1"
        assert bodies[1] == b"POST /2 HTTP/1.1body"
        assert b"unknown_endpoint" in bodies[2]
        assert bodies[3] == b"GET /4 HTTP/1.1"
        assert backend.connections == 1


async def test_pipelined_requests_are_not_hoarded() -> None:
    async with raw.replica(raw.waits) as backend, served(backend.address) as router, raw.client(router.port) as client:
        assert await pour(client, raw.get() * 1000, 100_000_000) < 20_000_000, "the router takes them all in"
        client.abort()
        await router.quiet()


async def test_keep_alive_reuses_the_replicas_connection_and_web_server_does_not() -> None:
    for kind, connections in (("asgi_app", 1), ("web_server", 3)):
        async with (
            raw.replica(raw.polite) as backend,
            served(backend.address, routes=[route(kind=kind)]) as router,  # type: ignore[arg-type]
            raw.client(router.port) as client,
        ):
            for _ in range(3):
                assert (await client.request(raw.get())).status == 200
            assert backend.connections == connections
            wanted = "close" if kind == "web_server" else None
            assert {received.get("connection") for received in backend.requests} == {wanted}


SLOW: dict[str, Callable[[], bytes]] = {
    "client closes after each": lambda: raw.get("/", "app.localhost", "Connection: close"),
    "HTTP/1.0": lambda: b"GET / HTTP/1.0\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("request_", SLOW.values(), ids=SLOW.keys())
async def test_connection_ends_when_the_client_wants(request_: Callable[[], bytes]) -> None:
    answer = await one(raw.polite, request_())
    assert answer["connection"] == "close"
