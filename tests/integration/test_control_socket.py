"""The control socket of `up`: calls and their errors across processes, what ends with a client, and who misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from modalnomad.model.errors import (
    BackendConflict,
    BackendError,
    BackendRefused,
    BackendUnreachable,
    ImageBuildFailed,
    ManifestInvalid,
    ModalNomadError,
    Problem,
    UserCodeFailed,
)
from modalnomad.settings import Settings
from modalnomad.wiring import control, control_server
from modalnomad.wiring.control import NotRunning, control_call, open_control, open_stage
from modalnomad.wiring.control_protocol import FOLDER, MESSAGE_LIMIT, NAME, PATH, PROTOCOL, find_socket
from modalnomad.wiring.control_server import Call, ControlServer
from tests.support.engines import eventually, open_descriptors, within


@asynccontextmanager
async def serving(home: Path, **handlers: Any) -> AsyncIterator[ControlServer]:
    """A control server with `echo`, `wait` (forever, `waiting` counts) and more."""
    server = ControlServer(home)

    async def echo(call: Call) -> Any:
        await call.progress("soon")
        return dict(call.arguments)

    for name, handler in {"echo": echo, **handlers}.items():
        server.handle(name, handler)
    async with asyncio.timeout(60), server:
        yield server


@asynccontextmanager
async def raw_client(home: Path) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A WebSocket past the hello, to be misused."""
    path = find_socket(home)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        ws = await session.ws_connect(f"http://up{PATH}", max_msg_size=0)
        assert (await ws.receive_json())["hello"] == 1
        yield ws
        await ws.close()


@asynccontextmanager
async def hanging(home: Path) -> AsyncIterator[asyncio.Event]:
    """One that says hello, is called (the event), and from then on does nothing, as a stopped process."""
    called, over = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.send_json({"hello": PROTOCOL})
        await ws.receive()
        called.set()
        await over.wait()
        return ws

    (home / FOLDER).mkdir(mode=0o700)
    application = web.Application()
    application.router.add_get(PATH, hang)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, home / FOLDER / NAME).start()
    try:
        yield called
    finally:
        over.set()
        await runner.cleanup()


async def answers(home: Path) -> None:
    """It still works for others."""
    told: list[Any] = []
    assert await within(control_call(Settings(home=home), "echo", told.append, a=[1, "ä"])) == {"a": [1, "ä"]}
    assert told == ["soon"]


async def test_calls_are_answered_whatever_order_they_end_in(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(call: Call) -> str:
        await gate.wait()
        return "slow"

    async with serving(tmp_path, slow=slow), open_control(tmp_path) as client:
        first = asyncio.ensure_future(client.call("slow", {}))
        assert await client.call("echo", {"n": 2}) == {"n": 2}
        gate.set()
        assert await within(first) == "slow"
    assert not (tmp_path / FOLDER / NAME).exists()


@pytest.mark.parametrize(
    "error",
    [
        BackendConflict("somebody was first", "try again"),
        UserCodeFailed("it does not start", "Traceback: ä\n", "look"),
        ImageBuildFailed("no such package", "resolver says no", None),
        ManifestInvalid([Problem("app.py:1", "bad"), Problem("", "worse")], "mend it"),
    ],
)
async def test_errors_keep_their_class_and_words(tmp_path: Path, error: ModalNomadError) -> None:
    async def fail(call: Call) -> None:
        raise error

    async with serving(tmp_path, fail=fail):
        with pytest.raises(type(error)) as caught:
            await control_call(Settings(home=tmp_path), "fail")
    assert (caught.value.message, caught.value.hint) == (error.message, error.hint)
    assert getattr(caught.value, "output", None) == getattr(error, "output", None)
    assert getattr(caught.value, "problems", None) == getattr(error, "problems", None)


async def test_a_defect_is_an_error_without_its_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def break_(call: Call) -> None:
        raise KeyError("inner secret")

    async with serving(tmp_path, broken=break_):
        with pytest.raises(BackendError, match="failed at broken") as caught:
            await control_call(Settings(home=tmp_path), "broken")
        with pytest.raises(BackendRefused, match="does not know the call 'nothing'"):
            await control_call(Settings(home=tmp_path), "nothing")
        await answers(tmp_path)
    assert "inner secret" not in str(caught.value)
    assert "inner secret" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        "not json",
        "[]",
        "[" * 100_000,
        '{"id": "x", "call": "echo"}',
        '{"id": 1}',
        '{"id": 1, "call": 5}',
        b"\x00\xff",
        json.dumps({"id": 1, "call": "echo", "arguments": {"a": "x" * (MESSAGE_LIMIT + 1)}}),
    ],
    ids=["text", "list", "deep", "id", "no-call", "call", "binary", "huge"],
)
async def test_who_does_not_speak_the_protocol_is_cut_off_alone(tmp_path: Path, message: str | bytes) -> None:
    async with serving(tmp_path), open_control(tmp_path) as bystander:
        async with raw_client(tmp_path) as ws:
            with suppress(ConnectionError):  # cut off while it still writes
                await (ws.send_bytes(message) if isinstance(message, bytes) else ws.send_str(message))
            closed = await within(ws.receive())
            assert closed.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
        assert await bystander.call("echo", {}) == {}
        await answers(tmp_path)


@pytest.mark.parametrize("arguments", ['"text"', "[1]", "null", '{"id": []}'])
async def test_wrong_arguments_are_an_answer(tmp_path: Path, arguments: str) -> None:
    from modalnomad.wiring.up import StopContainer

    async def strict(call: Call) -> None:
        StopContainer.model_validate(call.arguments)

    async with serving(tmp_path, strict=strict), raw_client(tmp_path) as ws:
        await ws.send_str(f'{{"id": 7, "call": "strict", "arguments": {arguments}}}')
        answer = await within(ws.receive_json())
        assert answer["id"] == 7
        assert answer["error"]["type"] == "BackendRefused"


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01garbage\r\n\r\n", b""])
async def test_what_is_no_websocket_gets_nowhere(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path):
        reader, writer = await asyncio.open_unix_connection(str(find_socket(tmp_path)))
        writer.write(sent)
        if sent:
            assert (await within(reader.readline())).split()[1] in {b"400", b"404"}
        writer.close()
        await writer.wait_closed()
        await answers(tmp_path)


async def test_an_endless_head_is_answered_and_leaves_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path):
        reader, writer = await asyncio.open_unix_connection(str(find_socket(tmp_path)))
        writer.write(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await within(reader.readline())).split()[1] == b"400"
        writer.close()
        await writer.wait_closed()
        await answers(tmp_path)
    assert caplog.text == ""


async def test_who_comes_while_it_stops_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.stop()
        with pytest.raises(BackendUnreachable, match="is being stopped"):
            await control_call(Settings(home=tmp_path), "echo")


async def test_clients_beyond_the_limit_are_refused_and_places_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "CLIENTS", 3)
    async with serving(tmp_path):
        async with open_control(tmp_path), open_control(tmp_path), open_control(tmp_path):
            with pytest.raises(BackendUnreachable):
                await control_call(Settings(home=tmp_path), "echo")

        async def again() -> bool:
            try:
                await answers(tmp_path)
            except BackendUnreachable:
                return False
            return True

        async with asyncio.timeout(30):
            while not await again():  # noqa: ASYNC110 - the server sees the others leave in its own time
                await asyncio.sleep(0.01)


async def test_a_client_that_never_reads_holds_up_nobody(tmp_path: Path) -> None:
    async def much(call: Call) -> str:
        return "x" * 1_000_000

    async with serving(tmp_path, much=much):
        lazy = socket.socket(socket.AF_UNIX)
        try:
            lazy.connect(str(find_socket(tmp_path)))
            lazy.setblocking(False)
            head = "GET /control HTTP/1.1\r\nHost: up\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            lazy.send(
                (head + "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n").encode()
            )
            for number in range(50):
                text = json.dumps({"id": number, "call": "much"}).encode()
                lazy.send(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
            for _ in range(20):
                await answers(tmp_path)
        finally:
            lazy.close()


async def test_what_a_client_owns_ends_with_it_and_its_calls_too(tmp_path: Path) -> None:
    closed: list[str] = []
    cancelled: list[str] = []
    began = asyncio.Event()

    class Owned:
        async def close(self) -> None:
            closed.append("owned")

    async def own(call: Call) -> None:
        call.client.own("it", Owned)
        call.client.own("it", Owned)

    async def wait(call: Call) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("call")
            raise

    async with serving(tmp_path, own=own, wait=wait):
        async with raw_client(tmp_path) as ws:
            await ws.send_json({"id": 1, "call": "own", "arguments": {}})
            await ws.send_json({"id": 2, "call": "wait", "arguments": {}})
            await within(began.wait())
            ws._response.connection.transport.abort()  # type: ignore[union-attr]
        await eventually(lambda: closed and cancelled)
        assert closed == ["owned"]
        assert cancelled == ["call"]
        await answers(tmp_path)


async def test_a_call_that_is_given_up_is_given_up_there_too(tmp_path: Path) -> None:
    cancelled = asyncio.Event()
    began = asyncio.Event()

    async def wait(call: Call) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(tmp_path, wait=wait), open_control(tmp_path) as client:
        call = asyncio.ensure_future(client.call("wait", {}))
        await within(began.wait())
        call.cancel()
        await within(cancelled.wait())
        assert await client.call("echo", {}) == {}


async def test_clients_are_told_when_it_stops(tmp_path: Path) -> None:
    async def wait(call: Call) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(60):
        server = ControlServer(tmp_path)
        server.handle("wait", wait)
        await server.__aenter__()
        async with open_control(tmp_path) as client:
            call = asyncio.ensure_future(client.call("wait", {}))
            await client_is_there(server)
            await server.__aexit__(None, None, None)
            with pytest.raises(BackendUnreachable, match="being stopped"):
                await call
            with pytest.raises(BackendUnreachable, match="being stopped"):
                await client.call("wait", {})
        with pytest.raises(NotRunning):
            await control_call(Settings(home=tmp_path), "wait")


@pytest.mark.parametrize(
    "answer", ["nonsense", "[]", '{"id": 1, "error": {"type": "ManifestInvalid", "problems": [1]}}']
)
async def test_a_server_that_makes_no_sense_leaves_nobody_waiting(tmp_path: Path, answer: str) -> None:
    async def confuse(call: Call) -> None:
        await call.client._ws.send_str(answer)
        await asyncio.Event().wait()

    async with serving(tmp_path, confuse=confuse), open_control(tmp_path) as client:
        with pytest.raises(BackendUnreachable, match="what cannot be read"):
            await within(client.call("confuse", {}))


async def client_is_there(server: ControlServer) -> None:
    await eventually(lambda: any(client.calls for client in server._clients))


async def test_nobody_there_is_no_stage(tmp_path: Path) -> None:
    async with open_stage(Settings(home=tmp_path)) as stage:
        assert stage is None
    left = tmp_path / FOLDER
    left.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(left / NAME))
    async with open_stage(Settings(home=tmp_path)) as stage:
        assert stage is None, "what a killed one left is no `up`"
    async with serving(tmp_path):
        await answers(tmp_path)


async def test_one_that_does_not_answer_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER", 0.3)
    folder = tmp_path / FOLDER
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(folder / NAME))
        hung.listen(5)
        with pytest.raises(BackendUnreachable, match="does not answer") as caught:
            async with open_stage(Settings(home=tmp_path)):
                pass
        assert not isinstance(caught.value, NotRunning)


async def test_one_that_hangs_in_the_middle_of_a_call_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "HEARTBEAT", 0.2)
    async with hanging(tmp_path), open_control(tmp_path) as client:
        with pytest.raises(BackendUnreachable, match="does not answer any more"):
            await within(client.call("wait", {}))


async def test_who_gives_up_a_call_does_not_wait_for_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "GOODBYE", 0.1)
    async with hanging(tmp_path) as called:
        call = asyncio.ensure_future(control_call(Settings(home=tmp_path), "wait"))
        await within(called.wait())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(call, 8)  # left to itself, the WebSocket waits 10 s


async def test_only_the_owner_can_reach_it(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(mode=0o755)
    async with serving(tmp_path):
        assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / FOLDER / NAME).stat().st_mode) == 0o600


async def test_a_long_home_gets_a_short_place_and_no_stranger_is_believed(tmp_path: Path) -> None:
    home = tmp_path / ("h" * 60) / ("o" * 60)
    home.mkdir(parents=True)
    async with serving(home):
        path = find_socket(home)
        assert path is not None
        assert len(os.fsencode(path)) <= 107
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await answers(home)
    assert not path.parent.exists()
    assert not (home / FOLDER).is_symlink()

    stranger = tmp_path / "modalnomad-stranger"
    stranger.mkdir(mode=0o777)
    stranger.chmod(0o777)
    (home / FOLDER).symlink_to(stranger)
    with pytest.raises(BackendRefused, match="not only for the owner"):
        await control_call(Settings(home=home), "echo")


async def test_connections_leave_no_descriptor(tmp_path: Path) -> None:
    async with serving(tmp_path):
        await answers(tmp_path)
        before = len(open_descriptors())
        for _ in range(10):
            await answers(tmp_path)
        await eventually(lambda: len(open_descriptors()) <= before)
