"""`modalnomad app logs`: what an App's replicas wrote, from the files that `up` keeps."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.model.errors import UserError
from modalnomad.model.ids import NAME

if TYPE_CHECKING:
    from modalnomad.embedded.log_reader import LogReader, Wanted
    from modalnomad.model.replica import LogLine
    from modalnomad.settings import Settings

DEFAULT_LINES = 100
LOOK_EVERY = 0.2
"""Seconds between two looks for new lines."""
REQUEST_SHOWN = 8
"""Characters of a request id before each line it wrote."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Source(StrEnum):
    """Who wrote a line; `system`: the platform, about a replica."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"


def logs(
    app: Annotated[str, typer.Argument(metavar="APP", help="Name of the App.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From there on: `10m`, `2h`, `1d` ago, or `2026-03-01T12:00`.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Up to there; the same forms.")] = None,
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", min=0, help=f"The newest N lines. [default: {DEFAULT_LINES}; all with --since]"),
    ] = None,
    function: Annotated[str | None, typer.Option(help="Of this Function alone.")] = None,
    replica: Annotated[
        str | None, typer.Option(metavar="N.E", help="Of this replica alone, as `container list` names it.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Written for this request, as its answer's X-Request-Id says.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Lines with this text in them.")] = None,
    source: Annotated[
        list[Source] | None,
        typer.Option(
            "--source", "-s", help="By whom; `system`: what the platform says of replicas. May be given again."
        ),
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Begin each line with its time.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """What an App's replicas wrote under `up`, also when `up` does not run.

    On a cluster: as long as Nomad's nodes have it. Their lines carry no times; those shown are of the replica's start.
    """
    from modalnomad.embedded.log_reader import LogReader, Wanted
    from modalnomad.wiring.home import home_of

    if follow and until is not None:
        raise typer.BadParameter("it cannot be combined with --until", param_hint="--follow")
    now = time.time()
    wanted = Wanted(
        since=moment(since, now, "--since"),
        until=moment(until, now, "--until"),
        function=function,
        replica=replica,
        request_id=request_id,
        search=search,
        sources=frozenset(kind.value for kind in source or ()),
    )
    settings = load_settings(env)
    if not NAME.fullmatch(app):
        raise UserError(f"{app!r} is not the name of an App", "a name is 1 to 64 of A-Z, a-z, 0-9, _, . and -")
    show: Callable[[LogLine], str] = as_record if as_json else Text(timestamps, sys.stdout.isatty())
    if settings.backend == "hashicorp":
        from modalnomad.cli.cluster_logs import show_cluster_logs

        show_cluster_logs(settings, app, wanted, show, follow=follow, tail=_wanted_lines(wanted, tail))
        return
    reader = LogReader(home_of(settings), settings.environment, app, wanted)
    try:
        if not reader.found:
            _explain_nothing(settings, app, follow=follow)
        _print(show(line) for line in _past(reader, wanted, tail))
        if follow:
            _follow(reader, show)
    except KeyboardInterrupt:
        if not follow:
            raise
    except BrokenPipeError:
        # Whoever read has seen enough: `| head` is no failure. Nothing more can be told, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        reader.close()


def _past(reader: LogReader, wanted: Wanted, tail: int | None) -> Iterable[LogLine]:
    lines = _wanted_lines(wanted, tail)
    return reader.all() if lines is None else reader.last(lines)


def _wanted_lines(wanted: Wanted, tail: int | None) -> int | None:
    """None: all."""
    return None if tail is None and wanted.since is not None else DEFAULT_LINES if tail is None else tail


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line)
    sys.stdout.flush()


def _follow(reader: LogReader, show: Callable[[LogLine], str]) -> None:
    """Until the reader of our output goes, or Ctrl-C."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    while True:
        _print(show(line) for line in reader.more())
        if output.poll(LOOK_EVERY * 1000):
            raise BrokenPipeError


def _explain_nothing(settings: Settings, app: str, *, follow: bool) -> None:
    """An App without a log: one that was deployed may write yet. Raises NotFound for any other."""
    import asyncio

    from modalnomad.cli.output import err
    from modalnomad.embedded.log_segments import app_folders, app_named
    from modalnomad.model.errors import NotFound
    from modalnomad.wiring.records import with_records

    records = asyncio.run(with_records(settings, lambda records: records.discovery.apps()))
    known = {(record.environment, record.app) for record in records}
    known |= {(folder.parent.name, app_named(folder.name)) for folder in app_folders(settings.home)}
    if (settings.environment, app) in known:
        waiting = "waiting for it" if follow else "`modalnomad up` serves it and keeps its log"
        err.print(f"App {app} has written nothing yet; {waiting}.", markup=False)
        return
    here = sorted(name for environment, name in known if environment == settings.environment)
    elsewhere = sorted(environment for environment, name in known if name == app)
    hint = f"it is in environment {elsewhere[0]}: add --env {elsewhere[0]}" if elsewhere else None
    if not hint:
        hint = f"there are: {', '.join(here)}" if here else "none was deployed here: modalnomad deploy FILE"
    raise NotFound(f"there is no App {app} in environment {settings.environment}", hint)


class Text:
    """Lines for people, as `serve` shows them: `function[number] request | text`."""

    def __init__(self, timestamps: bool, colour: bool) -> None:
        self._timestamps = timestamps
        self._dim, self._plain = ("\x1b[2m", "\x1b[0m") if colour and not os.environ.get("NO_COLOR") else ("", "")

    def __call__(self, line: LogLine) -> str:
        when = f"{iso(line.time)} " if self._timestamps else ""
        request = f" {line.request_id[:REQUEST_SHOWN]}" if line.request_id else ""
        number = line.replica_name.partition(".")[0]
        who = f"{line.function}[{number}]{request}" if line.function else "modalnomad"
        text = f"· {line.text}" if line.stream == "system" else line.text
        return f"{self._dim}{when}{who} |{self._plain} {text}\n"


def as_record(line: LogLine) -> str:
    """One JSON object, with the names `serve --json` uses."""
    from modalnomad.cli.output import json_line

    return json_line(
        {
            "event": "log",
            "time": line.time,
            "environment": line.environment,
            "app": line.app,
            "function": line.function,
            "revision": line.replica[:32],
            "replica": line.replica_name,
            "stream": line.stream,
            "line": line.text,
            "request_id": line.request_id,
        }
    )


def iso(seconds: float) -> str:
    """Local time with its offset, to the millisecond."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def moment(text: str | None, now: float, option: str) -> float | None:
    """`10m` ago, or an ISO time (local, unless it says another zone), as Unix time. Raises BadParameter."""
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return now - float(ago[1]) * UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(
            f"{text!r} is no time: 30s, 10m, 2h or 1d ago, or 2026-03-01, 2026-03-01T12:00, 2026-03-01T12:00:00Z",
            param_hint=option,
        ) from None
