"""A small App on a cluster, and deploys of it that are watched, held up and ended.

async with shop(folder) as world:                     # version 1 of `shop` answers "one"
    world.write(answer="two")
    await world.refused("says this")                  # a deploy that fails and changes nothing
    async with world.held() as deploy: ...            # one whose replica is about to start
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalnomad.hashicorp.consul.records import GUARD
from modalnomad.settings import Settings
from modalnomad.wiring.cluster import open_cluster
from tests.support.cluster import PATIENCE, Cluster, Result, Router, cluster
from tests.support.pace import turn
from tests.support.repository import ROOT

PROGRAM = """
import modal, os, pathlib, time
app = modal.App("shop")
{above}
@app.function(scaledown_window={window}, {function})
@modal.fastapi_endpoint({endpoint})
def f():
    return "{answer}"
{more}
"""
HELD = "if 'MODALNOMAD_REPLICA' in os.environ:\n    while pathlib.Path({gate!r}).exists(): time.sleep(0.02)\n"
SOON = PATIENCE
"""Seconds in which a command has ended."""


@dataclass
class Running:
    """A command under way."""

    process: asyncio.subprocess.Process
    said: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> None:
        """To the end of its output."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._changed:
                self.said += line.decode()
                self._changed.notify_all()
        async with self._changed:
            self._over.set()
            self._changed.notify_all()

    async def ended(self) -> int:
        """Exit code, once all it said is known."""
        async with asyncio.timeout(SOON):
            await self._over.wait()
            return await self.process.wait()

    async def until(self, text: str) -> None:
        """It says this."""
        async with asyncio.timeout(SOON), self._changed:
            await self._changed.wait_for(lambda: text in self.said or self._over.is_set())
        assert text in self.said


@dataclass
class World:
    """A cluster with a router, and the App `shop` on it, whose version 1 answers "one"."""

    cluster: Cluster
    router: Router
    file: Path

    @property
    def gate(self) -> Path:
        """Replicas of `HELD` get ready when it is gone."""
        return self.file.parent / "gate"

    def write(self, *, answer: str = "two", window: float = 600, **parts: str) -> None:
        """The next version."""
        blank = {"above": "", "function": "", "endpoint": "", "more": ""}
        self.file.write_text(PROGRAM.format(**{**blank, **parts}, answer=answer, window=window), "utf-8")

    async def answer(self, host: str = "shop-f.localhost") -> str:
        """What the App says."""
        status, text = await self.router.get(host)
        assert status == 200, f"{text}\n{''.join(self.router.errors)}"
        return str(json.loads(text))

    async def until_answer(self, answer: str) -> None:
        """Returns when the App says this: for a version that is published, and nobody waited for the router."""
        async with asyncio.timeout(PATIENCE):
            while await self.answer() != answer:  # noqa: ASYNC110 - as a client would
                await asyncio.sleep(turn())

    async def served_jobs(self) -> dict[str, str]:
        """Function → the job of its revision that is served."""
        async with open_cluster(settings_of(self)) as client:
            record = await client.discovery.app("shop", "main")
        assert record is not None
        jobs = self.cluster.nomad.state.jobs.values()
        by_revision = {job["Meta"]["revision"]: job["ID"] for job in jobs if "/" not in job["ID"]}
        return {revision.function.tag: by_revision[revision.id] for revision in record.revisions}

    def records(self) -> dict[str, bytes]:
        """Of Apps, as Consul has them."""
        keys = self.cluster.consul.store.keys
        return {key: entry.value for key, entry in keys.items() if "/apps/" in key and not key.endswith(GUARD)}

    def jobs(self) -> set[str]:
        """Those that are not stopped, dead or without a namespace of ours: parents and children."""
        found = self.cluster.nomad.state.jobs
        return {job["ID"] for job in found.values() if not job.get("Stop") and job["Status"] != "dead"}

    async def at_rest(self) -> set[str]:
        """The same, as soon as all replicas of what is not served any more are gone: no change of an App waits for
        them."""
        await self.router.shows("/debug", lambda known: not any(p["retired"] and p["replicas"] for p in known["pools"]))
        return self.jobs()

    async def until_jobs(self, jobs: set[str]) -> None:
        """Just these live."""
        try:
            await self.cluster.nomad.until(lambda state: self.jobs() == jobs)
        except TimeoutError:
            raise AssertionError(f"{self.jobs() - jobs} are there, {jobs - self.jobs()} are not") from None

    @asynccontextmanager
    async def unchanged(self) -> AsyncIterator[None]:
        """As before the block: what is stored, what is registered and runs, who answers."""
        answer, records, jobs = await self.answer(), self.records(), await self.at_rest()
        yield
        await self.until_jobs(jobs)
        assert self.records() == records
        assert await self.answer() == answer

    async def refused(self, *says: str, arguments: tuple[str, ...] = (), env: dict[str, str] | None = None) -> str:
        """A deploy that fails, changes nothing and says this → all it said."""
        async with self.unchanged():
            done = await self.cluster.cli("deploy", str(self.file), *arguments, code=1, env=env)
        told = words(done)
        for text in says:
            assert text in told, told
        return told

    @asynccontextmanager
    async def running(self, *arguments: str, script: str = "") -> AsyncIterator[Running]:
        """A command, or a deploy of the program, that runs meanwhile; killed when it has not ended with the block.
        `script`: Python that is run in its place."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(("-c", script) if script else ("-m", "modalnomad")),
            *(arguments or ("deploy", str(self.file))),
            cwd=ROOT,
            env=self.cluster.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        running = Running(process)
        reading = self.cluster.tasks.spawn(running.read(), "output")
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    @asynccontextmanager
    async def held(self, *options: str, answer: str = "two", script: str = "", **parts: Any) -> AsyncIterator[Running]:
        """A deploy whose new replica has begun to start, and is not let get ready within the block; ended after it."""
        gate = self.gate
        gate.touch()
        self.write(answer=answer, above=HELD.format(gate=str(gate)), **parts)
        present = self.jobs()
        try:
            async with self.running("deploy", str(self.file), *options, script=script) as deploy:
                await self.started(deploy, present)
                yield deploy
                gate.unlink(missing_ok=True)
                await deploy.ended()
        finally:
            gate.unlink(missing_ok=True)

    async def started(self, deploy: Running, present: set[str]) -> None:
        """A task of its runs."""

        def seen(state: Any) -> bool:
            running = {a["JobID"] for a in state.allocations.values() if a["ClientStatus"] == "running"}
            return any("/dispatch-000-deploy" in id for id in running - present)

        tasks = self.cluster.tasks
        looking = tasks.spawn(self.cluster.nomad.until(seen), "started")
        over = tasks.spawn(deploy.process.wait(), "over")
        await asyncio.wait([looking, over], return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        assert deploy.process.returncode is None, deploy.said
        await looking


def settings_of(world: World) -> Settings:
    """For a client in this process."""
    home = Path(world.cluster.env["MODALNOMAD_HOME"])
    return Settings(backend="hashicorp", home=home, consul={"address": world.cluster.consul.address})


def words(done: Result) -> str:
    """On one line."""
    return " ".join(done.stderr.split())


@asynccontextmanager
async def shop(folder: Path) -> AsyncIterator[World]:
    """On a cluster of its own, with a router."""
    async with cluster(folder, MODALNOMAD_SCALING__ORPHAN_FACTOR="1") as made, made.router() as router:
        found = World(made, router, folder / "shop.py")
        found.write(answer="one")
        await made.cli("deploy", str(found.file))
        assert await found.answer() == "one"
        yield found
