"""Replicas of a cluster that misbehave: what callers see, what the router's log says, and that nothing stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import psutil
import pytest
import pytest_asyncio

from modalnomad.kit.tasks import Tasks
from tests.support.shaken import Shaken, shaken, until, until_gone

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = """
import asyncio, os, signal, subprocess, sys, time
import modal

app = modal.App("shaken")

async def answer(send, body, more=False):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": more})

async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    path = scope["path"]
    if path == "/die":
        os._exit(9)
    if path == "/half":
        await answer(send, b"half of it", True)
        await asyncio.sleep(0.2)
        os._exit(9)
    if path == "/hang":
        print("hangs", flush=True)
        await asyncio.sleep(600)
    if path == "/stay":
        await answer(send, b"here", True)
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    if path == "/block":
        time.sleep(3)
    if path == "/raise":
        raise RuntimeError("something the caller must not read")
    if path == "/flood":
        for number in range(60_000):
            print(f"line {number} " + "x" * 80)
        sys.stdout.buffer.write(b"\\xff\\xfe not text\\n")
        print("the last line", flush=True)
    if path == "/fork":
        options = {"start_new_session": True, "close_fds": False}
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        between = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {deaf!r}], " \\
            "start_new_session=True, close_fds=False).pid, flush=True)"
        child = subprocess.Popen([sys.executable, "-c", between], stdout=subprocess.PIPE, text=True, **options)
        orphan = int(child.stdout.readline())
        child.wait()
        other = subprocess.Popen([sys.executable, "-c", deaf], **options).pid
        return await answer(send, f"{orphan} {other}".encode())
    await answer(send, os.environ["MODALNOMAD_REPLICA"].encode())

@app.function(scaledown_window=600)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def f():
    return web

@app.function(scaledown_window=2)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def forks():
    return web

@app.function(scaledown_window=600)
@modal.asgi_app()
def floods():
    return web

@app.function(scaledown_window=600)
@modal.asgi_app()
def deaf():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return web

@app.cls(scaledown_window=2)
class Exits:
    @modal.enter()
    def enter(self):
        print("leaving already", flush=True)
        os._exit(3)

    @modal.asgi_app()
    def web(self):
        return web

@app.function(scaledown_window=2)
@modal.web_server(8000, startup_timeout=1)
def closed():
    print("not starting anything", flush=True)

@app.cls(scaledown_window=2, startup_timeout=1)
class Hangs:
    @modal.enter()
    def enter(self):
        print("enters", flush=True)
        time.sleep(600)

    @modal.asgi_app()
    def web(self):
        return web

@app.cls(scaledown_window=2)
class Slow:
    @modal.enter()
    def enter(self):
        print("enters", flush=True)
        time.sleep(600)

    @modal.asgi_app()
    def web(self):
        return web

@app.cls(scaledown_window=2)
@modal.concurrent(max_inputs=10)
class Lingers:
    @modal.asgi_app()
    def web(self):
        return web

    @modal.exit()
    def leave(self):
        print("leaving slowly", flush=True)
        time.sleep(600)
"""
SETTINGS = {"MODALNOMAD_NOMAD__GRACE_PERIOD": "1", "MODALNOMAD_SCALING__OVERSTAY": "3"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shaken]:
    """One for all tests of this file."""
    async with shaken(tmp_path_factory.mktemp("shaken"), PROGRAM, env=SETTINGS) as made:
        yield made


@asynccontextmanager
async def kept(world: Shaken, function: str, endpoint: str) -> AsyncIterator[list[psutil.Process]]:
    """The processes of its only replica, which has a request within the block: it idles out afterwards."""
    headers = {"Host": world.host(endpoint)}
    async with aiohttp.request("GET", f"{world.router.url}/stay", headers=headers) as answer:
        await answer.content.readany()
        await world.count(function, 1)  # an earlier one may be on its way out
        yield await world.family(function)


async def test_one_that_exits_at_its_start_is_told_with_code_and_last_lines(world: Shaken) -> None:
    """It is told, not found by looking."""
    await world.listens()
    before = len(world.router.errors)

    with world.faults.nomad_errors(r"GET /v1/(jobs|allocations|evaluations)(\?|$)"):
        assert await world.code("exits-web") == (503, "start_failed")
        text = await world.router.told("shaken/Exits: ", after=before)
    assert "ended with code 3" in text, text
    await world.router.told("leaving already", after=before)


async def test_a_server_that_never_opens_its_port(world: Shaken) -> None:
    before = len(world.router.errors)

    assert await world.code("closed") == (503, "start_failed")

    text = await world.router.told("shaken/closed: ", after=before)
    assert "never accepted a connection on its port" in text, text


async def test_one_that_is_never_ready_is_killed(world: Shaken) -> None:
    assert await world.code("hangs-web") == (504, "startup_timeout")
    await world.asleep("Hangs")


async def test_killed_while_it_starts(world: Shaken) -> None:
    before = len(world.router.errors)
    async with Tasks("test") as tasks:
        asking = tasks.spawn(world.code("slow-web"), "asks")
        await world.count("Slow", 1)
        (alloc,) = await world.allocations("Slow")
        await until(lambda: "enters" in world.output(alloc))
        (await world.family("Slow"))[-1].kill()
        assert await asking == (503, "start_failed")
    text = await world.router.told("shaken/Slow: ", after=before)
    assert "SIGKILL" in text, text


async def test_killed_while_idle_is_not_visible(world: Shaken) -> None:
    _, replica = await world.ask("f", "/")
    processes = await world.family("f")
    for process in processes:
        process.kill()
    await until_gone(processes)  # who is only dying may still take a connection, and is gone once the request is sent

    status, other = await world.ask("f", "/")
    assert (status, other == replica) == (200, False)


async def test_an_end_in_the_middle_of_a_request(world: Shaken) -> None:
    assert await world.code("f", "/die") == (502, "replica_gone")
    await world.asleep("f")
    with pytest.raises(aiohttp.ClientPayloadError):
        await world.ask("f", "/half")
    await world.asleep("f")
    assert (await world.ask("f"))[0] == 200


async def test_its_outermost_process_killed_in_the_middle_of_a_request(world: Shaken) -> None:
    await world.ask("f")
    processes = await world.family("f")
    (alloc,) = await world.allocations("f")
    async with Tasks("test") as tasks:
        asking = tasks.spawn(world.ask("f", "/hang", method="POST"), "asks")
        await until(lambda: "hangs" in world.output(alloc))
        processes[0].kill()
        status, problem = await asking
        assert (status, problem["code"]) == (502, "replica_gone")
    await until_gone(processes)


async def test_an_app_that_raises_goes_on(world: Shaken) -> None:
    _, name = await world.ask("f")
    status, text = await world.ask("f", "/raise")
    assert status == 500
    assert "must not read" not in str(text)
    assert await world.ask("f") == (200, name)


async def test_one_whose_loop_is_blocked_is_not_replaced_for_its_failing_check(world: Shaken) -> None:
    _, name = await world.ask("f")
    async with Tasks("test") as tasks:
        blocked = tasks.spawn(world.ask("f", "/block"), "blocks")
        await asyncio.sleep(1.5)  # the check has failed by then
        meanwhile = tasks.spawn(world.ask("f"), "asks meanwhile")
        assert await blocked == await meanwhile == (200, name)


async def test_what_it_started_ends_with_it(world: Shaken) -> None:
    async with kept(world, "forks", "forks") as before:
        assert (await world.ask("forks", "/fork"))[0] == 200
        after = await world.family("forks")
    assert len(after) == len(before) + 2
    await world.asleep("forks")
    await until_gone(after)


async def test_a_flood_of_output_costs_nothing_but_its_beginning(world: Shaken) -> None:
    assert (await world.ask("floods", "/flood"))[0] == 200

    lines = await world.cluster.logged("the last line", "shaken", "--function", "floods")
    assert "the last line" in lines[-3:]
    assert any("not text" in line for line in lines[-5:])


async def test_one_that_ignores_sigterm_ends_all_the_same(world: Shaken) -> None:
    await world.ask("deaf")
    processes = await world.family("deaf")
    (listed,) = [
        record
        for record in (await world.cluster.cli("container", "list", "--json")).records()
        if record["function"] == "deaf"
    ]
    await world.cluster.cli("container", "stop", listed["id"], "--now")
    await until_gone(processes)


async def test_an_exit_that_never_ends_is_ended(world: Shaken) -> None:
    async with kept(world, "Lingers", "lingers-web") as processes:
        pass
    await world.asleep("Lingers")
    await until_gone(processes)
