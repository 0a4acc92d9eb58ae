"""Engines under test: programs made into revisions, replicas spoken to over their sockets.

async with embedded(home) as h:
    revision = await h.revision(PROGRAM, "site")
    key = await h.start(revision)
    answer = await h.ask(key, "/")
"""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from modalnomad_sdk import contract

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.engine import EmbeddedEngine
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.embedded.template import Template
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Function, Source
from modalnomad.model.replica import Address, PoolKey, Replica, ReplicaKey, ReplicaState, UnixAddress
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.ports.artifacts import Artifacts
from modalnomad.ports.engine import Engine
from modalnomad.ports.secrets import Secrets
from modalnomad.render.environment import ticket
from modalnomad.settings import EmbeddedSettings, ScalingSettings
from tests.support.runner import Answer, head

PLATFORM_KEY = b"k" * 32
IMAGE = Digest("1" * 64)
PATIENCE = 30.0
"""Seconds after which a test has failed."""
NEVER = 3600.0
"""Seconds; no test takes so long."""

HELLO = """
import modal
app = modal.App("app")

@app.function()
@modal.asgi_app()
def site():
    async def web(scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer(scope["path"])})
    return web

def answer(path):
    return b"hello " + path.encode()
"""


def program(answer: str, before: str = "") -> str:
    """HELLO with another body of `answer(path)`, which returns bytes, and something to do at import."""
    return (
        before
        + HELLO[: HELLO.index("def answer")]
        + "def answer(path):\n"
        + "".join(f"    {line}\n" for line in answer.strip().splitlines())
    )


class ThisEnvironment:
    """The image store of tests: one image, the environment that runs them."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or Path(sys.prefix)

    def path(self, digest: str) -> Path | None:
        return self._path if digest == IMAGE else None


def archive(files: Mapping[str, str]) -> bytes:
    """A bundle as deploy makes it."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, text in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(text.encode()), 0o644, 315532800
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@dataclass
class Harness:
    """An engine with what it needs around it."""

    engine: Engine
    artifacts: Artifacts
    secrets: Secrets
    home: Path
    environment: str = "main"
    """Of its Apps and secrets."""
    warm: bool = False
    """Replicas are forked from a template, which is waited for before the first of them."""

    async def revision(
        self, text: str, tag: str = "site", *, image: BuiltImage | None = None, prepare: bool = True, **function: Any
    ) -> Revision:
        """The program as a prepared revision; `function`: fields of the manifest's Function."""
        with tempfile.NamedTemporaryFile(prefix="bundle-") as file:
            file.write(archive({"prog.py": text}))
            file.flush()
            bundle = await self.artifacts.put(Path(file.name))
        revision = Revision.make(
            app="app",
            environment=self.environment,
            function=Function(tag=tag, **function),
            source=Source(mode="script", entry="prog.py", root="/nowhere", module="prog"),
            bundle=bundle,
            image=image or BuiltImage(digest=IMAGE, python=f"{sys.version_info[0]}.{sys.version_info[1]}"),
        )
        if prepare:
            await self.engine.prepare(revision)
        if prepare and self.warm:
            await self.warm_up(revision)
        return revision

    async def warm_up(self, revision: Revision) -> Template:
        """Have a template of the revision's image, warm."""
        assert isinstance(self.engine, EmbeddedEngine)
        prepared, tools = self.engine._prepared[revision.id], self.engine._tools
        assert tools is not None
        assert tools.templates is not None
        templates = tools.templates
        templates.used(prepared.revision, prepared.image)
        template = await eventually(lambda: templates.ready(prepared.image))
        assert isinstance(template, Template)
        return template

    async def start(self, revision: Revision, number: int = 0, epoch: int = 1, parameters: str = "") -> ReplicaKey:
        """Start one replica."""
        key = ReplicaKey(PoolKey(revision.id, parameters), number, epoch)
        await self.engine.start(key, "a test")
        return key

    async def started(self, revision: Revision, number: int = 0) -> ReplicaKey:
        """Start one and wait until it is ready."""
        key = await self.start(revision, number)
        answer = await self.ask(key, contract.READY_PATH)
        assert answer.status == 200, answer
        return key

    async def snapshot(self) -> tuple[Replica, ...]:
        """All replicas now."""
        async with asyncio.timeout(PATIENCE):
            async for replicas in self.engine.watch():
                return replicas
        raise AssertionError("watch ended")

    async def replica(self, key: ReplicaKey) -> Replica:
        """One replica now."""
        (found,) = [replica for replica in await self.snapshot() if replica.key == key]
        return found

    async def until(self, key: ReplicaKey, *states: ReplicaState) -> Replica:
        """Wait until a replica is in one of these states."""
        async with asyncio.timeout(PATIENCE):
            async for replicas in self.engine.watch():
                for replica in replicas:
                    if replica.key == key and replica.state in states:
                        return replica
        raise AssertionError("watch ended")

    async def address(self, key: ReplicaKey) -> Address:
        """Where it is to listen. ConnectionError when it ended before that was known."""
        async with asyncio.timeout(PATIENCE):
            async for replicas in self.engine.watch():
                for replica in replicas:
                    if replica.key == key and replica.address is not None:
                        return replica.address
                    if replica.key == key and replica.state in (ReplicaState.FAILED, ReplicaState.GONE):
                        raise ConnectionError(f"it ended: {replica}")
        raise AssertionError("watch ended")

    async def _connect(self, key: ReplicaKey) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As a router does: an address may be known before anything listens there."""
        while True:
            address = await self.address(key)
            if isinstance(address, UnixAddress):
                return await asyncio.open_unix_connection(address.path)
            try:
                return await asyncio.open_connection(address.host, address.port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)

    async def ask(self, key: ReplicaKey, path: str = "/", method: str = "GET", **fields: str) -> Answer:
        """One request with the revision's ticket. ConnectionError when the replica goes first."""
        async with asyncio.timeout(PATIENCE):
            reader, writer = await self._connect(key)
            try:
                writer.write(head(path, method, headers=fields, ticket=ticket(PLATFORM_KEY, key.pool.revision)))
                raw = await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()
        return _parse(raw)


def _parse(raw: bytes) -> Answer:
    if not raw:
        raise ConnectionError("closed without an answer")
    top, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        pieces, rest = [], body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            pieces.append(rest[:length])
            rest = rest[length + 2 :] if length else b""
        body = b"".join(pieces)
    return Answer(int(status.split(" ")[1]), headers, body)


EngineFactory = Callable[..., Any]


@asynccontextmanager
async def embedded(
    home: Path,
    settings: EmbeddedSettings | None = None,
    scaling: ScalingSettings | None = None,
    *,
    templates: bool = False,
    warm: bool = False,
    **options: Any,
) -> AsyncIterator[Harness]:
    """The embedded engine on a home of its own; closed at the end.

    Without templates and compilers unless told otherwise: what runs in a test and what is open shall be what the test
    started. `templates`: with them, without delay; `warm`: and waited for, see `Harness.warm`. `compile_after`: seconds
    after which a bundle that was prepared is compiled.
    """
    settings = (settings or EmbeddedSettings()).model_copy(update={"templates": templates or warm})
    options.setdefault("template_after", 0.0)
    options.setdefault("compile_after", NEVER)
    artifacts, secrets = EmbeddedArtifacts(home), EmbeddedSecrets(home)
    engine = EmbeddedEngine(
        home=home,
        settings=settings or EmbeddedSettings(),
        scaling=scaling or ScalingSettings(),
        secrets=secrets,
        images=options.pop("images", ThisEnvironment()),
        artifacts=artifacts,
        platform_key=PLATFORM_KEY,
        **options,
    )
    try:
        yield Harness(engine, artifacts, secrets, home, warm=warm)
    finally:
        async with asyncio.timeout(PATIENCE):
            await engine.close()


async def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """The first true value of `condition()`, for what no event tells."""
    async with asyncio.timeout(PATIENCE):
        while not (value := condition()):  # noqa: ASYNC110 - processes and files of others have no events
            await asyncio.sleep(0.01)
        return value


async def within(awaitable: Awaitable[Any], seconds: float = PATIENCE) -> Any:
    """Its value, or TimeoutError."""
    async with asyncio.timeout(seconds):
        return await awaitable


def alive(pid: int) -> bool:
    """Does this process run (a zombie does not)?"""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_in(folder: Path) -> list[int]:
    """Processes that work in a folder or were started with a bundle there."""
    mark = f"{folder}/"
    found = []
    for process in psutil.process_iter():
        try:
            bundle = process.environ().get(contract.ENV_BUNDLE, "")
            if process.cwd().startswith(mark) or bundle.startswith(mark):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def open_descriptors() -> dict[str, str]:
    """Of this process: number → what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def opened_since(before: Mapping[str, str]) -> dict[str, str]:
    """What of `open_descriptors` was not there then. What is no longer there is nobody's fault."""
    return dict(open_descriptors().items() - before.items())


def revision_id(text: str) -> RevisionId:
    """One that nothing was prepared for."""
    return RevisionId(text.ljust(32, "0"))
