"""The order in which a new version takes over, and what a failure or an interrupt leaves at each step."""

from __future__ import annotations

import asyncio

import pytest

from modalnomad.deploy.apply import Applying, Change, default_parameters
from modalnomad.deploy.report import Silent
from modalnomad.deploy.strategy import Strategy
from modalnomad.kit.tasks import Tasks
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendConflict, BackendUnreachable, ModalNomadError, UserCodeFailed
from modalnomad.model.manifest import Function, Notice, Parameter
from modalnomad.model.revision import Revision
from modalnomad.router.parameters import pool_key
from modalnomad.router.table import Match
from tests.support.stages import FakeDiscovery, FakeStage, record, revision, version

OLD, NEW = revision("f", "1"), revision("f", "2")
BEFORE = record(version(1, OLD))


class Notices(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, app: str, notice: Notice) -> None:
        self.said.append(notice.message)


class World:
    """A platform with one App, in which `OLD` is served unless told otherwise."""

    def __init__(self, before: AppRecord | None = BEFORE, warm: int = 0) -> None:
        self.done: list[str] = []
        self.before = before
        self.discovery = FakeDiscovery(before, self.done)
        self.stage = FakeStage(self.done, {OLD.id: {"": warm}} if warm else {})
        self.report = Notices()
        self.now = 0.0

    def applying(
        self,
        *revisions: Revision,
        strategy: Strategy = Strategy.ROLLING,
        check: bool = False,
        running: bool = True,
    ) -> Applying:
        versions = (*(self.before.versions if self.before else ()), version(2, *(revisions or (NEW,))))
        after = record(*versions, serial=(self.before.serial if self.before else 0) + 1)
        change = Change(before=self.before, after=after, strategy=strategy, check=check)
        stage = self.stage if running else None
        return Applying(change, self.discovery, stage, self.report, clock=lambda: self.now)


async def test_what_was_warm_is_warm_before_anybody_is_sent_there() -> None:
    world = World(warm=3)
    await world.applying().run()
    assert world.done == ["prepare f", "warm f 3", "publish", "served 2"]


async def test_what_slept_is_published_asleep() -> None:
    world = World()
    await world.applying().run()
    assert world.done == ["prepare f", "publish", "served 2"]


async def test_without_a_platform_only_the_record_is_written() -> None:
    world = World()
    applying = world.applying(running=False)
    await applying.run()
    assert world.done == ["publish"]
    assert applying.published


async def test_check_starts_one_of_each_new_revision_and_no_more_than_needed() -> None:
    world = World(warm=2)
    await world.applying(NEW, revision("g", "2"), check=True).run()
    assert world.done == ["prepare f", "prepare g", "warm f 2", "warm g 1", "publish", "served 2"]


async def test_what_was_warm_first_is_warm_again_when_the_last_one_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have gone idle and cold meanwhile, and nobody is to be sent to a cold one."""
    world = World()
    warm = world.stage.warm

    async def slowly(revision: Revision, parameters: str, count: int) -> None:
        await warm(revision, parameters, count)
        world.now += 90 if revision.function.tag == "g" else 2

    monkeypatch.setattr(world.stage, "warm", slowly)
    await world.applying(NEW, revision("g", "2"), check=True).run()
    assert world.done == ["prepare f", "prepare g", *["warm f 1", "warm g 1"] * 2, "publish", "served 2"]


async def test_check_leaves_alone_what_did_not_change() -> None:
    world = World()
    await world.applying(OLD, revision("g", "2"), check=True).run()
    assert world.done == ["prepare g", "warm g 1", "publish", "served 2"]


async def test_what_cannot_be_checked_is_said() -> None:
    world = World()
    scheduled = revision("tick", endpoints=())
    asks = revision("Server", parameters=(Parameter(name="root", type="str"),))
    await world.applying(scheduled, asks, check=True).run()
    assert world.report.said == [
        "tick is not checked: it has no web endpoint",
        "Server is not checked: its class parameters have no default (root)",
    ]
    assert not [step for step in world.done if step.startswith("warm")]


async def test_recreate_ends_the_old_ones_after_the_flip() -> None:
    world = World(warm=3)
    await world.applying(strategy=Strategy.RECREATE).run()
    assert world.done == ["prepare f", "publish", "served 2", "end"]


async def test_where_two_cannot_live_at_once_the_flip_comes_first() -> None:
    world = World(warm=1)
    world.stage.apart_tags = {"f"}
    await world.applying(check=True).run()
    assert world.done == ["prepare f", "follow", "publish", "served 2"]
    assert "cannot run beside" in world.report.said[0]


async def test_the_first_version_has_nobody_to_live_beside() -> None:
    world = World(before=None)
    world.stage.apart_tags = {"f"}
    await world.applying(check=True).run()
    assert world.done == ["prepare f", "warm f 1", "publish", "served 1"]


async def test_pools_of_parameters_that_are_declared_otherwise_now_stay_cold() -> None:
    world = World()
    world.stage.counts = {OLD.id: {'{"a":1}': 2}}
    await world.applying(revision("f", "2", parameters=(Parameter(name="b", type="int"),))).run()
    assert world.done == ["prepare f", "publish", "served 2"]


@pytest.mark.parametrize("step", ["prepare", "warm", "follow"])
async def test_a_failure_before_the_flip_leaves_the_old_version(step: str) -> None:
    world = World(warm=1)
    world.stage.apart_tags = {"f"} if step == "follow" else set()
    world.stage.fail[step] = UserCodeFailed("shop/f does not start: boom", "Traceback …")
    applying = world.applying()
    with pytest.raises(UserCodeFailed) as caught:
        await applying.run()
    assert (world.discovery.present, applying.published) == (BEFORE, False)
    assert caught.value.output == "Traceback …"
    assert "nothing was changed: App shop stays v1" in str(caught.value.hint)


async def test_somebody_else_was_first() -> None:
    world = World()
    world.discovery.failure = BackendConflict("serial 7", "look")
    applying = world.applying()
    with pytest.raises(BackendConflict, match="serial 7") as caught:
        await applying.run()
    assert (world.discovery.present, applying.published) == (BEFORE, False)
    assert caught.value.hint == "look; nothing was changed: App shop stays v1"


@pytest.mark.parametrize(("step", "holds"), [("prepare", False), ("warm", False), ("served", True), ("end", True)])
async def test_a_platform_that_goes_away_is_told_with_what_holds(step: str, holds: bool) -> None:
    world = World(warm=1)
    world.stage.fail[step] = BackendUnreachable("it was killed", "look at its log")
    applying = world.applying(strategy=Strategy.RECREATE if step == "end" else Strategy.ROLLING)
    with pytest.raises(BackendUnreachable, match="it was killed") as caught:
        await applying.run()
    assert applying.published is holds
    assert (world.discovery.present is BEFORE) is not holds
    said = "App shop is stored as v2" if holds else "nothing was changed: App shop stays v1"
    assert said in str(caught.value.hint)


@pytest.mark.parametrize(("step", "holds"), [("prepare", False), ("warm", False), ("served", True), ("end", True)])
async def test_an_interrupt_leaves_the_old_version_or_the_new_one(step: str, holds: bool) -> None:
    world = World(warm=1)
    world.stage.hold = step
    applying = world.applying(strategy=Strategy.RECREATE if step == "end" else Strategy.ROLLING)
    async with Tasks("test") as tasks:
        work = tasks.spawn(applying.run(), "apply")
        await world.stage.reached.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert applying.published is holds
    assert (world.discovery.present is BEFORE) is not holds


@pytest.mark.parametrize("failure", [None, BackendConflict("somebody else")])
async def test_an_interrupt_while_it_is_written_waits_for_how_that_ends(failure: ModalNomadError | None) -> None:
    world = World()
    world.discovery.go_on.clear()
    world.discovery.failure = failure
    applying = world.applying()
    async with Tasks("test") as tasks:
        work = tasks.spawn(applying.run(), "apply")
        await world.discovery.writing.wait()
        work.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        work.cancel()
        world.discovery.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert applying.published is (failure is None)
    assert "served 2" not in world.done


@pytest.mark.parametrize(
    "parameters",
    [
        (),
        (Parameter(name="b", type="str", has_default=True, default="ü"),),
        (
            Parameter(name="b", type="int", has_default=True, default=3),
            Parameter(name="a", type="bytes", has_default=True, default={"bytes": "AA=="}),
        ),
    ],
)
def test_the_pool_that_is_checked_is_the_one_of_a_plain_request(parameters: tuple[Parameter, ...]) -> None:
    checked = revision("C", parameters=parameters)
    match = Match(version(1, checked).routes[0], checked)
    assert default_parameters(checked.function) == pool_key(match, b"").parameters


def test_a_parameter_without_default_has_no_such_pool() -> None:
    assert default_parameters(Function(tag="f", parameters=(Parameter(name="a", type="int"),))) is None
