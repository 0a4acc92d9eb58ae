"""`serve` for people."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from modalnomad.cli.outlet import Outlet
from modalnomad.cli.output import err, out, show_error
from modalnomad.cli.serve_view import ServeView, Shown
from modalnomad.model.errors import ModalNomadError
from modalnomad.model.ids import DEFAULT_ENVIRONMENT
from modalnomad.model.manifest import Notice
from modalnomad.model.replica import LogLine, Replica, ReplicaState
from modalnomad.model.revision import Revision
from modalnomad.wiring.ending import requests_in_words

WATCHED_SHOWN = 5
REQUEST_SHOWN = 8
"""Characters of a request id before each line it wrote."""


class TextView(ServeView):
    """Endpoints with URLs, replicas coming and going, their lines behind `function[number] request`. `idle_end`: what
    an end is about when no request is under way."""

    def __init__(self, outlet: Outlet, idle_end: str = "replicas end") -> None:
        self._outlet = outlet
        self._idle_end = idle_end

    def _print(self, text: str, **how: Any) -> None:
        with out.capture() as shown:
            out.print(text, **how)
        self._outlet.write(shown.get())

    def _name(self, app: str, function: str) -> str:
        """Of a function, as it stands before its lines."""
        return function

    async def room(self) -> None:
        """Of standard output."""
        await self._outlet.room()

    def progress(self, text: str) -> None:
        """Dimmed."""
        err.print(text, style="dim", markup=False)

    def output(self, line: str) -> None:
        """As the program wrote it."""
        err.print(line, markup=False)

    def notice(self, app: str, notice: Notice) -> None:
        """One line."""
        where = f" ({notice.where})" if notice.where else ""
        err.print(f"[yellow]Note:[/] {escape(notice.message + where)}")

    def endpoint(self, shown: Shown) -> None:
        """Name, URL, a command that works when pasted."""
        key = " 🔑" if shown.endpoint.requires_proxy_auth else ""
        self._print(f"[green]✓[/] [bold]{escape(endpoint_name(shown))}[/] → {shown.url}{key}")
        for url in shown.custom_urls:
            self._print(f"    {url}", markup=False)
        self._print(f"    {curl(shown)}", style="dim", markup=False)

    def ready(self, watched: Sequence[str]) -> None:
        """How to stop it."""
        here = os.getcwd()
        names = [os.path.relpath(path, here) if path.startswith(here + os.sep) else path for path in watched]
        more = f" and {len(names) - WATCHED_SHOWN} more" if len(names) > WATCHED_SHOWN else ""
        self._print(f"Watching {', '.join(names[:WATCHED_SHOWN])}{more}", style="dim", markup=False)
        self._print("Serving... hit Ctrl-C to stop")

    def reloaded(self, app: str, functions: tuple[str, ...], seconds: float) -> None:
        """One line."""
        changed = f" ({', '.join(functions)})" if functions else ""
        self._print(f"[green]↻[/] {escape(app + changed)} reloaded in {seconds:.2f} s")

    def reload_failed(self, app: str, error: ModalNomadError) -> None:
        """The error; what was served goes on."""
        show_error(error)
        err.print(f"[yellow]↻ {escape(app)} goes on as it was before this change[/]")

    def replica(self, revision: Revision, replica: Replica) -> None:
        """One dimmed line; a failure in red, with its reason."""
        name = f"{self._name(revision.app, revision.function.tag)}[{replica.key.number}]"
        if replica.state is ReplicaState.FAILED and replica.failure is not None:
            self._print(f"[red]✗ {escape(name)} failed: {escape(replica.failure.reason)}[/]")
        else:
            why = f" ({replica.reason})" if replica.state is ReplicaState.STARTING and replica.reason else ""
            self._print(f"· {name} {replica.state.value}{why}", style="dim", markup=False)

    def log(self, line: LogLine, number: str) -> None:
        """Written past rich: lines may be many, and their own colours are kept. Starts and ends are told anyway."""
        if line.stream == "system" and line.text.startswith(("started", "ended", "failed")):
            return
        request = f" {line.request_id[:REQUEST_SHOWN]}" if line.request_id else ""
        prefix = f"{self._name(line.app, line.function)}[{number.split('.')[0]}]{request} | "
        self._outlet.write(f"\x1b[2m{prefix}\x1b[0m{line.text}\n" if out.is_terminal else f"{prefix}{line.text}\n")

    def stopping(self, requests: Mapping[str, int], seconds: float) -> None:
        """What is waited for, how long, and the way round it."""
        waited = f"waiting for {requests_in_words(requests)}" if requests else self._idle_end
        self._print(f"Stopping within {seconds:g} s: {waited}; Ctrl-C again ends all at once", markup=False)


def endpoint_name(shown: Shown) -> str:
    """`<app>/<endpoint>`, with its environment when it is not the usual one."""
    where = f" ({shown.environment})" if shown.environment != DEFAULT_ENVIRONMENT else ""
    return f"{shown.app}/{shown.endpoint.name}{where}"


def curl(shown: Shown) -> str:
    """A command that calls the endpoint; `KEY` and `SECRET` stand for a token's."""
    parts = ["curl"]
    if shown.endpoint.requires_proxy_auth:
        parts += ["-H 'Modal-Key: KEY'", "-H 'Modal-Secret: SECRET'"]
    if shown.endpoint.kind == "fastapi_endpoint" and shown.endpoint.method in {"POST", "PUT", "PATCH"}:
        parts += [f"-X {shown.endpoint.method}", "-H 'Content-Type: application/json'", "-d '{}'"]
    elif shown.endpoint.kind == "fastapi_endpoint" and shown.endpoint.method != "GET":
        parts.append(f"-X {shown.endpoint.method}")
    return " ".join([*parts, shown.direct_url or shown.url])
