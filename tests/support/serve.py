"""`modalnomad serve --json` as a child process, the way a user's script would run it.

    with serve("examples/hello.py", home=home) as s:
        httpx.get(s.url("hello"))            # direct_url of the endpoint: any client reaches it
        s.wait_event("reloaded", timeout=10)
    assert s.exit_code == 0

Every call waits for a value with a deadline; when serve ends early or the deadline passes, the error carries everything
serve wrote; when it does not stop, also where it stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

Event = dict[str, Any]
WITH_STACKS = Path(__file__).with_name("with_stacks.py")
LAST = 30.0
"""Seconds for what a process that has ended wrote, or one that was killed, to be gone."""
STACKS_LIMIT = 10.0
"""Seconds to say where it stands."""


def shared_home() -> Path:
    """A MODALNOMAD_HOME that lives as long as the test run: images are built once for all tests that use it.

    Its path is short, because Unix socket paths are bounded. Tests that write secrets or tokens use names of their own.
    """
    return Path(os.environ["TEST_SHARED_HOME"])


def command_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without anything that would steer modalnomad or slow its children down."""
    unwanted = ("MODALNOMAD_", "MODAL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "MODALNOMAD_HOME": str(home), "NO_COLOR": "1", **(extra or {})}


def run_command(
    *arguments: str,
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """`modalnomad <arguments>` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "modalnomad", *arguments],
        env=command_environment(home or shared_home(), env),
        cwd=cwd,
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


SHOWN = 300
"""Lines of each end of what it wrote that a failure shows."""


class ServeError(AssertionError):
    """Serve did not do what was waited for; the message holds all its output."""


class Serve:
    """A running `modalnomad serve --json`.

    `endpoints` maps the endpoint's name (`f`, `Server.files`) to its event: {name, label, url, direct_url, auth}. `pid`
    is the CLI's process id. `events` holds every event so far, in order.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        home: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready_timeout: float = 120,
        command: str = "serve",
    ) -> None:
        self.home = home or shared_home()
        self.events: list[Event] = []
        self.stderr_lines: list[str] = []
        self.bad_lines: list[str] = []
        """Lines of standard output that are no JSON object: always a defect."""
        self._changed = threading.Condition()
        self._ready_timeout = ready_timeout
        self._command = [sys.executable, str(WITH_STACKS), command, "--json", *arguments]
        self._name = command
        self._environment = command_environment(self.home, env)
        self._cwd = cwd
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []

    def start(self) -> Self:
        """Start it and wait for the `ready` event."""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for stream, take in ((self._process.stdout, self._take_event), (self._process.stderr, self._take_stderr)):
            reader = threading.Thread(target=self._read, args=(stream, take), daemon=True)
            reader.start()
            self._readers.append(reader)
        try:
            self.wait_event("ready", self._ready_timeout)
        except BaseException:
            if self.exit_code is None:
                self._tell_stacks()
                print(self.output(), file=sys.stderr)
            self.kill()
            raise
        return self

    def _read(self, stream: IO[str], take: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    take(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _take_event(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            self.bad_lines.append(line)
        else:
            self.events.append(event)

    def _take_stderr(self, line: str) -> None:
        self.stderr_lines.append(line)

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._running.poll()

    @property
    def endpoints(self) -> dict[str, Event]:
        """Name → the endpoint's latest event."""
        return {event["name"]: event for event in list(self.events) if event["event"] == "endpoint"}

    def url(self, name: str | None = None) -> str:
        """`direct_url` of the endpoint, without a final slash; without a name: of the only endpoint."""
        endpoints = self.endpoints
        if name is None:
            assert len(endpoints) == 1, f"name one of {sorted(endpoints)}"
            (name,) = endpoints
        return str(endpoints[name]["direct_url"]).rstrip("/")

    def output(self) -> str:
        """What it wrote so far, for error messages; of a flood the beginning and the end."""
        events = _shortened([json.dumps(event) for event in list(self.events)])
        other = _shortened([*self.bad_lines, *self.stderr_lines])
        return "\n".join(["--- events", *events, "--- other output", *other])

    def wait_for(
        self, wanted: Callable[[Event], bool], timeout: float, *, after: int = 0, what: str = "event"
    ) -> Event:
        """The first event from position `after` on that satisfies `wanted`."""
        deadline = time.monotonic() + timeout
        seen = after
        with self._changed:
            while True:
                while seen < len(self.events):
                    seen += 1
                    if wanted(self.events[seen - 1]):
                        return self.events[seen - 1]
                if self._ended():
                    raise ServeError(f"{self._name} ended with {self.exit_code} before {what}\n{self.output()}")
                if (left := deadline - time.monotonic()) <= 0:
                    raise ServeError(f"no {what} within {timeout} s\n{self.output()}")
                self._changed.wait(min(left, 0.5))

    def _ended(self) -> bool:
        return self.exit_code is not None and not any(reader.is_alive() for reader in self._readers)

    def wait_event(self, kind: str, timeout: float = 60, *, after: int = 0, **match: Any) -> Event:
        """The first `kind` event from position `after` on whose fields equal `match`. Use `after=len(s.events)`, read
        before the action, to wait for a new one."""
        return self.wait_for(
            lambda event: event["event"] == kind and all(event.get(key) == value for key, value in match.items()),
            timeout,
            after=after,
            what=f"event {kind} {match or ''}".rstrip(),
        )

    def wait_log(self, text: str, timeout: float = 60, *, after: int = 0) -> Event:
        """The first `log` event whose line contains `text`."""
        return self.wait_for(
            lambda event: event["event"] == "log" and text in event["line"], timeout, after=after, what=f"log {text!r}"
        )

    def logs(self) -> list[Event]:
        """All `log` events: {app, function, replica, stream, line, request_id}."""
        return [event for event in list(self.events) if event["event"] == "log"]

    def interrupt(self) -> None:
        """Send one Ctrl-C and return at once."""
        self._running.send_signal(signal.SIGINT)

    def stop(self, timeout: float = 40) -> int:
        """Ctrl-C, then wait for the end: the exit code. One that does not end in time is killed and reported."""
        if self.exit_code is None:
            self.interrupt()
        return self.wait(timeout)

    def wait(self, timeout: float = 40) -> int:
        """Wait for the end by itself."""
        try:
            code = self._running.wait(timeout)
        except subprocess.TimeoutExpired:
            self._tell_stacks()
            self.kill()
            raise ServeError(f"{self._name} did not stop within {timeout} s\n{self.output()}") from None
        self._join()
        return code

    def _tell_stacks(self) -> None:
        """Have it say where it stands: all that comes until it says nothing more."""
        for number in (signal.SIGUSR2, signal.SIGUSR1):
            before = seen = len(self.stderr_lines)
            self._running.send_signal(number)
            deadline = time.monotonic() + STACKS_LIMIT
            while time.monotonic() < deadline and self.exit_code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._running.wait(0.4)
                if before < seen == len(self.stderr_lines):
                    break
                seen = len(self.stderr_lines)

    def kill(self) -> None:
        """kill -9 the CLI alone, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            self._running.kill()
        self._running.wait(LAST)
        self._join()

    def _join(self) -> None:
        # A process left behind may hold the pipes open; the readers are daemons and the tests look for such processes.
        for reader in self._readers:
            reader.join(LAST)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Shown where a test failed; a fixture is not told whether its test did.
        print(self.output(), file=sys.stderr)
        self.stop()


def _shortened(lines: list[str]) -> list[str]:
    left_out = len(lines) - 2 * SHOWN
    return lines if left_out <= 0 else [*lines[:SHOWN], f"({left_out} more)", *lines[-SHOWN:]]


def serve(
    reference: str | Path,
    *arguments: str,
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ready_timeout: float = 120,
) -> Serve:
    """`with serve("app.py", "--env", "main") as s:`. In async tests, wrap blocking calls in `asyncio.to_thread`."""
    return Serve([str(reference), *arguments], home=home, env=env, cwd=cwd, ready_timeout=ready_timeout)
