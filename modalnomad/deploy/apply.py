"""Apply: from one record of an App to the next, so that a version that cannot start never replaces one that can.

    prepare ─▶ warm ─▶ publish (one atomic write) ─▶ served ─▶ strategy recreate: old replicas end
    └──── a failure or an interrupt leaves all as it was ┘└ from here on the new record holds, whatever happens ┘

Without a running platform only the record is written.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Final

from modalnomad.deploy.prewarming import Prewarm, prewarm_all
from modalnomad.deploy.report import Report
from modalnomad.deploy.stage import Stage
from modalnomad.deploy.strategy import Strategy
from modalnomad.deploy.warming import all_or_first_error, as_warm, replacements
from modalnomad.kit.clock import Clock, monotonic
from modalnomad.kit.tasks import Tasks
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendError, ModalNomadError
from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Function, Notice
from modalnomad.model.revision import Revision
from modalnomad.ports.discovery import Discovery, PublishApp

SERVED_WITHIN: Final = 60.0
"""Seconds a running platform may take to follow a record; it looks several times a second."""
STAYS_WARM: Final = 1.0
"""Seconds that replicas which were just started stay in any case: less than any scaledown window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One App's record before and after."""

    before: AppRecord | None
    after: AppRecord
    strategy: Strategy = Strategy.ROLLING
    check: bool = False
    """Start one replica of each new revision first."""
    prewarm: Prewarm | None = None
    """Make environments on all machines first; None: the first replica there does."""
    renews: bool = False
    """What is served before and after starts as the settings say now, once the change holds."""

    @property
    def old(self) -> tuple[Revision, ...]:
        """Served before."""
        return self.before.revisions if self.before else ()

    @property
    def new(self) -> tuple[Revision, ...]:
        """Served after and not before."""
        known = {revision.id for revision in self.old}
        return tuple(revision for revision in self.after.revisions if revision.id not in known)

    @property
    def kept(self) -> tuple[Revision, ...]:
        """Served before and after."""
        known = {revision.id for revision in self.old}
        return tuple(revision for revision in self.after.revisions if revision.id in known)

    @property
    def gone(self) -> tuple[Revision, ...]:
        """Served before and not after."""
        kept = {revision.id for revision in self.after.revisions}
        return tuple(revision for revision in self.old if revision.id not in kept)


class Applying:
    """One change on its way. `published` tells at any moment whether it holds."""

    def __init__(
        self, change: Change, discovery: Discovery, stage: Stage | None, report: Report, *, clock: Clock = monotonic
    ) -> None:
        self.change = change
        self._clock = clock
        self._discovery = discovery
        self._stage = stage
        self._report = report
        self._old = {revision.function.tag: revision for revision in change.old}
        self.published = False
        self.renewed: tuple[str, ...] = ()
        """Functions that did not change, and start otherwise from now on."""

    async def run(self) -> None:
        """To the end. Raises UserCodeFailed or BackendError, which say whether the change holds. Cancelled before it
        holds it leaves nothing; cancelled later it holds, and the platform goes on by itself."""
        try:
            if self._stage is not None:
                await self._make_ready(self._stage)
            await self._publish()
            if self._stage is not None:
                await self._take_over(self._stage)
        except ModalNomadError as error:
            error.hint = self._outcome_words(error.hint)
            raise

    def _outcome_words(self, hint: str | None) -> str:
        after = self.change.after
        if self.published:
            what = f"App {after.app} is stored as {in_words(after)}; whatever serves this environment goes on with it"
        else:
            before = self.change.before
            what = f"nothing was changed: App {after.app} stays {in_words(before)}" if before else "nothing was stored"
        return f"{hint}; {what}" if hint else what

    async def _make_ready(self, stage: Stage) -> None:
        change = self.change
        await all_or_first_error([stage.prepare(revision) for revision in change.new])
        if change.prewarm is not None:
            await prewarm_all(change.after.revisions, change.prewarm, self._report)
        apart = {revision.id for revision in change.new if await self._replaces_apart(stage, revision)}
        wanted: dict[tuple[RevisionId, str], int] = {}
        if change.strategy is Strategy.ROLLING and await stage.serving():
            for before, revision in replacements(change.new, self._old):
                if revision.id not in apart:
                    warm = as_warm(before, revision, await stage.warm_counts(before.id))
                    wanted |= {(revision.id, parameters): count for parameters, count in warm.items()}
        if change.check:
            for revision in change.new:
                if (why := why_unchecked(revision, apart=revision.id in apart)) is not None:
                    self._report.notice(revision.app, why)
                else:
                    wanted.setdefault((revision.id, default_parameters(revision.function) or ""), 1)
        by_id = {revision.id: revision for revision in change.new}
        if wanted:
            names = sorted({by_id[id].function.tag for id, _ in wanted})
            self._report.progress(f"Starting {', '.join(names)} before anything is switched over")
        began = self._clock()
        for _ in range(2):
            await all_or_first_error(
                [stage.warm(by_id[id], parameters, count) for (id, parameters), count in wanted.items()]
            )
            if len(wanted) < 2 or self._clock() - began < STAYS_WARM:
                break  # else the first may have gone idle, and cold, while the last one started
        for before, revision in replacements(change.new, self._old):
            if revision.id in apart:
                await stage.follow(before.id, revision.id)

    async def _replaces_apart(self, stage: Stage, revision: Revision) -> bool:
        return revision.function.tag in self._old and await stage.apart(revision)

    async def _publish(self) -> None:
        """Not given up half-way: afterwards it is known whether it was written."""
        change = self.change
        cancelled: asyncio.CancelledError | None = None
        async with Tasks("publish") as tasks:
            write = tasks.spawn(self._write(PublishApp(change.after, change.after.serial - 1)), "write")
            while not write.done():
                try:
                    await asyncio.wait([write])
                except asyncio.CancelledError as error:
                    cancelled = error
        self.published = (failure := write.result()) is None
        if cancelled is not None:
            raise cancelled
        if failure is not None:
            raise failure

    async def _write(self, publish: PublishApp) -> ModalNomadError | None:
        try:
            await self._discovery.publish(publish)
        except ModalNomadError as error:
            return error
        return None

    async def _take_over(self, stage: Stage) -> None:
        change, after = self.change, self.change.after
        if change.renews:
            self.renewed = await stage.renew(change.kept)
        try:
            async with asyncio.timeout(SERVED_WITHIN):
                await stage.served(after.app, after.environment, after.serial)
        except TimeoutError:
            raise BackendError(f"the running platform did not take it up within {SERVED_WITHIN:g} s") from None
        if change.strategy is Strategy.RECREATE:
            await all_or_first_error([stage.end(revision.id) for revision in change.gone])


def in_words(record: AppRecord) -> str:
    """`v3`, `v3 (stopped)`."""
    return f"v{record.version}" + ("" if record.stopped_at is None else " (stopped)")


def why_unchecked(revision: Revision, *, apart: bool) -> Notice | None:
    """Why no replica of it can be started ahead, to be said; None: it can."""
    function = revision.function
    if not function.endpoints:
        why = "it has no web endpoint"
    elif default_parameters(function) is None:
        missing = [parameter.name for parameter in function.parameters if not parameter.has_default]
        why = f"its class parameters have no default ({', '.join(missing)})"
    elif apart:
        why = "it cannot run beside the version that is served now (a fixed port or the only GPU)"
    else:
        return None
    return Notice(code="not_checked", message=f"{function.tag} is not checked: {why}", where=function.where)


def default_parameters(function: Function) -> str | None:
    """The pool (`PoolKey.parameters`) of a request that names no class parameter; None: there is no such pool."""
    if not function.parameters:
        return ""
    if not all(parameter.has_default for parameter in function.parameters):
        return None
    values = {parameter.name: parameter.default for parameter in function.parameters}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
