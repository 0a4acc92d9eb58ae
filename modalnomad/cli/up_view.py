"""What `up` tells beside what `serve` tells too, for people and for programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

from rich.markup import escape

from modalnomad.cli.serve_json import JsonView
from modalnomad.cli.serve_text import TextView, endpoint_name
from modalnomad.cli.serve_view import Shown
from modalnomad.model.ids import DEFAULT_ENVIRONMENT
from modalnomad.model.replica import LogLine, Replica
from modalnomad.model.revision import Revision


class UpView(Protocol):
    """One of `UpText` and `UpJson`."""

    def endpoint(self, shown: Shown) -> None:
        """An endpoint is served, newly or under another URL."""

    def endpoint_gone(self, shown: Shown) -> None:
        """An endpoint is served no more."""

    def up(self, url: str, home: str, endpoints: int, admin_url: str | None) -> None:
        """All that is deployed is served; `url`: of the listener; `admin_url`: of the admin listener, if there is
        one."""

    def version(self, environment: str, app: str, functions: tuple[str, ...], number: int | None) -> None:
        """Another version of an App is served; None: its record cannot be read now."""

    def replica(self, revision: Revision, replica: Replica) -> None:
        """A replica's state changed."""

    def log(self, line: LogLine, number: str) -> None:
        """A replica wrote a line."""

    async def room(self) -> None:
        """Return when there is room for one more of many lines."""

    def stopping(self, requests: Mapping[str, int], seconds: float) -> None:
        """The orderly end has begun and takes `seconds` at most."""

    def progress(self, text: str) -> None:
        """What the end waits for."""


class UpJson(JsonView):
    """Events: endpoint, endpoint_gone, ready, reloaded, replica, log, stopping."""

    def up(self, url: str, home: str, endpoints: int, admin_url: str | None) -> None:
        """{"event": "ready", "url", "home", "pid", "endpoints", "admin_url"}"""
        self._emit(
            {
                "event": "ready",
                "url": url,
                "home": home,
                "pid": os.getpid(),
                "endpoints": endpoints,
                "admin_url": admin_url,
            }
        )

    def endpoint_gone(self, shown: Shown) -> None:
        """{"event": "endpoint_gone", "app", "environment", "name", "label", "url"}"""
        self._emit(
            {
                "event": "endpoint_gone",
                "app": shown.app,
                "environment": shown.environment,
                "name": shown.endpoint.name,
                "label": shown.label,
                "url": shown.url,
            }
        )

    def version(self, environment: str, app: str, functions: tuple[str, ...], number: int | None) -> None:
        """{"event": "reloaded", "app", "environment", "functions", "version"}"""
        self._emit(
            {"event": "reloaded", "app": app, "environment": environment, "functions": functions, "version": number}
        )


class UpText(TextView):
    """One line each."""

    def _name(self, app: str, function: str) -> str:
        return f"{app}/{function}"

    def up(self, url: str, home: str, endpoints: int, admin_url: str | None) -> None:
        """Where, and how to stop it."""
        if not endpoints:
            self._print("Nothing is deployed yet: modalnomad deploy FILE")
        if admin_url is not None:
            self._print(f"Metrics, health, /debug: {admin_url}", markup=False)
        self._print(f"Serving {home} on {url}... hit Ctrl-C to stop", markup=False)

    def endpoint_gone(self, shown: Shown) -> None:
        """Name and URL."""
        self._print(f"[yellow]✗[/] [bold]{escape(endpoint_name(shown))}[/] is served no more ({shown.url})")

    def version(self, environment: str, app: str, functions: tuple[str, ...], number: int | None) -> None:
        """App, version, and what changed."""
        where = f" ({environment})" if environment != DEFAULT_ENVIRONMENT else ""
        which = f"version {number}" if number is not None else "another version"
        changed = f": {', '.join(functions)}" if functions else ""
        self._print(f"[green]↻[/] {escape(app + where)} {which} is served{escape(changed)}")
