"""Servers of a cluster that fail under a router at work: what is warm goes on, what sleeps is told why it cannot wake
and wakes when it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from modalnomad.kit.tasks import Tasks
from tests.support.load import Load, program
from tests.support.shaken import Shaken, shaken

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = """

@app.function(scaledown_window=600)
@modal.fastapi_endpoint()
def warm():
    return os.environ["MODALNOMAD_REPLICA"]

@app.cls(scaledown_window=2)
class Exits:
    @modal.enter()
    def enter(self):
        os._exit(3)

    @modal.asgi_app()
    def web(self):
        return web
"""
SLEEPER = """
@app.function(scaledown_window=2)
@modal.fastapi_endpoint()
def sleeper{number}():
    return os.environ["MODALNOMAD_REPLICA"]
"""
SECRET = """
@app.function(scaledown_window=2, secrets=[modal.Secret.from_name("db")])
@modal.fastapi_endpoint()
def {what}():
    return os.environ["PASSWORD"]
"""
VAULT = {"sealed": "sealed", "down": "Connection refused", "hangs": "did not answer"}
"""What becomes of it, and how that is told."""
SLEEPERS = 12
"""As many as there are tests that want one asleep: to wait until one is again takes longer."""
SOON = 0.5
"""Seconds in which a fault has been noticed."""
BOUND = 30.0
"""Seconds within which a wake that cannot be is told so."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shaken]:
    """One for all tests of this file."""
    folder = tmp_path_factory.mktemp("shaken")
    (folder / "seen").mkdir()
    text = program(folder / "seen", "v1", name="shaken", window=600) + PROGRAM
    text += "".join(SLEEPER.format(number=number) for number in range(SLEEPERS))
    text += "".join(SECRET.format(what=what) for what in VAULT)
    async with shaken(folder, text, secrets={"db": {"PASSWORD": "p"}}, kept=True) as made:
        assert (await made.ask("warm"))[0] == 200
        yield made


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """Of sleepers that nobody has woken."""
    return iter(range(SLEEPERS))


@pytest.fixture
def sleeper(numbers: Iterator[int]) -> str:
    """One that nobody has woken."""
    return f"sleeper{next(numbers)}"


def seen(world: Shaken) -> Path:
    """Where `site` notes its requests."""
    return world.cluster.folder / "seen"


# --- Nomad -------------------------------------------------------------------------------------------------------


async def test_a_dispatch_that_is_refused_for_a_moment_is_repeated(world: Shaken, sleeper: str) -> None:
    with world.faults.dispatch_refused(times=2) as fault:
        assert (await world.ask(sleeper))[0] == 200
    assert fault.met == 2
    assert await world.children(sleeper) == 1


async def test_a_dispatch_that_took_effect_and_failed_starts_once(world: Shaken, sleeper: str) -> None:
    with world.faults.dispatch_fails_after_effect() as fault:
        assert (await world.ask(sleeper))[0] == 200
    assert fault.met == 1
    assert await world.children(sleeper) == 1


async def test_a_dispatch_that_took_effect_unanswered_starts_once(world: Shaken, sleeper: str) -> None:
    with world.faults.dispatch_times_out_after_effect() as fault:
        assert (await world.ask(sleeper))[0] == 200
    assert fault.met == 1
    assert await world.children(sleeper) == 1


async def test_a_wake_without_nomad_says_so_and_works_when_it_is_back(world: Shaken, sleeper: str) -> None:
    before = len(world.router.errors)
    async with world.faults.nomad_gone():
        async with asyncio.timeout(BOUND):
            assert await world.code(sleeper) == (503, "start_failed")
        said = await world.router.told(f"shaken/{sleeper}: ", after=before)
        assert "Nomad" in said, said
        assert "Connection refused" in said, said
    assert (await world.ask(sleeper))[0] == 200


async def test_a_wake_waits_for_a_nomad_that_is_soon_back(world: Shaken, sleeper: str) -> None:
    async with Tasks("test") as tasks:
        async with world.faults.nomad_gone(SOON):
            asked = tasks.spawn(world.ask(sleeper), "asks meanwhile")
        assert (await asked)[0] == 200


async def test_a_stream_that_falls_silent_costs_no_wake(world: Shaken, sleeper: str) -> None:
    with world.faults.stream_silent():
        assert (await world.ask(sleeper))[0] == 200


async def test_a_stream_that_is_cut_costs_no_wake(world: Shaken, sleeper: str) -> None:
    await world.listens()
    async with Tasks("test") as tasks:
        asked = tasks.spawn(world.ask(sleeper), "asks meanwhile")
        assert world.faults.stream_cut() == 2
        assert (await asked)[0] == 200


async def test_a_start_that_fails_while_no_stream_opens_is_told(world: Shaken) -> None:
    await world.listens()
    before = len(world.router.errors)
    with world.faults.stream_never_opens(), world.faults.nomad_errors(r"GET /v1/jobs\?.*Status"):  # no lists either
        world.faults.stream_cut()
        await world.router.told("event stream of Job", "ended: the connection broke off", after=before)
        async with asyncio.timeout(BOUND):
            assert await world.code("exits-web") == (503, "start_failed")
        await world.router.told("shaken/Exits: the process ended with code 3", after=before)


# --- Vault -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", VAULT)
async def test_a_wake_that_needs_vault_says_what_is_wrong_with_it(world: Shaken, sleeper: str, what: str) -> None:
    before = len(world.router.errors)

    async def ask() -> None:
        async with asyncio.timeout(BOUND):
            assert await world.code(what) == (503, "start_failed")
        said = await world.router.told(f"shaken/{what}: ", after=before)
        assert "Vault" in said, said
        assert VAULT[what] in said, said
        assert (await world.ask(sleeper))[0] == 200, "what has no secret needs no Vault"

    if what == "sealed":
        async with world.faults.vault_sealed():
            await ask()
    elif what == "down":
        async with world.faults.vault_down():
            await ask()
    else:
        with world.faults.vault_hangs():
            await ask()
    assert await world.ask(what) == (200, "p")


# --- Consul ------------------------------------------------------------------------------------------------------


async def test_no_answer_of_consul_empties_what_is_served(world: Shaken) -> None:
    past = world.cluster.consul.snapshot()
    name = await world.ask("warm")
    faults = world.faults
    for fault in (faults.consul_empty(), faults.consul_errors(), faults.consul_older_index(past, times=5)):
        with fault:
            await asyncio.sleep(SOON)
            assert await world.ask("warm") == name


# --- all of them ------------------------------------------------------------------------------------------------------


async def test_what_is_warm_goes_on_without_any_server(world: Shaken) -> None:
    assert (await world.ask("site", "/?0"))[0] == 200
    async with (
        Load(lambda: world.target("site")) as load,
        world.faults.nomad_gone(),
        world.faults.consul_gone(SOON),
    ):
        with world.faults.vault_hangs():
            await load.until(100)
    found = load.verdict(seen(world))
    assert not found.lost, str(found)
    assert not found.doubled, str(found)
