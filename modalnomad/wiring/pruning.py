"""Pruning: look at everything that is stored, decide what goes, remove it while others work beside."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from modalnomad.deploy.image_admin import all_records
from modalnomad.embedded.prune import outstayed
from modalnomad.model.apps import AppRecord, needed_by
from modalnomad.model.errors import BackendConflict, BackendError, NotFound
from modalnomad.ports.discovery import Discovery, WithdrawApp
from modalnomad.ports.pruning import Item, Rule, Shelf


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is stored, by kind, and what could not be looked at."""

    items: tuple[Item, ...]
    problems: tuple[str, ...]

    @property
    def goes(self) -> tuple[Item, ...]:
        """What is to be removed."""
        return tuple(item for item in self.items if item.goes)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, each with the bytes that were freed, and what could not be, in words."""

    removed: tuple[Item, ...]
    problems: tuple[str, ...]

    @property
    def freed(self) -> int:
        """Bytes."""
        return sum(item.size for item in self.removed)


class Pruning:
    """One home's, or one cluster's. Safe beside `up`, `serve`, routers, deploys and builds of images: whatever they may
    need stays."""

    def __init__(
        self,
        discovery: Discovery,
        shelves: Mapping[str, Shelf],
        *,
        keep_stopped: float,
        put_before: Callable[[float], Awaitable[float]],
        tidy: Callable[[], Awaitable[None]],
    ) -> None:
        """`shelves`: by the kind of their items. `keep_stopped`: days. `put_before`: now → as in `Rule`. `tidy`: what
        belongs to no shelf."""
        self._discovery = discovery
        self._shelves = shelves
        self._keep_stopped = keep_stopped
        self._put_before = put_before
        self._tidy = tidy

    async def plan(self) -> Plan:
        """Removes nothing. Raises BackendRefused when a record cannot be read."""
        now = time.time()
        since = await self._put_before(now)
        records = await all_records(self._discovery)
        kept = [record for record in records if not self._outstayed(record, now)]
        items = [_app_item(record, goes=self._outstayed(record, now)) for record in records]
        rule = _rule(kept, since, now)
        problems = []
        for shelf in self._shelves.values():
            try:
                items += await shelf.look(rule)
            except BackendError as error:
                problems.append(in_words(error))
        return Plan(tuple(items), tuple(problems))

    def _outstayed(self, record: AppRecord, now: float) -> bool:
        return outstayed(record, now, self._keep_stopped)

    async def carry_out(self, plan: Plan) -> Pruned:
        """Remove what goes by the plan and by now still may. Never raises for a thing that cannot be removed."""
        removed, problems = [], list(plan.problems)
        for item in plan.goes:
            try:
                freed = await self._remove(item)
            except BackendError as error:
                problems.append(in_words(error))
            else:
                if freed is not None:
                    removed.append(replace(item, size=freed))
        for tidy in (*(shelf.tidy for shelf in self._shelves.values()), self._tidy):
            try:
                await tidy()
            except BackendError as error:
                problems.append(in_words(error))
        return Pruned(tuple(removed), tuple(problems))

    async def _remove(self, item: Item) -> int | None:
        if item.kind in self._shelves:
            return await self._shelves[item.kind].remove(item, self._rule_now)
        try:
            await self._discovery.publish(WithdrawApp(item.name, item.environment, expected=int(item.key)))
        except (BackendConflict, NotFound):
            return None  # deployed again, or gone
        return item.size

    async def _rule_now(self) -> Rule:
        now = time.time()
        since = await self._put_before(now)
        return _rule(await all_records(self._discovery), since, now)


def _rule(records: Sequence[AppRecord], since: float, now: float) -> Rule:
    apps = frozenset((record.environment, record.app) for record in records)
    return Rule(needed_by(records), apps, put_before=since, now=now)


def _app_item(record: AppRecord, *, goes: bool) -> Item:
    count = f"{len(record.versions)} version{'s' if len(record.versions) != 1 else ''}"
    if record.stopped_at is None:
        why = f"{count}, served"
    else:
        why = f"{count}, stopped on {time.strftime('%Y-%m-%d', time.localtime(record.stopped_at))}"
    return Item("App", record.app, 0, goes, why, record.environment, str(record.serial))


def in_words(error: BackendError) -> str:
    """With what to do next."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
