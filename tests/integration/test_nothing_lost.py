"""Going down and coming up under constant load: no request is lost, none is handled twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.load import Load, Verdict, program, verdict
from tests.support.serve import Event, Serve, run_command
from tests.support.up import Up, own_home

pytestmark = pytest.mark.timeout(240)  # several deploys, each with processes of its own, beside a load

ALL = ("raw", "kept", "pooled", "stream", "websocket")
ENV = {"MODALNOMAD_ROUTER__RATE": "0"}
"""No limit: the clients of a test are quicker than 200 requests a second."""


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Where the app notes what it saw."""
    folder = tmp_path / "seen"
    folder.mkdir()
    return folder


def direct(s: Serve, site: str = "site") -> Callable[[], tuple[str, int]]:
    """The endpoint's own port."""
    return lambda: ("localhost", int(s.url(site).rpartition(":")[2]))


def shared(u: Up, site: str = "site") -> Callable[[], tuple[str, int]]:
    """The port all endpoints share, led by the host name."""
    return lambda: (str(u.endpoints[site]["url"]).removeprefix("http://").rpartition(":")[0], u.port)


def lost_nothing(found: Verdict) -> None:
    assert found.lost == [], str(found)
    assert found.doubled == [], str(found)
    assert found.refused == 0, str(found)
    assert found.answered == found.asked, str(found)


def deploy(file: Path, home: Path, *arguments: str) -> None:
    done = run_command("deploy", str(file), *arguments, home=home, env=ENV)
    assert done.returncode == 0, done.stderr


async def test_asleep_and_awake_again_and_again(tmp_path: Path, seen: Path) -> None:
    """Bursts with pauses about as long as the scaledown window: requests meet replicas that are about to leave."""
    sites = [f"site{number}" for number in range(6)]
    file = tmp_path / "counted.py"
    file.write_text(program(seen, "v1", sites=sites))
    numbers = itertools.count(1)
    with Serve([str(file)], env=ENV) as s:
        loads = [Load(direct(s, site), bursts=(0.2, 1.9, 2.6), numbers=numbers) for site in sites]
        async with contextlib.AsyncExitStack() as stack:
            for load in loads:
                await stack.enter_async_context(load)
            await asyncio.to_thread(s.wait_for, went(2 * len(sites)), 60, what="replicas that went")
    lost_nothing(verdict(loads, seen))


def went(count: int) -> Callable[[Event], bool]:
    """So many replicas ended."""
    left = iter(range(count - 1, -1, -1))
    return lambda event: event["event"] == "replica" and event["state"] == "gone" and next(left) == 0


async def test_from_three_replicas_to_one_and_back(tmp_path: Path, seen: Path) -> None:
    file = tmp_path / "counted.py"
    file.write_text(program(seen, "v1", pause=0.02, inputs=4))
    numbers = itertools.count(1)
    with Serve([str(file)], env=ENV) as s:
        few = Load(direct(s), clients=("raw", "kept", "stream"), numbers=numbers)
        many = Load(direct(s), clients=ALL * 3, bursts=(1.0, 2.5, 4.0), numbers=numbers)
        async with few, many:
            await asyncio.to_thread(s.wait_for, went(4), 60, what="replicas that went")
        started = {event["replica"] for event in s.events if event["event"] == "replica"}
    assert {name.partition(".")[0] for name in started} == {"0", "1", "2"}
    lost_nothing(verdict([few, many], seen))


async def test_reloads(tmp_path: Path, seen: Path) -> None:
    file = tmp_path / "counted.py"
    file.write_text(program(seen, "v1"))
    with Serve([str(file)], env=ENV) as s:
        async with Load(direct(s), clients=ALL * 2) as load:
            for version in ("v2", "v3", "v4"):
                await load.until(150)
                told = len(s.events)
                file.write_text(program(seen, version))
                await asyncio.to_thread(s.wait_event, "reloaded", 60, after=told)
            await load.until(150)
    assert set(load.answered.values()) == {"v1", "v2", "v3", "v4"}
    lost_nothing(load.verdict(seen))


@pytest.fixture
def running(tmp_path: Path, seen: Path) -> Iterator[tuple[Up, Path]]:
    """`up` that serves version v1 of the counting program."""
    home = own_home(tmp_path)
    file = tmp_path / "counted.py"
    file.write_text(program(seen, "v1", most=2))
    deploy(file, home)
    with Up(home=home, env=ENV) as u:
        yield u, file


async def test_redeploys_and_rollbacks(running: tuple[Up, Path], seen: Path) -> None:
    u, file = running
    numbers = itertools.count(1)
    loads = [Load(target(u), clients=ALL, numbers=numbers) for target in (direct, shared)]
    async with loads[0], loads[1]:
        for version, options in (("v2", ()), ("v3", ("--check",)), ("v4", ())):
            await loads[0].until(100)
            file.write_text(program(seen, version, most=2))
            await asyncio.to_thread(deploy, file, u.home, *options)
        for _ in range(2):
            await loads[0].until(100)
            done = await asyncio.to_thread(run_command, "app", "rollback", "counted", "v1", home=u.home, env=ENV)
            assert done.returncode == 0, done.stderr
            await loads[0].until(100)
            done = await asyncio.to_thread(run_command, "app", "rollback", "counted", "v4", home=u.home, env=ENV)
            assert done.returncode == 0, done.stderr
        await loads[0].until(100)
    answered = Counter(version for load in loads for version in load.answered.values())
    assert set(answered) == {"v1", "v2", "v3", "v4"}, answered
    lost_nothing(verdict(loads, seen))


async def test_the_router_stops(running: tuple[Up, Path], seen: Path) -> None:
    """What it took is answered; everybody else is refused, and no app ever saw them."""
    u, _ = running
    async with Load(shared(u), clients=ALL * 3, pace=0.001) as load:
        await load.until(300)
        u.interrupt()
        assert await asyncio.to_thread(u.wait) == 0
    found = load.verdict(seen, stopping=True)
    assert found.lost == [], str(found)
    assert found.doubled == [], str(found)
    assert found.refused > 0
