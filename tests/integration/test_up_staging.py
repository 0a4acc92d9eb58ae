"""A running `up` as a deploy sees it: prepared, warmed, served, and what is left when the deploy dies in the middle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from modalnomad.model.errors import BackendRefused, BackendUnreachable, NotFound, UserCodeFailed
from modalnomad.model.revision import Revision
from modalnomad.settings import Settings
from modalnomad.wiring.control import NotRunning, control_call, open_stage
from tests.support.leftovers import family, wait_gone
from tests.support.runner import LONG, wait_until
from tests.support.serve import command_environment, run_command
from tests.support.up import Up, build, own_home, publish, up

PROGRAM = """
import modal, os, time

app = modal.App("staged")

@app.cls()
class Site:
    @modal.enter()
    def begin(self):
        BEGIN

    @modal.asgi_app()
    def web(self):
        async def answer(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
        return answer
"""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Up]:
    # Without templates: they come by themselves and stay, and here it is counted what a client leaves.
    u = up(own_home(tmp_path), env={"MODALNOMAD_EMBEDDED__TEMPLATES": "false"})
    await asyncio.to_thread(u.start)
    yield u
    await asyncio.to_thread(u.stop)


async def built(u: Up, folder: Path, begin: str = "pass") -> Any:
    file = folder / "staged.py"
    file.write_text(PROGRAM.replace("BEGIN", begin))
    return await asyncio.to_thread(build, u.home, file)


async def containers(u: Up) -> list[dict[str, Any]]:
    return list(await control_call(Settings(home=u.home), "containers"))


async def until(look: Callable[[], Awaitable[Any]], seconds: float = 30) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await look()):  # noqa: ASYNC110 - another process has no events
            await asyncio.sleep(0.05)
        return found


async def none_left(u: Up) -> bool:
    return not await containers(u)


async def test_what_was_warmed_takes_over_without_a_start(tmp_path: Path, running: Up) -> None:
    candidate = await built(running, tmp_path)
    (revision,) = candidate.revisions
    (host,) = candidate.plan.named[0].hosts
    async with open_stage(Settings(home=running.home)) as stage:
        assert stage is not None
        await stage.prepare(revision)
        assert await stage.warm_counts(revision.id) == {}
        assert not await stage.apart(revision)
        await stage.warm(revision, "", 2)
        assert await stage.warm_counts(revision.id) == {"": 2}
        assert await stage.direct_urls((host,)) == {}
        record = await asyncio.to_thread(publish, running.home, candidate)
        async with asyncio.timeout(30):
            await stage.served(record.app, record.environment, record.serial)
        url = (await stage.direct_urls((host, "unknown.localhost")))[host]
    warm = {container["replica"] for container in await containers(running)}
    assert warm == {"0.1", "1.1"}
    async with httpx.AsyncClient(timeout=LONG) as client:
        assert (await client.get(url)).status_code == 200
    assert {container["replica"] for container in await containers(running)} == warm, "it goes on after the stage"
    status = await control_call(Settings(home=running.home), "status")
    assert status["pid"] == running.pid
    assert status["port"] == running.port
    assert [endpoint["direct_url"] for endpoint in status["endpoints"]] == [url]


async def test_a_deploy_that_dies_leaves_no_replica(tmp_path: Path, running: Up) -> None:
    """kill -9 of its process while it warms, and once it has."""
    own = set(await asyncio.to_thread(family, running.pid))
    for begin in ("print('up')", "time.sleep(30)"):
        candidate = await built(running, tmp_path, begin)
        (tmp_path / "revision.json").write_text(candidate.revisions[0].model_dump_json())
        deploy = subprocess.Popen(  # noqa: ASYNC220 - its output is read by a thread
            [sys.executable, "-c", DYING, str(tmp_path / "revision.json"), str(running.home)],
            env=command_environment(running.home),
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        try:
            assert deploy.stdout is not None
            if begin.startswith("print"):
                assert await asyncio.to_thread(deploy.stdout.readline) == "warm\n"
            else:
                await until(lambda: containers(running))
            replicas = set(await asyncio.to_thread(family, running.pid)) - own
            assert replicas
            assert await containers(running)
        finally:
            deploy.kill()
            deploy.communicate()
        await until(lambda: none_left(running))
        await asyncio.to_thread(wait_gone, replicas)
    bundles = running.home / "bundles"
    await asyncio.to_thread(wait_until, lambda: not list(bundles.glob("[0-9a-f]*")), "what was prepared for it is gone")


DYING = """
import asyncio, sys
from pathlib import Path
from modalnomad.model.revision import Revision
from modalnomad.settings import Settings
from modalnomad.wiring.control import open_stage

async def main():
    revision = Revision.model_validate_json(Path(sys.argv[1]).read_text())
    async with open_stage(Settings(home=Path(sys.argv[2]))) as stage:
        await stage.warm(revision, "", 1)
        print("warm", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_failed_start_is_told_with_its_output(tmp_path: Path, running: Up) -> None:
    candidate = await built(running, tmp_path, "raise RuntimeError('no database')")
    async with open_stage(Settings(home=running.home)) as stage:
        assert stage is not None
        with pytest.raises(UserCodeFailed, match=r"staged/Site does not start") as caught:
            await stage.warm(candidate.revisions[0], "", 1)
    assert "no database" in caught.value.output


async def test_what_is_missing_is_told(tmp_path: Path, running: Up) -> None:
    revision: Revision = (await built(running, tmp_path)).revisions[0]
    no_bundle = revision.model_copy(update={"bundle": "0" * 64, "id": "0" * 32})
    no_image = revision.model_copy(update={"image": revision.image.model_copy(update={"digest": "1" * 64})})
    async with open_stage(Settings(home=running.home)) as stage:
        assert stage is not None
        with pytest.raises(NotFound, match="no artifact 0000"):
            await stage.prepare(no_bundle)
        with pytest.raises(BackendRefused, match="image 1111"):
            await stage.prepare(no_image)
        await stage.prepare(revision)


async def test_end_ends_at_once(tmp_path: Path, running: Up) -> None:
    candidate = await built(running, tmp_path)
    (revision,) = candidate.revisions
    async with open_stage(Settings(home=running.home)) as stage:
        assert stage is not None
        await stage.warm(revision, "", 2)
        await stage.end(revision.id)
        assert await none_left(running)


async def test_a_stopping_up_says_so_to_deploys(tmp_path: Path, running: Up) -> None:
    candidate = await built(running, tmp_path, "time.sleep(30)")
    async with open_stage(Settings(home=running.home)) as stage:
        assert stage is not None
        warming = asyncio.ensure_future(stage.warm(candidate.revisions[0], "", 1))
        await until(lambda: containers(running))
        running.interrupt()
        with pytest.raises((BackendUnreachable, UserCodeFailed)):
            await asyncio.wait_for(warming, 60)
        assert await asyncio.to_thread(running.wait) == 0
        with pytest.raises(BackendUnreachable):
            await stage.warm_counts(candidate.revisions[0].id)
    with pytest.raises(NotRunning):
        await control_call(Settings(home=running.home), "status")


async def test_the_platform_is_killed_under_a_deploy(tmp_path: Path, running: Up) -> None:
    candidate = await built(running, tmp_path, "time.sleep(30)")
    async with open_stage(Settings(home=running.home)) as stage:
        assert stage is not None
        warming = asyncio.ensure_future(stage.warm(candidate.revisions[0], "", 1))
        await until(lambda: containers(running))
        await asyncio.to_thread(running.kill)
        with pytest.raises(BackendUnreachable, match="went away"):
            await asyncio.wait_for(warming, 30)


def test_a_deploy_without_one_is_served_when_it_comes(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    file = tmp_path / "staged.py"
    file.write_text(PROGRAM.replace("BEGIN", "pass"))
    deployed = run_command("deploy", str(file), home=home)
    assert deployed.returncode == 0, deployed.stderr
    with up(home) as u:
        assert httpx.get(u.url("Site.web"), timeout=30).status_code == 200
        file.write_text(PROGRAM.replace("BEGIN", "time.sleep(0.01)"))
        began = len(u.events)
        deployed = run_command("deploy", str(file), home=home)
        assert deployed.returncode == 0, deployed.stderr
        assert u.wait_event("reloaded", after=began)["version"] == 2
        deadline = time.monotonic() + 30
        while len(ready := [c for c in _containers(home) if c["state"] == "ready"]) != 1:
            assert time.monotonic() < deadline, ready
        assert ready[0]["reason"] != "", "as warm as the old one was"


def _containers(home: Path) -> list[dict[str, Any]]:
    return list(asyncio.run(control_call(Settings(home=home), "containers")))
