"""What a node tells of a task: its state and events, with the texts of Nomad 2.0.5. Pure but for the clock."""

from __future__ import annotations

import time
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, Final

KEPT: Final = 10
"""Events a task's state holds; older ones are dropped."""
SIGNALLED: Final = 128
"""Added to a signal's number it is the exit code."""


class TaskState:
    """Changed by what happens to the task, in the order it happens."""

    def __init__(self) -> None:
        self.state = "pending"
        self.failed = False
        self.started_at = self.finished_at = ""
        self.events: list[dict[str, Any]] = []

    def shown(self) -> dict[str, Any]:
        """As the API gives it."""
        return {
            "State": self.state,
            "Failed": self.failed,
            "Restarts": 0,
            "LastRestart": None,
            "StartedAt": self.started_at or None,
            "FinishedAt": self.finished_at or None,
            "Paused": "",
            "Events": deepcopy(self.events),
        }

    def add(self, kind: str, message: str, details: dict[str, str] | None = None, **more: Any) -> None:
        """One more event. `more`: the old fields of its own that Nomad still fills."""
        self.events.append(
            {
                "Type": kind,
                "Time": time.time_ns(),
                "DisplayMessage": message,
                "Details": details or {},
                "Message": "",
                "FailsTask": False,
                "RestartReason": "",
                "SetupError": "",
                "DriverError": "",
                "DriverMessage": "",
                "ExitCode": 0,
                "Signal": 0,
                "KillError": "",
                "KillReason": "",
                "KillTimeout": 0,
                "StartDelay": 0,
                "DownloadError": "",
                "ValidationError": "",
                "DiskLimit": 0,
                "FailedSibling": "",
                "VaultError": "",
                "TaskSignal": "",
                "TaskSignalReason": "",
                "GenericSource": "",
            }
            | more
        )
        del self.events[:-KEPT]

    def received(self) -> None:
        """The node has it."""
        self.add("Received", "Task received by client")
        message = "Building Task Directory"
        self.add("Task Setup", message, {"message": message}, Message=message)

    def started(self) -> None:
        """Its process runs."""
        self.state, self.started_at = "running", now()
        self.add("Started", "Task started by client")

    def terminated(self, code: int, signal: int) -> None:
        """Its process has ended; `signal` 0: by itself."""
        code = SIGNALLED + signal if signal else code
        text = f"Exit Code: {code}, Signal: {signal}" if signal else f"Exit Code: {code}"
        details = {"exit_code": str(code), "signal": str(signal), "oom_killed": "false"}
        self.add("Terminated", text, details, ExitCode=code, Signal=signal)

    def killing(self, timeout: float) -> None:
        """It is asked to end."""
        shown = duration(timeout)
        text = f"Sent interrupt. Waiting {shown} before force killing"
        self.add("Killing", text, {"kill_timeout": shown}, KillTimeout=round(timeout * 1e9))

    def refused(self, message: str) -> None:
        """A `Killing` that is a failure: of Vault or a template."""
        self.add("Killing", message, {"fails_task": "true"}, FailsTask=True)

    def not_restarting(self, reason: str = "Policy allows no restarts") -> None:
        """Its last failure was the last."""
        details = {"restart_reason": reason, "fails_task": "true"}
        self.add("Not Restarting", reason, details, RestartReason=reason, FailsTask=True)

    def end(self, *, failed: bool) -> None:
        """Dead."""
        self.state, self.failed, self.finished_at = "dead", failed, now()


def now() -> str:
    """RFC 3339 with nanoseconds."""
    ns = time.time_ns()
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ns % 10**9:09d}Z"


def duration(seconds: float) -> str:
    """As Go prints a time.Duration: `1.5s`, `250ms`, `1m0s`, `1h0m0s`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{round(seconds * 1e3, 6):g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{round(rest, 6):g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
