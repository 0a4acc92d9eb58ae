"""A request at zero replicas, without and with a warm template, against starting the same app by hand with uvicorn.

    python benchmarks/cold_start.py [ROUNDS]

The three are measured in turn, in one run, on one machine; what counts is the ratio of the medians (goals: at most 1.05
times by hand, with a template 0.06 times). By hand: from starting `python -m uvicorn` to its first answer, asked for
again and again. Under serve: from connecting to the router to the answer, which has to be a 200; between two rounds the
replica is gone. Two serves share one home: one with templates, one without. Memory is PSS, so shared pages count once.
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
from typing import Any

import psutil
from common import WEB, ask, by_hand

PROGRAM = f"""{WEB}
import modal

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("cold", image=image)


@app.function(scaledown_window=2)
@modal.asgi_app()
def site():
    return web
"""
LIMIT = 60.0
SETTLE = 6.0
"""Seconds after the first start in which the template gets warm."""


class Serve:
    """`modalnomad serve --json` on one program."""

    def __init__(self, program: Path, environment: dict[str, str], templates: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modalnomad", "serve", "--json", str(program)],
            env={**environment, "MODALNOMAD_EMBEDDED__TEMPLATES": str(templates)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._changed = threading.Condition()
        self._events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        endpoint = self._wait(lambda event: event["event"] == "endpoint")
        self.port = int(endpoint["direct_url"].rstrip("/").rpartition(":")[2])
        self._wait(lambda event: event["event"] == "ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._events.append(json.loads(line))
                self._changed.notify_all()

    def _wait(self, wanted: Any) -> dict[str, Any]:
        with self._changed:
            if not self._changed.wait_for(lambda: any(map(wanted, self._events)), LIMIT):
                raise SystemExit("serve did not do what was waited for")
            return next(filter(wanted, self._events))

    def cold(self) -> float:
        """Seconds of one request at zero replicas; afterwards there is none again."""
        begun = time.perf_counter()
        ask(self.port)
        elapsed = time.perf_counter() - begun
        self._wait(lambda event: event["event"] == "replica" and event["state"] in {"gone", "failed"})
        self._events.clear()
        return elapsed

    def memory(self) -> float:
        """MiB of the template with what waits in it; 0 when there is none."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        found = [child for child in children if "template" in child.cmdline()]
        return sum(float(child.memory_full_info().pss) for child in found) / 2**20

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(LIMIT)


def main(rounds: int) -> None:
    """Print each round, then medians and ratios."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times: dict[str, list[float]] = {"by hand": [], "serve": [], "with template": []}
    with tempfile.TemporaryDirectory(prefix="mn-cold-") as name:
        folder = Path(name)
        environment |= {"MODALNOMAD_HOME": str(folder / "home")}
        program = folder / "program.py"
        program.write_text(PROGRAM)
        (folder / "by_hand.py").write_text(WEB)
        plain = Serve(program, environment, templates=False)
        warm = Serve(program, environment, templates=True)
        try:
            plain.cold(), warm.cold()
            time.sleep(SETTLE)
            (python,) = (folder / "home" / "images").glob("*/bin/python")
            by_hand(folder, python)
            memory = warm.memory()
            for number in range(1, rounds + 1):
                times["by hand"].append(by_hand(folder, python))
                times["serve"].append(plain.cold())
                times["with template"].append(warm.cold())
                print(f"{number:3}", *(f"{what} {1000 * one[-1]:.1f} ms " for what, one in times.items()), flush=True)
        finally:
            warm.stop()
            plain.stop()
    hand = statistics.median(times["by hand"])
    for what, one in times.items():
        print(f"{what:14} median {1000 * statistics.median(one):7.1f} ms  ratio {statistics.median(one) / hand:.3f}")
    print(f"the waiting template takes {memory:.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
