"""The control socket from another process: a running `up` as a Stage, and single calls."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from modalnomad.deploy.stage import Stage
from modalnomad.embedded.store import translated
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError, BackendRefused, BackendUnreachable
from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from modalnomad.settings import Settings
from modalnomad.wiring.control_protocol import (
    HEARTBEAT,
    MESSAGE_LIMIT,
    PATH,
    PROTOCOL,
    STOPPING,
    error_from_record,
    find_socket,
)
from modalnomad.wiring.home import home_of

ANSWER = 15.0
"""Seconds a running `up` has to say that it is there."""
GOODBYE = 2.0
"""Seconds it has to take leave of who ends the connection, such as with Ctrl-C."""

Progress = Callable[[Any], None]


class NotRunning(BackendUnreachable):
    """No `up` serves this home."""


class Control:
    """One connection. `call` from as many tasks as wanted."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, home: Path) -> None:
        self._ws = ws
        self._home = home
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._progress: dict[int, Progress] = {}
        self._tasks = Tasks("control")
        self._gone: BackendUnreachable | None = None

    def start(self) -> None:
        """Read what comes."""
        self._tasks.spawn(self._read(), "read")

    async def call(self, name: str, arguments: Mapping[str, Any], progress: Progress = lambda value: None) -> Any:
        """Its result. Raises the error the other side raised, or BackendUnreachable when it goes away meanwhile."""
        if self._gone is not None:
            raise self._gone
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number], self._progress[number] = future, progress
        try:
            await self._send({"id": number, "call": name, "arguments": arguments})
            return await future
        except asyncio.CancelledError:
            self._tasks.spawn(self._send({"cancel": number}), "cancel")
            raise
        finally:
            del self._waiting[number], self._progress[number]

    async def _send(self, message: Mapping[str, Any]) -> None:
        text = json.dumps(message, separators=(",", ":"))
        if len(text) > MESSAGE_LIMIT:
            raise BackendRefused(f"{message.get('call')}: {len(text)} bytes are too many for the control socket")
        try:
            await self._ws.send_str(text)
        except (ConnectionError, RuntimeError):
            self._end("it closed the connection")
            raise self._gone or BackendUnreachable("") from None

    async def _read(self) -> None:
        why = "it said what cannot be read"
        try:
            async for message in self._ws:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    if isinstance(message.data, TimeoutError):
                        why = "it does not answer any more: it is stopped or overloaded"
                    return
                content = json.loads(message.data)
                if content.get("stopping"):
                    why = "it is being stopped"
                    return
                self._take(content)
            why = "it closed the connection"
        finally:
            self._end(why)  # however it ends: nobody else answers those who wait

    def _take(self, content: Mapping[str, Any]) -> None:
        number = content.get("id")
        future = self._waiting.get(number) if isinstance(number, int) else None
        if future is None or future.done() or not isinstance(number, int):
            return
        if "progress" in content:
            self._progress[number](content["progress"])
        elif "error" in content:
            future.set_exception(error_from_record(content["error"]))
        else:
            future.set_result(content.get("result"))

    def _end(self, why: str) -> None:
        if self._gone is None:
            self._gone = BackendUnreachable(
                f"the modalnomad up of {self._home} went away: {why}", "look at its log, and try again when it runs"
            )
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._gone)

    async def close(self) -> None:
        """End the connection."""
        with suppress(ConnectionError, RuntimeError, TimeoutError):
            async with asyncio.timeout(GOODBYE):
                await self._ws.close()
        await self._tasks.close()


@asynccontextmanager
async def open_control(home: Path) -> AsyncIterator[Control]:
    """A connection. Raises NotRunning; BackendUnreachable: one runs, but does not answer."""
    path = await asyncio.to_thread(find_socket, home)
    if path is None:
        raise NotRunning(f"no modalnomad up serves {home}", "start it: modalnomad up")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        try:
            ws = await _connect(session, path, home)
        except (TimeoutError, aiohttp.ClientError) as error:
            if isinstance(error, aiohttp.WSServerHandshakeError) and error.status == STOPPING:
                raise BackendUnreachable(
                    f"the modalnomad up of {home} is being stopped{_holder(home)}", "try again when it has ended"
                ) from None
            raise BackendUnreachable(
                f"the modalnomad up of {home} does not answer{_holder(home)}",
                f"look whether it is stopped or overloaded ({type(error).__name__})",
            ) from error
        control = Control(ws, home)
        control.start()
        try:
            yield control
        finally:
            await control.close()


async def _connect(session: aiohttp.ClientSession, path: Path, home: Path) -> aiohttp.ClientWebSocketResponse:
    try:
        async with asyncio.timeout(ANSWER):
            ws = await session.ws_connect(
                f"http://up{PATH}", heartbeat=HEARTBEAT, max_msg_size=MESSAGE_LIMIT, autoping=True
            )
            hello = await ws.receive_json()
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, ConnectionRefusedError | FileNotFoundError):
            # Left by one that was killed.
            raise NotRunning(f"no modalnomad up serves {home}", "start it: modalnomad up") from None
        with translated(f"connect to {path}"):
            raise error.os_error from None
    except (ValueError, TypeError) as error:
        raise aiohttp.ClientError(str(error)) from error
    if not isinstance(hello, dict) or hello.get("hello") != PROTOCOL:
        await ws.close()
        version = hello.get("version") if isinstance(hello, dict) else None
        raise BackendRefused(
            f"the modalnomad up of {home} is another release ({version or 'unknown'})",
            "stop it and start it again with this release",
        )
    return ws


def _holder(home: Path) -> str:
    with suppress(OSError):
        if note := (home / "locks" / "up.lock").read_text("utf-8"):
            return f" ({note})"
    return ""


async def control_call(settings: Settings, name: str, progress: Progress = lambda value: None, **arguments: Any) -> Any:
    """One call on a connection of its own. Raises as the call does, NotRunning, BackendUnreachable."""
    async with open_control(home_of(settings)) as control:
        return await control.call(name, arguments, progress)


@asynccontextmanager
async def open_stage(settings: Settings) -> AsyncIterator[Stage | None]:
    """The running platform of this home; None: there is none. Raises BackendUnreachable: one runs, but does not
    answer."""
    connection = open_control(home_of(settings))
    try:
        control = await connection.__aenter__()
    except NotRunning:
        yield None
        return
    try:
        yield RemoteStage(control)
    finally:
        await connection.__aexit__(None, None, None)


class RemoteStage(Stage):
    """The Stage of another process."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def _call(self, method: str, **arguments: Any) -> Any:
        return await self._control.call(f"stage.{method}", arguments)

    async def warm_counts(self, revision: RevisionId) -> Mapping[str, int]:
        """As the protocol says."""
        return _mapping(await self._call("warm_counts", revision=revision), int)

    async def apart(self, revision: Revision) -> bool:
        """As the protocol says."""
        return bool(await self._call("apart", revision=revision.model_dump(mode="json")))

    async def prepare(self, revision: Revision) -> None:
        """As the protocol says."""
        await self._call("prepare", revision=revision.model_dump(mode="json"))

    async def renew(self, revisions: Collection[Revision]) -> tuple[str, ...]:
        """Nothing to do: it starts what it serves as its own settings say."""
        return ()

    async def warm(self, revision: Revision, parameters: str, count: int) -> None:
        """As the protocol says."""
        await self._call("warm", revision=revision.model_dump(mode="json"), parameters=parameters, count=count)

    async def follow(self, earlier: RevisionId, successor: RevisionId) -> None:
        """As the protocol says."""
        await self._call("follow", earlier=earlier, successor=successor)

    async def served(self, app: str, environment: str, serial: int) -> None:
        """As the protocol says."""
        await self._call("served", app=app, environment=environment, serial=serial)

    async def end(self, revision: RevisionId) -> None:
        """As the protocol says."""
        await self._call("end", revision=revision)

    async def direct_urls(self, hosts: tuple[str, ...]) -> Mapping[str, str]:
        """As the protocol says."""
        return _mapping(await self._call("direct_urls", hosts=hosts), str)


def _mapping(value: Any, kind: Callable[[Any], Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BackendError("modalnomad up answered what cannot be read")
    return {str(key): kind(found) for key, found in value.items()}
