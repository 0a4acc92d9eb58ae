"""How every command that changes a deployed App runs: interruptible, and clear about what holds then."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from rich.markup import escape

from modalnomad.cli.interrupts import Interrupts
from modalnomad.cli.output import err, show_error
from modalnomad.deploy.changing import AppChange, Changed
from modalnomad.deploy.report import Report
from modalnomad.model.errors import BackendError, ImageBuildFailed, ModalNomadError
from modalnomad.model.manifest import Notice
from modalnomad.settings import Settings
from modalnomad.wiring.deploy import open_deploy
from modalnomad.wiring.deploy_parts import DeployParts, Listener
from modalnomad.wiring.prune import prune

INTERRUPTED = 130
UNTOUCHED = "nothing was changed"


class Told(Report):
    """Standard error; notices are kept for the answer."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def progress(self, text: str) -> None:
        """Dimmed."""
        err.print(text, style="dim", markup=False)

    def output(self, line: str) -> None:
        """As the program wrote it."""
        err.print(line, markup=False)

    def notice(self, app: str, notice: Notice) -> None:
        """One line."""
        self.notices.append(notice)
        where = f" ({notice.where})" if notice.where else ""
        err.print(f"[yellow]Note:[/] {escape(notice.message + where)}")

    def reloaded(self, app: str, functions: tuple[str, ...], seconds: float) -> None:
        """Of `serve` only."""

    def reload_failed(self, app: str, error: ModalNomadError) -> None:
        """Of `serve` only."""
        show_error(error)


Begin = Callable[[DeployParts, Told], tuple[AppChange, Coroutine[Any, Any, None]]]
"""A change, and the work that makes it."""
Show = Callable[[Changed, Listener, Told, float], None]
"""Tell what came of it; the last argument is the seconds it took."""


async def carry_out(settings: Settings, begin: Begin, show: Show, *, prunes: bool = False) -> int:
    """Exit code. `prunes`: what nothing needs any more afterwards goes. Raises ModalNomadError, which says whether the
    change holds."""
    begun = time.monotonic()
    told = Told()
    change: AppChange | None = None
    with Interrupts() as interrupts:
        try:
            async with open_deploy(settings) as parts:
                change, work = begin(parts, told)
                if not await interrupts.race(work):
                    err.print(interrupted(change), markup=False)
                    return INTERRUPTED
                assert change.changed is not None
                seconds = time.monotonic() - begun
                show(change.changed, await parts.listener(change.changed.served), told, seconds)
        except (BackendError, ImageBuildFailed) as error:
            if change is None or change.record is None:  # later on, the change itself says what holds
                error.hint = f"{error.hint}; {UNTOUCHED}" if error.hint else UNTOUCHED
            raise
        if prunes and not change.changed.skipped:
            await interrupts.race(_prune(settings))
    return 0


async def _prune(settings: Settings) -> None:
    """By the rules of `modalnomad prune`. Nothing that fails here is a matter of the change itself."""
    try:
        pruned = await prune(settings)
    except BackendError as error:
        err.print(f"Not pruned: {error.message}", style="dim", markup=False)
        return
    if pruned.freed:
        err.print(f"Pruned {pruned.freed / 1e6:.1f} MB that no kept version needs.", style="dim", markup=False)
    for problem in pruned.problems:
        err.print(f"Not pruned: {problem}", style="dim", markup=False)


def interrupted(change: AppChange) -> str:
    """What holds after all."""
    if change.record is None or not change.published:
        return "Interrupted: nothing was published; what was served before still is."
    state = "stopped" if change.record.stopped_at is not None else f"v{change.record.version}"
    return f"Interrupted, but App {change.record.app} is published: {state}."
