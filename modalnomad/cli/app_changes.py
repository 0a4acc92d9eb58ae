"""`modalnomad app rollback`, `stop`, `scale`: change what is deployed without building anything."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.deploy import CheckOption, StrategyOption
from modalnomad.cli.output import emit, err, out
from modalnomad.deploy.strategy import Strategy
from modalnomad.model.errors import UserError

if TYPE_CHECKING:
    from modalnomad.cli.changing import Told
    from modalnomad.deploy.changing import AppChange, Changed
    from modalnomad.settings import Settings
    from modalnomad.wiring.deploy_parts import DeployParts, Listener

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="Name of the App.")]


def rollback(
    app: AppArgument,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="`v3` or `3`. [default: the version before]")
    ] = None,
    *,
    strategy: StrategyOption = Strategy.ROLLING,
    check: CheckOption = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve an earlier version again, as a new version; nothing is built. Brings a stopped App back, too.

    `app history` shows the versions that are kept.
    """
    from modalnomad.cli.changing import carry_out
    from modalnomad.cli.deploy_view import show_deployed
    from modalnomad.deploy.revising import Rollback
    from modalnomad.wiring.loop import run

    settings = load_settings(env)

    def begin(parts: DeployParts, told: Told) -> tuple[AppChange, Coroutine[Any, Any, None]]:
        change = Rollback(parts.stores, parts.discovery, parts.stage, told, keep=parts.keep)
        return change, change.run(app, settings.environment, version, strategy=strategy, check=check)

    show = partial(show_deployed, as_json=as_json, what="Rollback")
    if code := run(carry_out(settings, begin, show, prunes=True)):
        raise typer.Exit(code)


def stop(
    app: AppArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, also on a terminal.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve nothing of an App any more; what its replicas hold is finished. Its versions are kept.

    On a terminal it asks first.
    """
    from modalnomad.cli.changing import carry_out
    from modalnomad.deploy.revising import Stop
    from modalnomad.wiring.loop import run

    settings = load_settings(env)
    if not yes and not as_json and sys.stdin.isatty() and not _confirmed(settings, app):
        raise typer.Exit(1)

    def begin(parts: DeployParts, told: Told) -> tuple[AppChange, Coroutine[Any, Any, None]]:
        change = Stop(parts.discovery, parts.stage, told)
        return change, change.run(app, settings.environment)

    if code := run(carry_out(settings, begin, partial(_show_stopped, as_json=as_json))):
        raise typer.Exit(code)


def _confirmed(settings: Settings, app: str) -> bool:
    """Ask, with what would end. Raises NotFound."""
    from modalnomad.wiring.loop import run

    question = run(_question(settings, app))
    # Nothing to ask about: `stop` itself says why.
    return question is None or typer.confirm(question, err=True)


async def _question(settings: Settings, app: str) -> str | None:
    from modalnomad.deploy.revising import warm_replicas
    from modalnomad.wiring.deploy import open_deploy

    async with open_deploy(settings) as parts:
        record = await parts.discovery.app(app, settings.environment)
        if record is None or record.current is None:
            return None
        count = await warm_replicas(parts.stage, record.revisions)
    running = "" if count is None else f", {count} replica{'' if count == 1 else 's'} running"
    return f"Stop App {app} of environment {settings.environment} (v{record.version}{running})?"


def _show_stopped(changed: Changed, listener: Listener | None, told: Told, seconds: float, *, as_json: bool) -> None:
    record = changed.record
    if as_json:
        emit(
            {
                "app": record.app,
                "environment": record.environment,
                "stopped": True,
                "version": record.version,
                "kept": [version.number for version in record.versions],
                "served": changed.served,
            }
        )
        return
    out.print(f"App {record.app} is stopped; v{record.version} was its last version.", markup=False)
    out.print(f"Bring it back: modalnomad app rollback {record.app} v{record.version}", style="dim", markup=False)


def scale(
    target: Annotated[str, typer.Argument(metavar="APP/FUNCTION", help="The Function, or one of its endpoints.")],
    *,
    least: Annotated[int | None, typer.Option("--min", min=0, help="Replicas kept at all times.")] = None,
    most: Annotated[int | None, typer.Option("--max", min=1, help="Replicas at most.")] = None,
    spare: Annotated[
        int | None, typer.Option("--buffer", min=0, help="Idle replicas kept beside busy ones while it is used.")
    ] = None,
    window: Annotated[
        float | None, typer.Option("--window", min=0.1, max=31_536_000, help="Idle seconds after which a replica goes.")
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to what the program says.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set how many replicas a Function has, at once and until the next deploy or rollback; without options, show it.

    Only what is given changes. Functions with class parameters have no replicas kept at all times.
    """
    from modalnomad.cli.changing import carry_out
    from modalnomad.deploy.revising import Scale
    from modalnomad.model.routes import ScalingOverride
    from modalnomad.wiring.loop import run

    app, separator, function = target.partition("/")
    if not separator or not app or not function:
        raise UserError(f"{target!r} names no Function of an App", "write APP/FUNCTION; app list shows the Apps")
    given = ScalingOverride(min_containers=least, max_containers=most, buffer_containers=spare, scaledown_window=window)
    nothing = given == ScalingOverride()
    if reset and not nothing:
        raise typer.BadParameter("it goes with no other option", param_hint="--reset")
    settings = load_settings(env)
    if nothing and not reset:
        run(_show_present(settings, app, function, as_json=as_json))
        return

    def begin(parts: DeployParts, told: Told) -> tuple[AppChange, Coroutine[Any, Any, None]]:
        change = Scale(parts.discovery, parts.stage, told)
        return change, change.run(app, settings.environment, function, None if reset else given)

    if code := run(carry_out(settings, begin, partial(_show_scaled, function=function, as_json=as_json))):
        raise typer.Exit(code)


async def _show_present(settings: Settings, app: str, function: str, *, as_json: bool) -> None:
    from modalnomad.cli.changing import Told
    from modalnomad.deploy.changing import Changed, present
    from modalnomad.wiring.records import open_records

    async with open_records(settings) as records:
        record = await present(records.discovery, app, settings.environment)
    changed = Changed(record=record, skipped=True, served=True, direct_urls={})
    _show_scaled(changed, None, Told(), 0.0, function=function, as_json=as_json)


def _show_scaled(
    changed: Changed, listener: Listener | None, told: Told, seconds: float, *, function: str, as_json: bool
) -> None:
    from modalnomad.deploy.revising import scaling_in_force, served_revision

    revision = served_revision(changed.record, function)
    tag = revision.function.tag
    override = changed.record.overrides.get(tag)
    values = scaling_in_force(revision, override)
    by_hand = {} if override is None else override.model_dump(exclude_none=True)
    if as_json:
        record = {"app": revision.app, "environment": revision.environment, "function": tag, **values}
        emit({**record, "by_hand": sorted(by_hand), "served": changed.served})
        return
    out.print(f"{revision.app}/{tag}", style="bold", markup=False)
    for name, value in values.items():
        shown = "no limit" if value is None else f"{value:g} s" if isinstance(value, float) else str(value)
        out.print(f"  {name} = {shown}{'  (set by hand)' if name in by_hand else ''}", markup=False)
    if not changed.served:
        server = "up" if listener is None else listener.server
        who = "platform runs on this home" if server == "up" else "router runs"
        err.print(f"No {who}: it holds once `modalnomad {server}` runs.", markup=False)
