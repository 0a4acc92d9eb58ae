"""Save → first answer of the new code under `serve`, against starting the same app by hand with uvicorn.

    python benchmarks/reload.py [ROUNDS]

Both are measured in turn, in one run, on one machine; what counts is the ratio of the medians. By hand: from starting
`python -m uvicorn` to its first answer. Under serve: from the write of the edited file to the first answer of the new
code to a client that asks again and again; every answer has to be a 200 of the old or the new code.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import ask, free_port

PROGRAM = """import modal
from fastapi import FastAPI

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("reload", image=image)
web = FastAPI()


@web.get("/")
def version():
    return {{"version": {version}}}


@app.function()
@modal.asgi_app()
def site():
    return web
"""
BY_HAND = """from fastapi import FastAPI

web = FastAPI()


@web.get("/")
def version():
    return {{"version": {version}}}
"""
LIMIT = 60.0


def until(port: int, version: int) -> int:
    """Ask until the version answers; how many requests that took."""
    wanted = json.dumps({"version": version}, separators=(",", ":")).encode()
    deadline = time.monotonic() + LIMIT
    asked = 0
    while ask(port) != wanted:
        asked += 1
        if time.monotonic() > deadline:
            raise SystemExit(f"version {version} did not answer within {LIMIT:g} s")
        time.sleep(0.005)
    return asked


def by_hand(folder: Path, python: Path, version: int, environment: dict[str, str]) -> float:
    """Seconds from starting uvicorn to its first answer."""
    (folder / "by_hand.py").write_text(BY_HAND.format(version=version))
    port = free_port()
    command = [str(python), "-m", "uvicorn", "by_hand:web", "--port", str(port), "--log-level", "warning"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        until(port, version)
        return time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(LIMIT)


class Serve:
    """`modalnomad serve --json` on one program."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modalnomad", "serve", "--json", str(program)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = 0
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "endpoint":
                self.port = int(event["direct_url"].rstrip("/").rpartition(":")[2])
            if event["event"] == "ready":
                break
        else:
            raise SystemExit("serve did not start")
        threading.Thread(target=self._drop, daemon=True).start()

    def _drop(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if os.environ.get("SHOW_EVENTS"):
                print(f"{time.perf_counter():.3f} {line}", end="", file=sys.stderr)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(LIMIT)


def main(rounds: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(prefix="mn-reload-") as name:
        folder = Path(name)
        environment |= {"MODALNOMAD_HOME": str(folder / "home")}
        program = folder / "program.py"
        program.write_text(PROGRAM.format(version=0))
        serve = Serve(program, environment)
        try:
            until(serve.port, 0)
            (python,) = (folder / "home" / "images").glob("*/bin/python")
            hand: list[float] = []
            reload: list[float] = []
            for version in range(1, rounds + 1):
                hand.append(by_hand(folder, python, version, environment))
                begun = time.perf_counter()
                program.write_text(PROGRAM.format(version=version))
                asked = until(serve.port, version)
                reload.append(time.perf_counter() - begun)
                print(f"{version:3}  by hand {hand[-1]:.3f} s  reload {reload[-1]:.3f} s  ({asked} requests meanwhile)")
                time.sleep(0.5)
        finally:
            serve.stop()
    medians = statistics.median(hand), statistics.median(reload)
    print(f"median by hand {medians[0]:.3f} s, reload {medians[1]:.3f} s, ratio {medians[1] / medians[0]:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
