"""WebSockets: the handshake is checked, the rest passes through untouched."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.exceptions

from modalnomad.model.replica import TcpAddress
from tests.support import raw
from tests.support.handshake import ACCEPT, KEY, handshake, switch
from tests.support.router import Served, route, served, until

BOTH_LOOPS = True


@contextlib.asynccontextmanager
async def echo_server() -> AsyncIterator[websockets.asyncio.server.Server]:
    """A real WebSocket server: echoes, and closes with 4001 when told."""

    async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            async for message in connection:
                if message == "close":
                    await connection.close(4001, "as you wish")
                await connection.send(message)

    def choose(
        connection: websockets.asyncio.server.ServerConnection, offered: Sequence[websockets.Subprotocol]
    ) -> websockets.Subprotocol | None:
        return offered[-1] if offered else None

    async with websockets.asyncio.server.serve(
        echo, "127.0.0.1", 0, select_subprotocol=choose, max_size=None
    ) as server:
        yield server


def address(server: websockets.asyncio.server.Server) -> TcpAddress:
    return TcpAddress("127.0.0.1", next(iter(server.sockets)).getsockname()[1])


def connect(router: Served, **arguments: object) -> websockets.asyncio.client.connect:
    return websockets.asyncio.client.connect(
        "ws://app.localhost/", host="127.0.0.1", port=router.port, max_size=None, **arguments  # type: ignore[arg-type]
    )  # fmt: skip


async def test_messages_subprotocol_and_close_codes_pass() -> None:
    async with echo_server() as server, served(address(server)) as router:
        async with connect(router, subprotocols=["b"]) as socket:
            assert socket.subprotocol == "b"
            assert socket.protocol.extensions == []
            for message in ("hello", b"bytes", "", b"x" * 3_000_000):
                await socket.send(message)
                assert await socket.recv() == message
            assert (router.activator.running, router.router.gate.counters.websockets) == (1, 1)
            await socket.send("close")
            with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")
        await router.quiet()
        assert router.router.gate.counters.websockets == 0


async def test_many_sockets_hold_one_lease_each() -> None:
    async with echo_server() as server, served(address(server)) as router:
        sockets = [await connect(router) for _ in range(20)]
        assert router.activator.running == 20
        for number, socket in enumerate(sockets):
            await socket.send(str(number))
        assert [await socket.recv() for socket in sockets] == [str(number) for number in range(20)]
        for socket in sockets:
            await socket.close()
        await router.quiet()


async def test_last_words_arrive_although_more_is_passed_on_before_they_are_read() -> None:
    """The router stands still while the replica says goodbye and closes, with a part of what it was sent unread."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with served(TcpAddress(*listener.getsockname())) as router, raw.client(router.port) as client:
            await client.send(handshake())
            replica, _ = await loop.sock_accept(listener)
            with replica:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += await loop.sock_recv(replica, 65536)
                await loop.sock_sendall(replica, switch())
                assert (await client.response()).status == 101
                await client.send(b"unread")
                assert await loop.sock_recv(replica, 2) == b"un"
                client.writer.write(b"more")  # nothing else runs from here on to the end of the block
                replica.send(b"goodbye")
            assert await client.at_end() == b"goodbye"
            await router.quiet()


BAD = {
    "no key": (handshake(without="Sec-WebSocket-Key"), 400),
    "short key": (handshake("Sec-WebSocket-Key: abcd", without="Sec-WebSocket-Key"), 400),
    "key is no base64": (handshake("Sec-WebSocket-Key: ????????????????????????", without="Sec-WebSocket-Key"), 400),
    "two keys": (handshake(f"Sec-WebSocket-Key: {KEY}"), 400),
    "no version": (handshake(without="Sec-WebSocket-Version"), 426),
    "version 8": (handshake("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"), 426),
    "POST": (handshake(method="POST"), 400),
    "body": (handshake("Content-Length: 3") + b"abc", 400),
}


@pytest.mark.parametrize(("head", "status"), BAD.values(), ids=BAD.keys())
async def test_bad_handshake_never_reaches_a_replica(head: bytes, status: int) -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(head)
        assert answer.status == status
        if status == 426:
            assert answer["sec-websocket-version"] == "13"
        assert backend.connections == 0


async def test_handshake_towards_the_replica() -> None:
    async def script(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await backend.read_head(reader)
        assert received.get("upgrade") == "websocket"
        assert received.get("connection") == "Upgrade"
        assert received.get("sec-websocket-key") == KEY
        assert received.get("sec-websocket-extensions") is None
        assert received.get("modalnomad-ticket")
        writer.write(switch("Modalnomad-X: 1") + b"early")
        writer.write(await reader.readexactly(4))
        await reader.read()

    for kind in ("asgi_app", "web_server"):
        async with (
            raw.replica(script) as backend,
            served(backend.address, routes=[route(kind=kind)]) as router,
            raw.client(router.port) as client,
        ):
            # A client in a hurry sends before it knows.
            await client.send(handshake("Sec-WebSocket-Extensions: permessage-deflate") + b"data")
            answer = await client.response()
            assert answer.status == 101
            assert answer["sec-websocket-accept"] == ACCEPT
            assert answer["upgrade"] == "websocket"
            assert answer["connection"] == "Upgrade"
            assert answer["x-request-id"]
            assert answer.get("modalnomad-x") is None
            assert await client.reader.readexactly(9) == b"earlydata"


LIES = {
    "wrong accept": f"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {KEY}\r\n",
    "no accept": "Upgrade: websocket\r\nConnection: upgrade\r\n",
    "other protocol": f"Upgrade: h2c\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n",
    "no connection": f"Upgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n",
    "extension": f"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate\r\n",
}


@pytest.mark.parametrize("lines", LIES.values(), ids=LIES.keys())
async def test_bad_switch_is_a_bad_answer(lines: str) -> None:
    script = raw.says(f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode())
    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(handshake())
        assert (answer.status, answer["modalnomad-error"]) == (502, "bad_answer")
        await router.quiet()


async def test_refused_handshake_passes_as_an_answer() -> None:
    script = raw.says(raw.answer(b"no", "403 Forbidden"))
    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(handshake())
        assert (answer.status, answer.body) == (403, b"no")
        assert (await client.request(raw.get())).status == 403


async def test_other_upgrades_are_ignored() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(raw.get("/", "app.localhost", "Connection: Upgrade, HTTP2-Settings",
                                              "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"))  # fmt: skip
        assert answer.status == 200
        assert backend.requests[0].get("upgrade") is None
        assert backend.requests[0].get("http2-settings") is None


async def test_socket_ends_with_the_functions_timeout() -> None:
    for limit in (0.3, 6.0):  # the second one for a machine that stands still before the socket has come to anything
        async with echo_server() as server, served(address(server), routes=[route(timeout=limit)]) as router:
            with contextlib.suppress(websockets.exceptions.WebSocketException):
                async with connect(router) as socket:
                    await socket.send("hello")
                    assert await socket.recv() == "hello"
                    with pytest.raises(websockets.exceptions.ConnectionClosed):
                        async with asyncio.timeout(raw.WAIT):
                            await socket.recv()
                    await router.quiet()
                    return
            await router.quiet()
    raise AssertionError("it was never open")


@pytest.mark.parametrize("reset", [False, True])
async def test_client_that_vanishes_frees_its_lease(reset: bool) -> None:
    async with echo_server() as server, served(address(server)) as router, raw.client(router.port) as client:
        assert (await client.request(handshake())).status == 101
        if reset:
            client.abort()
        else:
            client.writer.close()
        await router.quiet()
        await until(lambda: router.router.gate.guests == 0)


async def test_replica_that_dies_closes_the_client() -> None:
    async def script(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(switch() + b"bye")
        await writer.drain()

    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        assert (await client.request(handshake())).status == 101
        assert await client.at_end() == b"bye"
        client.writer.close()
        await router.quiet()


async def test_half_close_passes() -> None:
    async def script(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await backend.read_head(reader)
        writer.write(switch() + b"")
        everything = await reader.read()
        writer.write(b"got " + everything)

    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        assert (await client.request(handshake())).status == 101
        await client.send(b"one two")
        client.writer.write_eof()
        assert await client.at_end() == b"got one two"
        await router.quiet()


async def test_slow_reader_of_a_socket_holds_the_sender_back() -> None:
    sent = 0

    async def script(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await backend.read_head(reader)
        writer.write(switch() + b"")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
            assert sent < 50_000_000

    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        await client.send(handshake())
        assert (await client.head()).status == 101
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        await client.reader.readexactly(20_000_000)
        assert sent > before
