"""Is any request lost, or handled twice, while replicas and routers come and go?

    python benchmarks/nothing_lost.py [REQUESTS]

One `modalnomad up` on a home of its own, and clients that ask all the time (raw sockets, kept and pooled connections,
streams, WebSockets). Meanwhile: deploys and rollbacks, endpoints that fall asleep and wake, a pool that grows to three
replicas and shrinks, and at the end ten orderly stops of the router. Each request has a number that its app notes; the
last line says what became of all. 100,000 requests by default, a few minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.load import Load, Verdict, program, verdict  # noqa: E402 - after the path
from tests.support.serve import run_command  # noqa: E402
from tests.support.up import Up  # noqa: E402

ALL = ("raw", "kept", "pooled", "stream", "websocket")
ENV = {"MODALNOMAD_ROUTER__RATE": "0"}
SITES = ("steady", "large", *(f"sleepy{number}" for number in range(6)))
STOPS = 10


def target(u: Up, site: str) -> tuple[str, int]:
    """Its own port."""
    return "localhost", int(u.url(site).rpartition(":")[2])


def command(home: Path, *arguments: str) -> None:
    """Run to its end; raises when it fails."""
    done = run_command(*arguments, home=home, env=ENV, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")


async def main(requests: int, folder: Path) -> list[Verdict]:
    """All of it."""
    home, file, seen = folder / "home", folder / "counted.py", folder / "seen"
    seen.mkdir()
    numbers = itertools.count(1)

    def write(version: str) -> None:
        file.write_text(program(seen, version, sites=SITES, inputs=10))

    write("v1")
    command(home, "deploy", str(file))
    verdicts = []
    with Up(home=home, env=ENV) as u:
        steady = Load(lambda: target(u, "steady"), clients=ALL * 3, pace=0, numbers=numbers)
        large = Load(lambda: target(u, "large"), clients=ALL * 6, bursts=(1.0, 2.5, 4.0), numbers=numbers)
        sleepy = [
            Load(lambda site=site: target(u, site), bursts=(0.3, 1.9, 2.6), numbers=numbers)  # type: ignore[misc]
            for site in SITES[2:]
        ]
        loads = [steady, large, *sleepy]
        changes = 1
        async with contextlib.AsyncExitStack() as stack:
            for load in loads:
                await stack.enter_async_context(load)
            while sum(len(load.answered) for load in loads) < requests:
                changes += 1
                if changes % 3:
                    write(f"v{changes}")
                    await asyncio.to_thread(command, home, "deploy", str(file))
                else:
                    await asyncio.to_thread(command, home, "app", "rollback", "counted")
                await steady.until(500)
                print(f"{changes} versions, {sum(len(load.answered) for load in loads)} answers", flush=True)
        gone = sum(event["event"] == "replica" and event["state"] == "gone" for event in u.events)
        verdicts.append(verdict(loads, seen))
        print(f"{changes} versions, {gone} replicas came and went: {verdicts[0]}", flush=True)
    for _ in range(STOPS):
        verdicts.append(await stop(home, numbers, folder))
        print(f"router stopped: {verdicts[-1]}", flush=True)
    return verdicts


async def stop(home: Path, numbers: itertools.count[int], folder: Path) -> Verdict:
    """Start it, and stop it under load."""
    with Up(home=home, env=ENV) as u:
        async with Load(lambda: target(u, "steady"), clients=ALL * 4, pace=0, numbers=numbers) as load:
            await load.until(500)
            u.interrupt()
            await asyncio.to_thread(u.wait)
    return load.verdict(folder / "seen", stopping=True)


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="lost-") as name:
        found = asyncio.run(main(wanted, Path(name)))
    print(
        f"{sum(v.asked for v in found)} asked, {sum(v.answered for v in found)} answered, "
        f"{sum(v.refused for v in found)} refused and {sum(v.ended for v in found)} WebSockets ended by {STOPS} stops, "
        f"{sum(len(v.lost) for v in found)} lost, {sum(len(v.doubled) for v in found)} doubled"
    )
