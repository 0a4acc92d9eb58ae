"""What `run` tells, as text or as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from modalnomad.cli.outlet import Outlet
from modalnomad.cli.output import err, json_line
from modalnomad.cli.serve_json import JsonView
from modalnomad.cli.serve_text import TextView
from modalnomad.cli.serve_view import ServeView
from modalnomad.model.manifest import Notice
from modalnomad.model.replica import LogLine, Replica
from modalnomad.model.revision import Revision
from modalnomad.router.calls import Call, Outcome


class RunView(ServeView, Protocol):
    """One of `RunText`, `RunQuiet` and `RunJson`."""

    captures: bool
    """The entrypoint's own output is told line by line, not written to our standard output."""

    def line(self, stream: str, line: str) -> None:
        """The entrypoint wrote this."""

    def retry(self, call: Call, outcome: Outcome, delay: float) -> None:
        """An attempt of a call failed; the next follows in `delay` seconds."""

    def returned(self, result: Mapping[str, Any], code: int) -> None:
        """It has ended. `result`: {"result" or "repr", "text"}; text None: nothing to show to people."""


class RunText(TextView):
    """As `serve` shows it; the result alone on the last lines."""

    captures = False

    def line(self, stream: str, line: str) -> None:
        """Never told: it writes to our own streams."""

    def retry(self, call: Call, outcome: Outcome, delay: float) -> None:
        """One line."""
        error = outcome.error
        err.print(f"{call.name} failed ({error['type']}: {error['message']}); again in {delay:g} s", markup=False)

    def returned(self, result: Mapping[str, Any], code: int) -> None:
        """As `print` does."""
        if result.get("text") is not None:
            self._outlet.write(f"{result['text']}\n")


class RunQuiet(RunText):
    """Results and errors only."""

    def progress(self, text: str) -> None:
        """Nothing."""

    def notice(self, app: str, notice: Notice) -> None:
        """Nothing."""

    def replica(self, revision: Revision, replica: Replica) -> None:
        """Nothing."""

    def log(self, line: LogLine, number: str) -> None:
        """Nothing."""

    def retry(self, call: Call, outcome: Outcome, delay: float) -> None:
        """Nothing."""


class RunJson(JsonView):
    """Events: notice, output, replica, log, retry, returned."""

    captures = True

    def __init__(self, outlet: Outlet, *, quiet: bool) -> None:
        super().__init__(outlet)
        self._quiet = quiet

    def log(self, line: LogLine, number: str) -> None:
        """As `serve`."""
        if not self._quiet:
            super().log(line, number)

    def replica(self, revision: Revision, replica: Replica) -> None:
        """As `serve`."""
        if not self._quiet:
            super().replica(revision, replica)

    def line(self, stream: str, line: str) -> None:
        """{"event": "output", "stream", "line"}"""
        self._outlet.write(json_line({"event": "output", "stream": stream, "line": line}))

    def retry(self, call: Call, outcome: Outcome, delay: float) -> None:
        """{"event": "retry", "function", "request_id", "type", "message", "seconds"}"""
        error = outcome.error
        self._outlet.write(
            json_line(
                {
                    "event": "retry",
                    "function": call.name,
                    "request_id": call.id,
                    "type": error["type"],
                    "message": error["message"],
                    "seconds": delay,
                }
            )
        )

    def returned(self, result: Mapping[str, Any], code: int) -> None:
        """{"event": "returned", "exit_code", "result" or "repr"}"""
        shown = {name: result[name] for name in ("result", "repr") if name in result}
        self._outlet.write(json_line({"event": "returned", "exit_code": code, **shown}))
