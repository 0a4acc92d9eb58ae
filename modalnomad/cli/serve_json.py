"""`serve --json`: one event a line on standard output. Build output and warnings go to standard error as text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from modalnomad.cli.outlet import Outlet
from modalnomad.cli.output import error_record, json_line
from modalnomad.cli.serve_view import ServeView, Shown
from modalnomad.model.errors import ModalNomadError
from modalnomad.model.manifest import Notice
from modalnomad.model.replica import LogLine, Replica
from modalnomad.model.revision import Revision


class JsonView(ServeView):
    """Events: notice, endpoint, ready, reloaded, reload_failed, replica, log, stopping."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def _emit(self, record: Mapping[str, Any]) -> None:
        self._outlet.write(json_line(record))

    async def room(self) -> None:
        """Of standard output."""
        await self._outlet.room()

    def progress(self, text: str) -> None:
        """To standard error."""
        print(text, file=sys.stderr, flush=True)

    def output(self, line: str) -> None:
        """To standard error."""
        print(line, file=sys.stderr, flush=True)

    def notice(self, app: str, notice: Notice) -> None:
        """{"event": "notice", "app", "code", "message", "where"}"""
        self._emit(
            {"event": "notice", "app": app, "code": notice.code, "message": notice.message, "where": notice.where}
        )

    def endpoint(self, shown: Shown) -> None:
        """{"event": "endpoint", "name", "label", "url", "direct_url", "auth", …}"""
        self._emit(
            {
                "event": "endpoint",
                "app": shown.app,
                "environment": shown.environment,
                "name": shown.endpoint.name,
                "kind": shown.endpoint.kind,
                "label": shown.label,
                "url": shown.url,
                "direct_url": shown.direct_url,
                "custom_urls": shown.custom_urls,
                "auth": shown.endpoint.requires_proxy_auth,
            }
        )

    def ready(self, watched: Sequence[str]) -> None:
        """{"event": "ready", "watched"}"""
        self._emit({"event": "ready", "watched": watched})

    def reloaded(self, app: str, functions: tuple[str, ...], seconds: float) -> None:
        """{"event": "reloaded", "app", "functions", "seconds"}"""
        self._emit({"event": "reloaded", "app": app, "functions": functions, "seconds": round(seconds, 3)})

    def reload_failed(self, app: str, error: ModalNomadError) -> None:
        """{"event": "reload_failed", "app", "message", "hint", "output"}"""
        self._emit({"event": "reload_failed", "app": app, **error_record(error)})

    def replica(self, revision: Revision, replica: Replica) -> None:
        """{"event": "replica", "app", "function", "replica", "state", "reason", …}"""
        failure = replica.failure
        self._emit(
            {
                "event": "replica",
                "app": revision.app,
                "environment": revision.environment,
                "function": revision.function.tag,
                "revision": revision.id,
                "pool": str(replica.key.pool),
                "replica": replica.key.name,
                "state": replica.state.value,
                "reason": replica.reason,
                "failure": failure and {"code": failure.code, "reason": failure.reason, "exit_code": failure.exit_code},
            }
        )

    def log(self, line: LogLine, number: str) -> None:
        """{"event": "log", "app", "function", "replica", "stream", "line", "request_id", "time"}"""
        self._emit(
            {
                "event": "log",
                "app": line.app,
                "function": line.function,
                "replica": number,
                "stream": line.stream,
                "line": line.text,
                "request_id": line.request_id,
                "time": line.time,
            }
        )

    def stopping(self, requests: Mapping[str, int], seconds: float) -> None:
        """{"event": "stopping", "requests", "seconds"}: functions with what they still answer, and for how long."""
        self._emit({"event": "stopping", "requests": requests, "seconds": seconds})
