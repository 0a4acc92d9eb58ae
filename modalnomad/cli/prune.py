"""`modalnomad prune`: what a home or a cluster gathers over the years, and which of it goes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.image import size
from modalnomad.cli.output import emit, err, out, show_table
from modalnomad.model.errors import UserError

if TYPE_CHECKING:
    from modalnomad.ports.pruning import Item
    from modalnomad.settings import Settings
    from modalnomad.wiring.pruning import Plan, Pruned

KINDS = {
    "App": "Apps",
    "job": "jobs of revisions",
    "artifact": "artifacts",
    "bundle": "bundles of source",
    "unpacked": "unpacked bundles",
    "image": "images",
    "secret": "values of Secret.from_dict",
    "log": "logs",
}
SHOWN = 20
"""Things of one kind that are listed by name."""


def prune(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what nothing needs any more, of all environments, and show what stays.

    Kept: everything the kept versions of each App need (settings `keep_versions`, `keep_stopped`, `keep_images`), what
    runs, and what a deploy or `serve` under way has stored. Every deploy does the same by itself. Named secrets and
    tokens never go; logs of a cluster are kept by its nodes, as long as Nomad has the replica.

    Example: `modalnomad prune --dry-run`
    """
    settings = load_settings(env)
    plan = asyncio.run(_plan(settings))
    if not as_json:
        _show(plan)
    if dry_run or not plan.goes:
        if as_json:
            _emit(plan.items, plan.problems, done=False)
        return
    if not yes:
        _ask(plan, as_json=as_json)
    pruned = asyncio.run(_carry_out(settings, plan))
    if as_json:
        gone = {_key(item) for item in pruned.removed}
        stays = [item for item in plan.items if _key(item) not in gone]
        _emit([*pruned.removed, *stays], pruned.problems, done=True, gone=gone)
    else:
        _told(plan, pruned)
    if pruned.problems:
        raise typer.Exit(1)


async def _plan(settings: Settings) -> Plan:
    from modalnomad.wiring.prune import open_pruning

    async with open_pruning(settings) as pruning:
        return await pruning.plan()


async def _carry_out(settings: Settings, plan: Plan) -> Pruned:
    from modalnomad.wiring.prune import open_pruning

    async with open_pruning(settings) as pruning:
        return await pruning.carry_out(plan)


def _ask(plan: Plan, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise UserError("nothing is removed without being asked for", "add --yes, or --dry-run to see what would go")
    if not typer.confirm(f"Remove {len(plan.goes)} things?", default=False):
        raise typer.Exit(1)


def _show(plan: Plan) -> None:
    rows = []
    for kind, words in KINDS.items():
        of_kind = [item for item in plan.items if item.kind == kind]
        goes, stays = [i for i in of_kind if i.goes], [i for i in of_kind if not i.goes]
        if of_kind:
            rows.append((words, str(len(goes)), _sum(goes), str(len(stays)), _sum(stays)))
    if rows:
        show_table(("What", "Goes", "Size", "Stays", "Size"), rows)
    for kind in KINDS:
        named = [item for item in plan.goes if item.kind == kind]
        for item in named[:SHOWN]:
            where = f" ({item.environment})" if item.environment else ""
            name = item.name[:12] if kind in {"artifact", "bundle", "unpacked", "image"} else item.name
            out.print(f"goes: {kind} {name}{where}, {size(item.size)}: {item.why}", markup=False)
        if len(named) > SHOWN:
            out.print(f"goes: and {len(named) - SHOWN} more of this kind")
    for problem in plan.problems:
        err.print(f"Not looked at: {problem}", markup=False)
    if not plan.goes:
        out.print("Nothing goes.")


def _told(plan: Plan, pruned: Pruned) -> None:
    out.print(f"{len(pruned.removed)} removed, {size(pruned.freed)} freed.")
    if stayed := len(plan.goes) - len(pruned.removed):
        out.print(f"{stayed} stayed: in use by now, or not to be removed.")
    for problem in pruned.problems:
        err.print(f"Not removed: {problem}", markup=False)


def _emit(items: Iterable[Item], problems: Iterable[str], *, done: bool, gone: Iterable[Any] = ()) -> None:
    for item in items:
        record = asdict(item)
        del record["key"]
        emit({"event": "item", **record, "removed": done and _key(item) in gone})
    for problem in problems:
        emit({"event": "problem", "message": problem})


def _key(item: Item) -> tuple[str, str, str]:
    return item.kind, item.environment, item.key or item.name


def _sum(items: Iterable[Item]) -> str:
    return size(sum(item.size for item in items))
