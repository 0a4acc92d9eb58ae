"""A router at work, and faults of everything around it.

    async with shaken(folder, PROGRAM, secrets={"db": {"PASSWORD": "one"}}) as world:
        status, answer = await world.ask("f")
        async with world.faults.nomad_gone(): ...

The program's App is `shaken`. Commands and routers reach Nomad through a proxy that can be spoilt, the test without.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.cluster import PATIENCE, Cluster, Router, cluster
from tests.support.fakes.faults import Faults
from tests.support.fakes.proxy import FaultyProxy
from tests.support.nomad_calls import Calls

ALIVE = frozenset({"pending", "running"})
"""States of allocations that have not ended."""


@dataclass
class Shaken:
    """`cluster.nomad` is a FakeNomad with one node, `one`."""

    cluster: Cluster
    router: Router
    faults: Faults
    calls: Calls
    proxy: FaultyProxy

    def host(self, function: str) -> str:
        """Of an endpoint, without the domain."""
        return f"shaken-{function}.localhost"

    def target(self, function: str) -> tuple[str, int]:
        """For `tests.support.load.Load`."""
        return self.host(function), int(self.router.url.rpartition(":")[2])

    async def ask(self, function: str, path: str = "/", **how: Any) -> tuple[int, Any]:
        """Status and answer, decoded when it is JSON."""
        status, text = await self.router.get(self.host(function), path, **how)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    async def code(self, function: str, path: str = "/") -> tuple[int, str]:
        """Status and code of an answer that the router itself makes."""
        status, answer = await self.ask(function, path)
        assert isinstance(answer, dict), (status, answer)
        return status, answer.get("code", "")

    async def allocations(self, function: str) -> list[dict[str, Any]]:
        """Stubs of those that live."""
        return [alloc for alloc in await self.calls.get("/v1/allocations", namespace="*") if _is_alive(alloc, function)]

    async def listens(self) -> None:
        """Returns when the router follows both event streams, and has listed what was before them: after a fault of an
        earlier test it comes back in steps of up to 5 s."""
        await self.router.shows("/debug", lambda debug: "nomad" not in debug["stale"] and self.faults.streams() == 2)

    async def asleep(self, function: str) -> None:
        """Returns when none of its replicas lives."""
        await self.count(function, 0)

    async def count(self, function: str, wanted: int) -> None:
        """Returns when so many of its replicas live."""
        await self.calls.until(
            "/v1/allocations",
            lambda allocs: sum(_is_alive(alloc, function) for alloc in allocs) == wanted,
            namespace="*",
        )

    async def children(self, function: str) -> int:
        """How many were ever dispatched."""
        jobs = await self.calls.get("/v1/jobs", namespace="*")
        return sum(job["ID"].startswith(f"shaken.{function}.") and "/dispatch-" in job["ID"] for job in jobs)

    async def parent(self, function: str) -> dict[str, Any]:
        """Its newest job."""
        jobs = await self.calls.get("/v1/jobs", namespace="*")
        found = [j for j in jobs if j["ID"].startswith(f"shaken.{function}.") and "/dispatch-" not in j["ID"]]
        newest: dict[str, Any] = max(found, key=lambda job: job["ModifyIndex"])
        return newest

    def pid(self, alloc: Mapping[str, Any]) -> int:
        """Of an allocation's process."""
        return int(self.cluster.nomad.running.pid(alloc["ID"]))

    async def family(self, function: str) -> list[psutil.Process]:
        """The processes of its only replica, the outermost first; in the replica they have other numbers."""
        (alloc,) = await self.allocations(function)
        outermost = psutil.Process(self.pid(alloc))
        return [outermost, *outermost.children(recursive=True)]

    async def end(self, function: str) -> None:
        """Kill its only replica. Returns when the router knows."""
        before = len(self.router.errors)
        for process in await self.family(function):
            with suppress(psutil.NoSuchProcess):  # it went with the one before
                process.kill()
        await self.asleep(function)
        await self.router.told(" died: ", after=before)

    def output(self, alloc: Mapping[str, Any]) -> str:
        """What it wrote to standard output so far."""
        file = self.cluster.nomad.running.logs(alloc["ID"], "stdout")
        return file.read_text() if file.exists() else ""

    async def put_secret(self, name: str, values: Mapping[str, str], *options: str) -> None:
        """Make it; `--force`: a new version."""
        file = self.cluster.folder / f"{name}.json"
        file.write_text(json.dumps(values))
        await self.cluster.cli("secret", "create", name, "--from-json", str(file), *options)


async def until(holds: Callable[[], bool]) -> None:
    """Returns when it does; for what nobody tells. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_gone(processes: list[psutil.Process]) -> None:
    """Returns when none of them runs."""
    _, left = await asyncio.to_thread(psutil.wait_procs, processes, PATIENCE / 3)
    assert not left


def _is_alive(alloc: Mapping[str, Any], function: str) -> bool:
    return alloc["JobID"].startswith(f"shaken.{function}.") and alloc["ClientStatus"] in ALIVE


@asynccontextmanager
async def shaken(
    folder: Path,
    program: str,
    *,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    kept: bool = False,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Shaken]:
    """Deployed, asleep, with a router. `kept`: see `cluster`; `env`: more of all commands."""
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(cluster(folder, kept=kept, **(env or {})))  # type: ignore[arg-type]
        proxy = await stack.enter_async_context(FaultyProxy(made.nomad.address))
        calls = await stack.enter_async_context(Calls(made.nomad.address))
        faults = Faults(nomad=proxy, calls=calls, fake=made.nomad, consul=made.consul, vault=made.vault)
        (folder / "shaken.py").write_text(program)
        for name, values in (secrets or {}).items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps(values))
            await made.cli("secret", "create", name, "--from-json", str(file))
        await made.cli("deploy", str(folder / "shaken.py"))
        made.env["NOMAD_ADDR"] = proxy.address
        router = await stack.enter_async_context(made.router())
        yield Shaken(made, router, faults, calls, proxy)
