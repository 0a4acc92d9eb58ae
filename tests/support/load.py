"""Load that counts: every request has a number of its own, and both sides write down which they saw.

    program(folder, version)         a program whose app notes each request's number in `folder`
    async with Load(target) as load  clients that ask all the time: raw sockets, pooled connections, streams, WebSockets
    verdict([load], folder)          who was lost, who was doubled, who was refused

Lost: the app noted it and its client has no whole answer, or the client was neither answered nor refused. Doubled: the
app noted it more than once. Refused: 503 `draining`, or a connection that ended before any byte of an answer, of a
request the app never saw; ended: a WebSocket closed with 1001 or 1012. Both are in order only where the router is
being stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

PROGRAM = """
import asyncio
import os

import modal

app = modal.App("{name}")
VERSION = "{version}"
seen = os.open("{folder}/seen-" + os.urandom(8).hex(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


async def answer(send, *parts):
    headers = [(b"content-type", b"text/plain")]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    for part in parts[:-1]:
        await send({{"type": "http.response.body", "body": part, "more_body": True}})
        await asyncio.sleep(0.02)
    await send({{"type": "http.response.body", "body": parts[-1]}})


async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    number = scope["query_string"]
    os.write(seen, number + b"\\n")
    if scope["type"] == "websocket":
        await receive()
        await send({{"type": "websocket.accept"}})
        while (message := await receive())["type"] == "websocket.receive":
            await send({{"type": "websocket.send", "text": message["text"] + " " + VERSION}})
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/stream":
        await answer(send, number, b" ", b"and", b" ", VERSION.encode(), b" end")
    else:
        await asyncio.sleep({pause})
        await answer(send, number + b" " + VERSION.encode())
"""

SITE = """

@app.function(scaledown_window={window}, max_containers={most}, min_containers={least})
@modal.concurrent(max_inputs={inputs})
@modal.asgi_app()
def {site}():
    return web
"""


LATE = """
import time

@app.function(scaledown_window=2)
@modal.fastapi_endpoint()
def late():
    return os.environ["MODALNOMAD_REPLICA"]

@app.cls(scaledown_window=600)
class Held:
    @modal.enter()
    def enter(self):
        while os.path.exists(GATE):
            time.sleep(0.02)

    @modal.fastapi_endpoint()
    def web(self):
        return os.environ["MODALNOMAD_REPLICA"]
"""
"""Endpoints `late`, which idles out, and `Held`, whose replicas start while nothing is at the path GATE."""


def program(
    folder: Path,
    version: str,
    *,
    name: str = "counted",
    pause: float = 0.005,
    window: int = 2,
    least: int = 0,
    most: int = 3,
    inputs: int = 10,
    sites: Sequence[str] = ("site",),
) -> str:
    """Its text. `folder` exists. `sites`: its endpoints."""
    common = PROGRAM.format(folder=folder, version=version, name=name, pause=pause)
    scaling = {"window": window, "least": least, "most": most, "inputs": inputs}
    return common + "".join(SITE.format(site=site, **scaling) for site in sites)


def noted(folder: Path) -> Counter[int]:
    """Number → how often an app saw it."""
    return Counter(int(line) for file in folder.glob("seen-*") for line in file.read_text().split())


@dataclass(slots=True)
class Verdict:
    """What became of all requests."""

    asked: int
    answered: int
    refused: int
    ended: int
    lost: list[str] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        found = f"{self.asked} asked, {self.answered} answered, {self.refused} refused, {self.ended} ended"
        return f"{found}, {len(self.lost)} lost, {len(self.doubled)} doubled\n" + "\n".join(
            [*self.lost[:20], *(f"{number} was seen twice" for number in self.doubled[:20])]
        )


class Load:
    """Clients of one endpoint. Entering starts them; leaving lets each finish what it is at.

    `target`: () → (host header, port), read again before every connection. `pace`: seconds each client rests between
    two requests. `bursts`: seconds of work, then of rest (between the second and the third number), all clients
    together, so that the endpoint is about to fall asleep in between.
    """

    def __init__(
        self,
        target: Callable[[], tuple[str, int]],
        *,
        clients: Sequence[str] = ("raw", "kept", "pooled", "stream", "websocket"),
        pace: float = 0.01,
        bursts: tuple[float, float, float] | None = None,
        numbers: itertools.count[int] | None = None,
        limit: float = 60.0,
    ) -> None:
        self._target = target
        self._clients = clients
        self._pace = pace
        self._bursts = bursts
        self._numbers = numbers or itertools.count(1)
        self._limit = limit
        self._stop = asyncio.Event()
        self._work = asyncio.Event()
        self._work.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._pool: aiohttp.ClientSession | None = None
        self._kept_writers: set[asyncio.StreamWriter] = set()
        self.asked: set[int] = set()
        self.answered: dict[int, str] = {}
        """Number → version that answered."""
        self.refused: dict[int, str] = {}
        self.ended: dict[int, str] = {}
        """WebSockets that were told to go: close code 1001 or 1012 (RFC 6455, section 7.4)."""
        self.failed: dict[int, str] = {}
        """Number → what the client saw instead of an answer."""

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0)
        self._pool = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=self._limit))
        if self._bursts:
            self._tasks.append(asyncio.create_task(self._rhythm(*self._bursts)))
        for kind in self._clients:
            self._tasks.append(asyncio.create_task(self._client(getattr(self, f"_{kind}")())))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        done, late = await asyncio.wait(self._tasks, timeout=self._limit)
        for task in late:
            task.cancel()
        assert self._pool is not None
        await self._pool.close()
        for writer in self._kept_writers:
            writer.close()
        for task in done:
            task.result()
        assert not late, f"{len(late)} clients still wait"

    async def until(self, answers: int) -> None:
        """Return when so many were answered from now on, or when all clients ended."""
        wanted = len(self.answered) + answers
        while len(self.answered) < wanted and not all(task.done() for task in self._tasks):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    # --- Clients ----------------------------------------------------------------------------------------------

    async def _client(self, ask: _Asker) -> None:
        while not self._stop.is_set():
            await self._work.wait()
            number = next(self._numbers)
            self.asked.add(number)
            try:
                async with asyncio.timeout(self._limit):
                    version = await ask(number)
            except _Refused as refusal:
                self.refused[number] = str(refusal)
            except _Ended as ending:
                self.ended[number] = str(ending)
            except (OSError, aiohttp.ClientError, asyncio.IncompleteReadError, TimeoutError, _Wrong) as error:
                self.failed[number] = f"{ask.__name__} {number}: {error!r}"
            else:
                self.answered[number] = version
            await asyncio.sleep(self._pace)

    async def _rhythm(self, work: float, least: float, most: float) -> None:
        while not self._stop.is_set():
            await self._rest(work)
            self._work.clear()
            await self._rest(random.uniform(least, most))
            self._work.set()
        self._work.set()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def _raw(self) -> _Asker:
        async def raw(number: int) -> str:
            """One connection for each request."""
            reader, writer = await self._connect(number)
            try:
                return await self._exchange(reader, writer, number, "/", close=True)
            finally:
                writer.close()

        return raw

    def _kept(self) -> _Asker:
        held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def kept(number: int) -> str:
            """One connection for as long as it lasts; as RFC 9112 9.6 has it, an idle one may be closed at any time."""
            if held and (held[0][0].at_eof() or held[0][1].is_closing()):
                held.pop()[1].close()
            reader, writer = held.pop() if held else await self._connect(number)
            try:
                version = await self._exchange(reader, writer, number, "/", close=False)
            except BaseException:
                writer.close()
                raise
            held.append((reader, writer))
            self._kept_writers.add(writer)
            return version

        return kept

    def _stream(self) -> _Asker:
        async def stream(number: int) -> str:
            reader, writer = await self._connect(number)
            try:
                return await self._exchange(reader, writer, number, "/stream", close=True)
            finally:
                writer.close()

        return stream

    def _pooled(self) -> _Asker:
        async def pooled(number: int) -> str:
            host, port = self._target()
            assert self._pool is not None
            url = f"http://127.0.0.1:{port}/?{number}"
            async with self._pool.post(url, data=b"x" * 100, headers={"Host": host}) as answer:
                return _read(number, answer.status, answer.headers.get("Modalnomad-Error", ""), await answer.text())

        return pooled

    def _websocket(self) -> _Asker:
        async def websocket(number: int) -> str:
            host, port = self._target()
            assert self._pool is not None
            version = ""
            url = f"http://127.0.0.1:{port}/?{number}"
            try:
                async with self._pool.ws_connect(url, headers={"Host": host}) as socket:
                    for turn in range(5):
                        try:
                            await socket.send_str(f"{number}.{turn}")
                            said = await socket.receive_str()
                        except (TypeError, aiohttp.ClientConnectionResetError) as error:
                            if socket.close_code is None:
                                await socket.receive()  # what came before the end
                            if socket.close_code in {1001, 1012}:
                                raise _Ended(str(socket.close_code)) from error
                            raise _Wrong(f"closed with {socket.close_code}: {error}") from error
                        text, _, version = said.partition(" ")
                        if text != f"{number}.{turn}":
                            raise _Wrong(said)
                        await asyncio.sleep(0.02)
            except aiohttp.WSServerHandshakeError as error:
                code = error.headers.get("Modalnomad-Error", "") if error.headers else ""
                _read(number, error.status, code, error.message)
                raise
            return version

        return websocket

    async def _connect(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_connection("127.0.0.1", self._target()[1])
        except ConnectionRefusedError as error:
            raise _Refused("connection refused") from error

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, path: str, *, close: bool
    ) -> str:
        ending = "close" if close else "keep-alive"
        body = b"x" * 100
        head = (
            f"POST {path}?{number} HTTP/1.1\r\nHost: {self._target()[0]}\r\nConnection: {ending}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        if headers.get("transfer-encoding") == "chunked":
            text = await _chunks(reader)
        else:
            text = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close" and not close:
            writer.close()
        return _read(number, status, headers.get("modalnomad-error", ""), text.decode())

    # --- The end ----------------------------------------------------------------------------------------------

    def verdict(self, folder: Path, *, stopping: bool = False) -> Verdict:
        """Once all clients are done. `stopping`: the router was stopped meanwhile, so refusals are in order."""
        return verdict([self], folder, stopping=stopping)


def verdict(loads: Sequence[Load], folder: Path, *, stopping: bool = False) -> Verdict:
    """Of several loads on one program."""
    seen = noted(folder)
    found = Verdict(
        asked=sum(len(load.asked) for load in loads),
        answered=sum(len(load.answered) for load in loads),
        refused=sum(len(load.refused) for load in loads),
        ended=sum(len(load.ended) for load in loads),
        doubled=[number for number, times in seen.items() if times > 1],
    )
    for load in loads:
        for number, why in load.failed.items():
            if stopping and number not in seen:
                found.refused += 1
            else:
                found.lost.append(f"{why}{' (the app saw it)' if number in seen else ''}")
        for number, why in load.refused.items():
            if number in seen:
                found.lost.append(f"{number} was refused ({why}), but the app saw it")
            elif not stopping:
                found.lost.append(f"{number} was refused: {why}")
        if not stopping:
            found.lost += [f"{number} was told to go with {code}" for number, code in load.ended.items()]
        found.lost += [f"{number} was answered, but no app saw it" for number in load.answered if number not in seen]
    return found


_Asker = Callable[[int], Coroutine[Any, Any, str]]


class _Wrong(Exception):
    """An answer, but not the right one."""


class _Ended(Exception):
    """A WebSocket was told to go."""


class _Refused(Exception):
    """The router does not take requests any more."""


def _read(number: int, status: int, code: str, text: str) -> str:
    """The version that answered."""
    if status == 503 and code == "draining":
        raise _Refused("503 draining")
    parts = text.replace(" and ", " ").removesuffix(" end").split(" ")
    if status != 200 or parts[0] != str(number) or len(parts) != 2:
        raise _Wrong(f"{status} {code} {text[:200]}")
    return parts[1]


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body
