"""`modalnomad deploy` and its kin as a user runs them, on a home of the test's own.

shop = Deploys(tmp_path)                 # a home, and a folder for programs
shop.write("shop.py", answer="one")      # a small program
shop.deploy("shop.py")["version"]        # its JSON
shop.run("app", "stop", "shop")          # any command, to its end
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modalnomad.embedded.discovery import EmbeddedDiscovery
from tests.support.serve import command_environment, run_command
from tests.support.up import own_home

PROGRAM = """\
import modal
app = modal.App("{app}")
@app.function({function})
@modal.fastapi_endpoint({endpoint})
def f(): return "{answer}"
{more}"""


class Deploys:
    """A home and a working folder below `folder`."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = own_home(folder)
        self.folder = folder / "work"
        self.folder.mkdir(exist_ok=True)
        self._env = dict(env or {})

    def write(self, name: str = "shop.py", **parts: str) -> Path:
        """A program with one endpoint: `app`, `function`, `endpoint` (arguments), `answer`, `more`."""
        blank = {"app": "shop", "function": "", "endpoint": "", "answer": "one", "more": ""}
        path = self.folder / name
        path.write_text(PROGRAM.format(**{**blank, **parts}), "utf-8")
        return path

    def run(self, *arguments: str, code: int = 0, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        """To its end, which is to be this one."""
        done = run_command(*arguments, home=self.home, cwd=self.folder, env=self._env, timeout=timeout)
        assert done.returncode == code, f"{arguments}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr or code == 1, done.stderr
        return done

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects it prints with --json."""
        return [json.loads(line) for line in self.run(*arguments, "--json").stdout.splitlines()]

    def deploy(self, *arguments: str) -> dict[str, Any]:
        """Its answer; without arguments: of shop.py."""
        (answer,) = self.json("deploy", *(arguments or ("shop.py",)))
        return answer

    def history(self, app: str = "shop") -> list[dict[str, Any]]:
        """The newest first."""
        return self.json("app", "history", app)

    def versions(self, app: str = "shop") -> list[int]:
        """Numbers of those that are kept, from the record itself; none: there is no such App."""
        record = asyncio.run(EmbeddedDiscovery(self.home).app(app, "main"))
        return [version.number for version in record.versions] if record else []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "modalnomad", *arguments],
            env=command_environment(self.home, self._env),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def interrupted(self, when: Callable[[], object], number: signal.Signals, *arguments: str) -> tuple[int, str]:
        """Its exit code and what it said, sent a signal as soon as `when` holds."""
        process = self.start(*arguments)
        try:
            wait_until(lambda: when() or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait(30)
        return process.returncode, out + err


def wait_until(holds: Callable[[], object], timeout: float = 60.0) -> None:
    """Look until it does."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not so within {timeout} s"
        time.sleep(0.02)


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its inode and time of writing; links are not followed."""
    found = {}
    for base, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(base, name))
            found[os.path.join(base, name)] = (status.st_ino, status.st_mtime_ns)
    return found
