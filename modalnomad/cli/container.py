"""`modalnomad container`: the replicas of a running `up`, or of a cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, out, show_table

app = typer.Typer(help="Containers: the replicas that a running `up`, or a cluster, has.", no_args_is_help=True)

REASON_SHOWN = 60


@app.command("list", epilog="Example: `modalnomad container list --app shop`")
def list_(
    app: Annotated[str | None, typer.Option("--app", help="Of this App only.")] = None,
    all_environments: Annotated[bool, typer.Option("--all", "-a", help="Of all environments.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Those that start, serve or end, with what runs on them; on a cluster also those that wait for room, and why."""
    from modalnomad.wiring.loop import run
    from modalnomad.wiring.running import containers

    settings = load_settings(env)
    found = [
        container
        for container in run(containers(settings))
        if (all_environments or container["environment"] == settings.environment) and app in {None, container["app"]}
    ]
    if as_json:
        for container in found:
            emit(container)
    elif found:
        columns: tuple[str, ...] = ("Container", "Function", "State", "Requests", "Age", "Started because of")
        rows = [_row(container, now=time.time()) for container in found]
        if all_environments:
            columns = ("Environment", *columns)
            rows = [(container["environment"], *row) for container, row in zip(found, rows, strict=True)]
        show_table(columns, rows)
    else:
        where = "" if all_environments else f" in environment {settings.environment}"
        out.print(f"No containers run{where}.", markup=False)


def _row(container: Mapping[str, Any], *, now: float) -> Sequence[str]:
    name = f"{container['app']}/{container['function']}"
    if container["parameters"]:
        name += f" {container['parameters']}"
    reason = container["waits"] or container["reason"]
    return (
        container["id"],
        name,
        container["state"],
        "" if container["requests"] is None else str(container["requests"]),
        age(now - container["started_at"]),
        reason if len(reason) <= REASON_SHOWN else reason[: REASON_SHOWN - 1] + "…",
    )


def age(seconds: float) -> str:
    """`12 s`, `5 min`, `3.1 h`, `2.5 d`."""
    seconds = max(0.0, seconds)
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


@app.command(epilog="Example: `modalnomad container stop ct-4f0a`")
def stop(
    container: Annotated[
        str, typer.Argument(metavar="ID", help="As `container list` shows it; a beginning is enough.")
    ],
    *,
    now: Annotated[bool, typer.Option("--now", help="Kill it, with what runs on it.")] = False,
    env: Annotated[str | None, typer.Option("--env", "-e", help="The environment it is in. [default: any]")] = None,
    as_json: JsonOption = False,
) -> None:
    """End one container: it takes no more requests, finishes those it has, and goes.

    When requests, or the Function's min_containers, need one, another is started in its place.
    """
    from modalnomad.wiring.loop import run
    from modalnomad.wiring.running import stop_container

    stopped = run(stop_container(load_settings(env), container, now=now, environment=env))
    if as_json:
        emit({"id": stopped, "killed": now})
    else:
        out.print(f"Container {stopped} is {'gone' if now else 'finishing what it holds, then it goes'}.", markup=False)
