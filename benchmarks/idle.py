"""What sleeping endpoints cost: the processor time of a real `modalnomad up` to which nobody talks.

    python benchmarks/idle.py [ENDPOINTS ...]

For each number (100 and 1,000 if none is given) a program with that many endpoints is deployed into a home of its own,
`up` serves it, and its processor time, with that of everything it started, is read before and after twenty seconds.
Goal: less than 1 % of a core with 100.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

QUIET = 0.02
"""Share of a core, over two seconds, below which the start is over."""
MEASURED = 20.0
LIMIT = 600.0

FUNCTION = """

@app.function()
@modal.fastapi_endpoint()
def f{number}():
    return {number}
"""


def program(endpoints: int) -> str:
    return 'import modal\n\napp = modal.App("idle")\n' + "".join(FUNCTION.format(number=n) for n in range(endpoints))


def used(process: psutil.Process) -> float:
    """Seconds of processor time, of the process and all its descendants, those that ended included."""
    spent = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


def measure(endpoints: int, folder: Path) -> None:
    modalnomad = [sys.executable, "-m", "modalnomad"]
    file = folder / "idle.py"
    file.write_text(program(endpoints))
    environment = {**os.environ, "MODALNOMAD_HOME": str(folder / "home")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begun = time.perf_counter()
    subprocess.run(
        [*modalnomad, "deploy", str(file), "--json"],
        env=environment,
        check=True,
        timeout=LIMIT,
        stdout=subprocess.DEVNULL,
    )
    deployed = time.perf_counter() - begun
    ports = ["--port", "0", "--admin-port", "0"]
    up = subprocess.Popen([*modalnomad, "up", "--json", *ports], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout is not None
        begun = time.perf_counter()
        while (line := up.stdout.readline()) and json.loads(line)["event"] != "ready":
            pass
        started = time.perf_counter() - begun
        if not line:
            raise SystemExit("up ended before it was ready")
        process = psutil.Process(up.pid)
        busy = used(process)
        while time.sleep(2.0) or used(process) - busy > 2.0 * QUIET:
            busy = used(process)
        before, begun = used(process), time.perf_counter()
        time.sleep(MEASURED)
        share = (used(process) - before) / (time.perf_counter() - begun)
        memory = process.memory_full_info().pss / 2**20
        print(
            f"{endpoints:>5} endpoints: {share:.2%} of a core, {memory:.0f} MiB;"
            f" deployed in {deployed:.1f} s, up in {started:.1f} s",
            flush=True,
        )
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)


def main() -> None:
    for endpoints in [int(argument) for argument in sys.argv[1:]] or [100, 1000]:
        with tempfile.TemporaryDirectory() as folder:
            measure(endpoints, Path(folder))


if __name__ == "__main__":
    main()
