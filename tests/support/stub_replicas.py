"""Small replicas on real Unix sockets, and the engine that starts them: for tests of the router's decisions.

They answer `ready` and `drain` as a runner does, and any other request with 200 and their own name once the engine's
`hold` is not set.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import select
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modalnomad_sdk import contract

from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendUnreachable, NotFound
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Endpoint, Function, Parameter, Scaling, Source
from modalnomad.model.replica import Address, Failure, Replica, ReplicaKey, ReplicaState, TcpAddress, UnixAddress
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import Route
from modalnomad.router.table import Match
from tests.support.ports import stop_listening

PLATFORM_KEY = b"k" * 32
LEAVE_TIME = 1.0
"""Seconds one that leaves has for those who are there, as a runner has."""


def make_match(
    *,
    tag: str = "f",
    host: str = "app-f.localhost",
    version: int = 1,
    parameters: tuple[Parameter, ...] = (),
    startup_timeout: float | None = None,
    single_use: bool = False,
    requires_proxy_auth: bool = False,
    environment: str = "main",
    **scaling: float | None,
) -> Match:
    """A route and its revision; another `version` is another revision."""
    endpoint = Endpoint(name=tag, kind="asgi_app", requires_proxy_auth=requires_proxy_auth)
    function = Function(
        tag=tag,
        is_class=bool(parameters),
        endpoints=(endpoint,),
        parameters=parameters,
        scaling=Scaling.model_validate(scaling),
        startup_timeout=startup_timeout,
        single_use=single_use,
    )
    revision = Revision.make(
        app="app",
        environment=environment,
        function=function,
        source=Source(mode="script", entry="app.py", root="", module="app"),
        bundle=Digest(f"{version:064d}"),
        image=BuiltImage(digest=Digest("0" * 64), python="3.11"),
    )
    route = Route(
        hosts=(host,), environment=environment, app="app", endpoint=endpoint, revision=revision.id, ephemeral=True
    )
    return Match(route, revision)


@dataclass(eq=False)
class StubReplica:
    """Answers ready and drain as a runner does; `running` and `idle_for` are what the test says."""

    key: ReplicaKey
    path: Path
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = ""
    """What it says it is; empty: the truth."""
    running: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    server: asyncio.Server | None = None
    closed: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Requests are answered."""
    deaf: bool = False
    """A drain is not answered."""
    busy: bool = False
    """Requests are refused, as by a runner that others fill too."""
    sock: socket.socket | None = None
    """Bound to its TCP port; None: it listens on `path`."""
    most: int = 0
    """Requests it had at once, at most."""
    tasks: Tasks = field(default_factory=lambda: Tasks("stub"))

    async def listen(self) -> None:
        """From now on connections are taken."""
        self.tasks = Tasks("stub")
        self.closed = False
        if self.sock is not None:
            self.server = await asyncio.start_server(self._accepted, sock=self.sock)
        else:
            self.server = await asyncio.start_unix_server(self._accepted, self.path)

    def bind(self) -> TcpAddress:
        """Have a TCP port instead, on which connections are refused until it listens."""
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        return TcpAddress("127.0.0.1", self.sock.getsockname()[1])

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:  # it was in the backlog
            writer.close()
            return
        task = self.tasks.spawn(self._serve(reader, writer), "connection")
        # Not a `finally` in the task: one that is cancelled before its first step never gets there.
        task.add_done_callback(lambda _: writer.close())

    async def leave(self) -> None:
        """End as a runner does that was drained: who has connected by now is answered, with a refusal, not cut off."""
        self.busy = True
        if self.sock is None:
            self.path.unlink(missing_ok=True)  # nobody connects from here on
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIME):
                while await self._someone():  # noqa: ASYNC110 - bounded
                    await asyncio.sleep(0.005)
        await self.close()

    async def _someone(self) -> bool:
        """Has somebody connected who is not answered yet?"""
        waits = self._waits()
        for _ in range(5):  # more turns than a connection takes from the backlog to its task
            await asyncio.sleep(0)
        return waits or self.tasks.running > 0

    def _waits(self) -> bool:
        """Is somebody not even accepted?"""
        sockets = self.server.sockets if self.server is not None else ()
        return bool(select.select(sockets, (), (), 0)[0])

    async def close(self) -> None:
        """Refuse connections, as when the process is gone. Whoever does it may be cancelled: another one ends it."""
        self.closed = True
        if self.server is not None:
            await stop_listening(self.server)
            self.path.unlink(missing_ok=True)
        await self.tasks.close()
        if self.sock is not None:
            self.sock.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split("\r\n", 1)[0].split(" ")
            ticket = hmac.new(PLATFORM_KEY, self.key.pool.revision.encode(), hashlib.sha256).hexdigest()
            status, body, busy = 403, b"", self.busy and contract.PREFIX not in path
            if f"{contract.HEADER_TICKET}: {ticket}\r\n" in head:
                self.asked.append((method, path))
                status, body = await self._answer(path)
            name = self.name or f"{self.key.pool} {self.key.name}"
            lines = (f"HTTP/1.1 {status} X", f"{contract.HEADER_REPLICA}: {name}", f"content-length: {len(body)}")
            refusal = (f"{contract.HEADER_BUSY}: 1",) if busy else ()
            writer.write("\r\n".join((*lines, *refusal, "connection: close", "", "")).encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async def _answer(self, path: str) -> tuple[int, bytes]:
        if path.startswith(contract.READY_PATH):
            await self.is_ready.wait()
            return 200, b""
        if not path.startswith(contract.DRAIN_PATH) and self.busy:
            return 503, b""
        if not path.startswith(contract.DRAIN_PATH):
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self.open.wait()
            finally:
                self.running -= 1
            return 200, self.key.name.encode()
        if self.deaf:
            await asyncio.Event().wait()
        if "force=1" in path:
            self.busy = True
            while self.running:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        if self.running:
            return 409, json.dumps({"running": self.running, "idle_for": 0.0}).encode()
        self.drained.set()
        return 202, b""


class StubEngine:
    """A Starter. `on_start` decides what becomes of a start: by default a replica that is ready at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._view: Cell[tuple[Replica, ...]] = Cell(())
        self.stubs: dict[ReplicaKey, StubReplica] = {}
        self.started: list[ReplicaKey] = []
        self.killed: list[ReplicaKey] = []
        self.on_start: Callable[[StubReplica], None] = lambda stub: stub.is_ready.set()
        self.failure: Failure | None = None
        """Every start ends with it."""
        self.unprepared = False
        self.tcp = False
        """Replicas have TCP ports."""
        self.late = False
        """They do not listen by themselves."""
        self.kill_fails = 0
        """So many times."""
        self.open = asyncio.Event()
        """Cleared: requests are held back."""
        self.open.set()
        self.obedient = False
        """Drained replicas end."""
        self.staged = False
        """Starts are a deploy's."""
        self.reasons: dict[ReplicaKey, str] = {}
        self.woken_by: dict[ReplicaKey, str] = {}
        self._tasks = Tasks("stub engine")

    async def start(self, key: ReplicaKey, reason: str, *, request_id: str = "") -> None:
        """See Starter."""
        if key in self.stubs:
            return
        if self.unprepared:
            raise NotFound(f"revision {key.pool.revision} is not prepared")
        self.started.append(key)
        self.reasons[key] = reason
        self.woken_by[key] = request_id
        stub = self.stubs[key] = StubReplica(key, self._folder / f"{len(self.stubs)}.sock", open=self.open)
        if self.failure is not None:
            self._show(Replica(key, ReplicaState.FAILED, failure=self.failure))
            return
        address: Address = UnixAddress(str(stub.path))
        if self.tcp:
            address = stub.bind()
        if not self.late:
            await stub.listen()
        self.on_start(stub)
        if self.obedient:
            self._tasks.spawn(self._obey(stub), f"obey {key}")
        self._show(Replica(key, ReplicaState.STARTING, address, staged=self.staged))

    async def watch(self) -> AsyncIterator[tuple[Replica, ...]]:
        """See Starter."""
        async for view in self._view.watch():
            yield view

    async def kill(self, key: ReplicaKey) -> None:
        """See Starter."""
        self.killed.append(key)
        if self.kill_fails:
            self.kill_fails -= 1
            raise BackendUnreachable("the engine was asked to end it and answered 500")
        await self.end(key)

    async def end(self, key: ReplicaKey, failure: Failure | None = None) -> None:
        """The process ends."""
        await self.stubs[key].close()
        state = ReplicaState.GONE if failure is None else ReplicaState.FAILED
        found = next(replica for replica in self._view.value if replica.key == key)
        self._show(replace(found, state=state, failure=failure))

    async def move(self, key: ReplicaKey) -> Address:
        """Its machine is lost, and before anybody sees that it runs on another one, at the address returned."""
        await self.stubs[key].close()
        stub = self.stubs[key] = StubReplica(key, self._folder / f"{key.name}-moved.sock", open=self.open)
        await stub.listen()
        self.on_start(stub)
        if self.obedient:
            self._tasks.spawn(self._obey(stub), f"obey {key}")
        address = UnixAddress(str(stub.path))
        self._show(Replica(key, ReplicaState.STARTING, address))
        return address

    def wants_replaced(self, key: ReplicaKey, why: str) -> None:
        """Its node is drained, say; empty: not any more."""
        found = next(replica for replica in self._view.value if replica.key == key)
        self._show(replace(found, leaving=why))

    async def begin(self, key: ReplicaKey, *, staged: bool = False) -> StubReplica:
        """As when some other router (`staged`: a deploy) had asked for it, or a child got its place long after its
        start had failed."""
        self.stubs.pop(key, None)
        failure, self.failure = self.failure, None
        self.staged = staged
        await self.start(key, "another router")
        self.failure, self.staged = failure, False
        return self.stubs[key]

    async def _obey(self, stub: StubReplica) -> None:
        await stub.drained.wait()
        await stub.leave()
        await self.end(stub.key)

    async def close(self) -> None:
        """All processes end."""
        await self._tasks.close()
        for stub in self.stubs.values():
            await stub.close()

    def _show(self, replica: Replica) -> None:
        others = tuple(other for other in self._view.value if other.key != replica.key)
        self._view.set((*others, replica))


async def ask(
    address: Address, method: bytes, path: bytes, headers: Sequence[tuple[bytes, bytes]], timeout: float | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """An Asker as plain as can be."""
    assert isinstance(address, UnixAddress)
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_unix_connection(address.path)
        try:
            lines = [b"%b %b HTTP/1.1" % (method, path), b"host: x", *(b"%b: %b" % field for field in headers)]
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
            try:
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
            if not head:
                raise ConnectionResetError("closed without an answer")
            first, *rest = head.split(b"\r\n")
            fields = [(name, value) for name, _, value in (line.partition(b": ") for line in rest)]
            return int(first.split(b" ")[1]), fields, body
        finally:
            writer.close()
