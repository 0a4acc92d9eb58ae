"""A reload's decisions, with a platform of fakes: what is guessed, adopted, retired, and kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modalnomad.deploy.build import Builder
from modalnomad.deploy.collect import Collector, Reference
from modalnomad.deploy.hosts import Naming
from modalnomad.deploy.report import Silent
from modalnomad.deploy.session import Platform, Session
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendError, ModalNomadError, UserCodeFailed
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Description, Endpoint, Function, Image, Manifest, Notice, Source
from modalnomad.model.replica import PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.ports.discovery import AppRecord, PublishApp, WithdrawApp
from modalnomad.ports.engine import Verdict


def describe(*tags: str, name: str = "shop", timeout: float = 300.0) -> Description:
    functions = tuple(
        Function(tag=tag, timeout=timeout, endpoints=(Endpoint(name=tag, kind="asgi_app"),)) for tag in tags
    )
    source = Source(mode="script", entry="app.py", root="/x", module="app")
    return Description(
        contract=1, sdk_version="1", python="3.11", app=Manifest(name=name, source=source, functions=functions)
    )


class World(Silent):
    """Every port at once, remembering what was done."""

    def __init__(self) -> None:
        self.described: Description | ModalNomadError = describe("f")
        self.content = "1"
        self.replicas: Cell[tuple[Replica, ...]] = Cell(())
        self.record: AppRecord | None = None
        self.prepared: set[str] = set()
        self.done: list[str] = []
        self.drained: set[str] = set()
        self.lingering = False
        """Drained replicas do not end."""
        self.start_failure: ModalNomadError | None = None
        self.hold, self.started, self.retired, self.unpacked = (asyncio.Event() for _ in range(4))
        for gate in self.gates:
            gate.set()
        self.collected = 0
        self.lines: tuple[int, ...] = ()

    @property
    def gates(self) -> tuple[asyncio.Event, ...]:
        """Closed, they hold up: a description, the starts, the engine's retirements, its preparations."""
        return self.hold, self.started, self.retired, self.unpacked

    # --- the program
    async def collect(self, on_output: Callable[[str], None] | None = None) -> Description:
        self.collected += 1
        await asyncio.sleep(0)
        await self.hold.wait()
        if isinstance(self.described, ModalNomadError):
            raise self.described
        return self.described

    async def bundles(self, description: Description, functions: tuple[Function, ...]) -> Digest:
        return Digest(self.content.rjust(64, "0"))

    async def images(self, image: Image | None, report: Callable[[str], None], source: Source) -> BuiltImage:
        return BuiltImage(digest=Digest("i" * 64), python="3.11")

    # --- engine
    async def prepare(self, revision: Revision) -> None:
        self.prepared.add(revision.id)  # whoever gives up: the engine goes on
        await self.unpacked.wait()

    async def retire_revision(self, revision: str) -> None:
        self.prepared.discard(revision)
        self.end(revision)
        await self.retired.wait()

    async def explain(self, revision: Revision) -> Verdict:
        return Verdict("yes")

    async def remarks(self, functions: Sequence[Function]) -> tuple[Notice, ...]:
        return (
            Notice(code="network", message="as on every machine"),
            *(Notice(code="no_effect", message="no limits", where=f"app.py:{line}") for line in self.lines),
        )

    # --- router
    async def warm(self, revision: Revision, key: PoolKey, count: int) -> None:
        self.done.append("warm")
        await asyncio.sleep(0)
        await self.started.wait()
        if self.start_failure is not None:
            raise self.start_failure
        self.start(revision.id, count=count)

    async def retire(self, revision: RevisionId) -> None:
        self.done.append("drain")
        self.drained.add(revision)
        if not self.lingering:
            self.end(revision)

    async def routed(self, revisions: frozenset[RevisionId]) -> None:
        return

    def start(self, *revisions: RevisionId, count: int = 1) -> None:
        keys = [ReplicaKey(PoolKey(revision), number, 1) for revision in revisions for number in range(count)]
        known = {replica.key for replica in self.replicas.value}
        fresh = tuple(Replica(key, ReplicaState.READY) for key in keys if key not in known)
        self.replicas.set((*self.replicas.value, *fresh))

    def end(self, revision: str) -> None:
        gone = tuple(
            replace(replica, state=ReplicaState.GONE) if replica.key.pool.revision == revision else replica
            for replica in self.replicas.value
        )
        self.replicas.set(gone)

    def running(self) -> set[str]:
        return {r.key.pool.revision for r in self.replicas.value if r.state is ReplicaState.READY}

    # --- discovery
    async def publish(self, change: PublishApp | WithdrawApp) -> None:
        if isinstance(change, WithdrawApp):
            self.done.append("withdraw")
            self.record = None
            return
        assert change.expected == (self.record.version if self.record else 0)
        self.record = change.record
        self.done.append("publish")

    # --- succession, secrets, report
    def apart(self, revision: Revision) -> bool:
        return False

    async def check(self, refs: Any, environment: str) -> None:
        return

    def reloaded(self, app: str, functions: tuple[str, ...], seconds: float) -> None:
        self.done.append(f"reloaded {' '.join(functions)}")

    def reload_failed(self, app: str, error: ModalNomadError) -> None:
        self.done.append(f"failed {error.message}")


class Engine:
    """The engine's `retire` is not the router's."""

    def __init__(self, world: World) -> None:
        self.prepare, self.retire, self.explain = world.prepare, world.retire_revision, world.explain
        self.remarks = world.remarks


@asynccontextmanager
async def served(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    parts: Mapping[str, Any] = {"engine": Engine(world), "discovery": world, "pools": world, "succession": world}
    builder: Any = Builder(
        engine=parts["engine"],
        secrets=world,  # type: ignore[arg-type]
        images=world.images,
        bundles=world.bundles,
        naming=Naming(),
        ephemeral=True,
    )

    async def published() -> None:
        return

    monkeypatch.setattr(Collector, "collect", lambda self, on_output=None: world.collect(on_output))
    session = Session(Reference("app.py"), Platform(builder=builder, report=world, **parts), on_published=published)
    await session.build()
    await session.publish()
    world.done.clear()
    try:
        yield session
    finally:
        for gate in world.gates:
            gate.set()
        await session.close()


async def settle(world: World, session: Session) -> None:
    """Until drained revisions are retired."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def session(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    async with served(world, tmp_path / "app.py", monkeypatch) as session:
        yield session


async def test_a_warm_pool_is_warm_again_before_the_flip(world: World, session: Session) -> None:
    old = session.current.ids
    world.start(*old)
    world.content = "2"

    await session._reload([])
    await settle(world, session)

    assert world.done.index("warm") < world.done.index("publish") < world.done.index("drain")
    assert world.done[-1] in {"reloaded f", "drain"}
    assert world.running() == session.current.ids
    assert world.prepared == session.current.ids, "the old revision was retired"


async def test_a_cold_pool_stays_cold(world: World, session: Session) -> None:
    world.content = "2"

    await session._reload([])

    assert "warm" not in world.done
    assert "reloaded f" in world.done


async def test_nothing_changed_nothing_done(world: World, session: Session) -> None:
    world.start(*session.current.ids)

    await session._reload([])

    assert world.done == []


async def test_what_the_engine_remarks_is_told_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(World, "notice", lambda self, app, notice: told.append(f"{app}: {notice.message}"))
    world.lines = (3, 9)
    async with served(world, tmp_path / "app.py", monkeypatch) as session:
        world.content = "2"
        world.lines = (4, 10)
        await session._reload([])

    assert told == ["shop: as on every machine", "shop: no limits", "shop: no limits"], "each place once, moved or not"


async def test_a_wrong_guess_ends(world: World, session: Session) -> None:
    world.start(*session.current.ids)
    world.content = "2"
    world.described = describe("f", timeout=7)
    world.hold.clear()
    reload = asyncio.ensure_future(session._reload([]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(world.running()) == 2, "the guess runs beside what is served"
    guessed = world.running() - session.current.ids
    world.hold.set()
    await reload
    await settle(world, session)

    assert world.running() == session.current.ids
    assert world.drained >= guessed, "its pool was told, so nobody takes its end for a failed start"
    assert world.prepared == session.current.ids
    assert session.current.by_tag["f"].function.timeout == 7


@pytest.mark.parametrize("broken", ["describe", "start"])
async def test_what_fails_leaves_the_old_one_and_nothing_else(world: World, session: Session, broken: str) -> None:
    old = session.current.ids
    world.start(*old)
    world.content = "2"
    if broken == "describe":
        world.described = UserCodeFailed("broken", "Traceback")
    else:
        world.start_failure = BackendError("broken")

    await session._reload([])
    await settle(world, session)

    assert [entry for entry in world.done if entry not in {"warm", "drain"}] == ["failed broken"]
    assert world.running() == old
    assert world.prepared == old
    assert session.current.ids == old


async def test_undoing_an_edit_brings_the_old_revision_back(world: World, session: Session) -> None:
    first = session.current.ids
    world.start(*first)
    for content in ("2", "1"):
        world.content = content
        await session._reload([])
        await settle(world, session)

    assert session.current.ids == first
    assert world.prepared == first
    assert world.record is not None
    assert {route.revision for route in world.record.routes} == first


async def test_an_edit_that_comes_while_the_last_one_is_swept_up_is_not_swept_up_with_it(
    world: World, session: Session
) -> None:
    """What was to be served was retired in between: each request was told that it is not prepared on this engine."""
    (old,) = session.current.ids
    world.start(old)
    world.lingering = True
    world.content = "2"
    await session._reload([])
    world.retired.clear()
    world.end(old)
    await settle(world, session)
    assert old not in world.prepared

    world.content = "3"
    world.started.clear()
    reload = asyncio.ensure_future(session._reload([]))
    await settle(world, session)
    world.retired.set()
    await settle(world, session)
    world.started.set()
    await reload

    assert world.record is not None
    assert world.prepared >= {route.revision for route in world.record.routes}


@pytest.mark.parametrize("guessed", [True, False], ids=["guess", "build"])
async def test_what_a_given_up_reload_was_just_preparing_goes_too(
    world: World, session: Session, guessed: bool
) -> None:
    world.content = "2"
    world.unpacked.clear()
    if guessed:
        world.hold.clear()
    else:
        world.described = describe("f", "g")
    reload = asyncio.ensure_future(session._reload([] if guessed else [__file__ + "/gone.py"]))
    await settle(world, session)
    assert world.prepared > session.current.ids
    reload.cancel()
    await asyncio.wait([reload])
    await settle(world, session)

    assert world.prepared == session.current.ids


async def test_a_renamed_app_leaves_its_old_name(world: World, session: Session) -> None:
    world.described = describe("f", name="other")

    await session._reload([])

    assert world.done[:2] == ["withdraw", "publish"]
    assert world.record is not None
    assert world.record.app == "other"


async def test_a_function_that_is_gone_is_drained(world: World, session: Session) -> None:
    world.described = describe("f", "g")
    await session._reload([])
    world.start(session.current.by_tag["g"].id)
    world.described = describe("f")
    await session._reload([])
    await settle(world, session)

    assert world.running() == set()
    assert world.prepared == session.current.ids


async def test_a_file_with_a_syntax_error_is_not_started_on_a_guess(
    world: World, session: Session, tmp_path: Path
) -> None:
    world.start(*session.current.ids)
    world.content = "2"
    world.described = UserCodeFailed("broken", "Traceback")
    file = tmp_path / "bad.py"
    file.write_text("def f(:\n")

    await session._reload([str(file)])

    assert world.done == ["failed broken"]
