"""Discovery in Consul's KV: one key per App and per token, compare-and-set to write, blocking queries to watch."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from modalnomad.hashicorp.consul.api import LONGEST_WAIT, ConsulApi, Entry, Found, Op, TxnRefused
from modalnomad.hashicorp.consul.cache import Cache, Table
from modalnomad.hashicorp.consul.following import Follower
from modalnomad.hashicorp.consul.lock import hold
from modalnomad.hashicorp.consul.records import APPS, KINDS, TOKENS, Keys, Reader, decode, encode, guard_value
from modalnomad.hashicorp.consul.sessions import LEAST_TTL
from modalnomad.hashicorp.http import ServerRefused
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import (
    BackendConflict,
    BackendError,
    BackendRefused,
    BackendUnreachable,
    Problem,
    UserError,
)
from modalnomad.model.ids import NAME
from modalnomad.model.routes import RouteSnapshot, Token
from modalnomad.ports.discovery import AppRecord, Change, DeleteToken, Discovery, PublishApp, PutToken, WithdrawApp
from modalnomad.ports.publishing import check_change, check_serial, no_app, no_token, snapshot_of

RECONCILE: Final = 60.0
"""Seconds after which everything is read anew."""
FIRST_WAIT: Final = 2.0
"""Seconds a first answer may take; then what the last process saw is served."""
TRIES: Final = 30
"""Of one write, when others write at the same time."""
VALUE_LIMIT: Final = 512 * 1024
"""Bytes Consul takes in one request unless its servers are told otherwise."""

Content = tuple[tuple[AppRecord, ...], tuple[Token, ...]]


class ConsulDiscovery(Discovery):
    """Port `Discovery` on Consul. `cache`: file that keeps the last known good table; None: none is kept.

    What cannot be had or believed never empties the table of a watcher: `stale_since` says so. The other calls ask
    Consul each time, and raise BackendUnreachable, ServerRefused when it does not answer rightly.
    """

    def __init__(
        self,
        api: ConsulApi,
        *,
        prefix: str,
        cache: Path | None = None,
        reconcile: float = RECONCILE,
        least_ttl: float = LEAST_TTL,
    ) -> None:
        self._api = api
        self._keys = Keys(prefix)
        self._cache = Cache(cache, prefix) if cache is not None else None
        self._reconcile = reconcile
        self._least_ttl = least_ttl
        self._readers = {kind: Reader(self._keys, kind) for kind in KINDS}
        self._known: dict[str, Found[Entry]] = {}
        self._stale: dict[str, float] = {}
        """Kind → Unix time since when what is known of it is not confirmed."""
        self._loaded = False
        self._saved_at = 0.0
        self._saving = asyncio.Lock()

    @property
    def stale_since(self) -> float | None:
        """Unix time since when Consul has not confirmed what the watchers were last given; None: it has."""
        return min(self._stale.values(), default=None)

    # --- watching --------------------------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[RouteSnapshot]:
        """The current snapshot at once, then one per change. While Consul is down: what is known, if need be from the
        cache; nothing is known: nothing until it answers."""
        await self._load()
        looked: Cell[dict[str, bool]] = Cell({})
        deaths: list[BaseException] = []

        def died(name: str, error: BaseException) -> None:
            deaths.append(error)
            looked.set(dict.fromkeys(KINDS, True))

        last: Content | None = None
        index = 0
        async with Tasks("discovery", died) as tasks:
            for kind in KINDS:
                tasks.guard(self._follow(kind, looked), kind)
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_WAIT):
                    await looked.until(lambda seen: len(seen) == len(KINDS))
            async with aclosing(looked.watch()) as changes:  # type: ignore[type-var]
                async for _ in changes:
                    if deaths:
                        raise deaths[0]
                    if self._known.keys() != set(KINDS):
                        continue
                    # Records may be large: whoever is being answered need not wait for them.
                    if (found := await asyncio.to_thread(self._content)) != last:
                        last, index = found, index + 1
                        yield snapshot_of(*found, index)

    async def _follow(self, kind: str, looked: Cell[dict[str, bool]]) -> None:
        def doubt(reason: str) -> None:
            self._stale.setdefault(kind, time.time())
            looked.set({**looked.value, kind: False})

        follower = Follower(
            f"records below {self._keys.folder(kind)}",
            partial(self._seen, kind),
            reconcile=self._reconcile,
            known=self._known.get(kind),
            on_doubt=doubt,
        )
        async with aclosing(follower.answers()) as answers:  # type: ignore[type-var]
            async for found in answers:
                changed = self._known.get(kind) != found
                self._known[kind] = found
                self._stale.pop(kind, None)
                looked.set({**looked.value, kind: True})
                if changed or time.monotonic() >= self._saved_at + self._reconcile:
                    await self._save()

    def _content(self) -> Content:
        apps = self._readers[APPS].records(self._known[APPS].items, whole=True)
        tokens = self._readers[TOKENS].records(self._known[TOKENS].items, whole=True)
        return tuple(a for a in apps if isinstance(a, AppRecord)), tuple(t for t in tokens if isinstance(t, Token))

    async def _load(self) -> None:
        """What the last process saw, once."""
        if self._loaded or self._cache is None:
            return
        self._loaded = True
        tables, saved_at = await asyncio.to_thread(self._cache.load)
        for kind, table in tables.items():
            if kind in KINDS and kind not in self._known:
                self._readers[kind].remember(table.stand_ins)
                self._known[kind] = table.found
                self._stale[kind] = saved_at

    async def _save(self) -> None:
        if self._cache is None or self._known.keys() != set(KINDS):
            return
        async with self._saving:
            self._saved_at = time.monotonic()
            await asyncio.to_thread(self._keep, self._cache)

    def _keep(self, cache: Cache) -> None:
        known = dict(self._known)
        self._content()
        cache.save({kind: Table(known[kind], self._readers[kind].stand_ins) for kind in KINDS})

    # --- reading ---------------------------------------------------------------------------------------------

    async def app(self, name: str, environment: str) -> AppRecord | None:
        """The App's record as it is now."""
        found = await self._api.get(self._keys.app(name, environment), consistent=True)
        record = decode(found.items[0], APPS) if found.items else None
        return record if isinstance(record, AppRecord) else None

    async def apps(self, environment: str | None = None) -> tuple[AppRecord, ...]:
        """Every App's record, stopped ones too. One that cannot be read is logged, and its last readable content, if
        this process saw one, stands in for it."""
        records = self._readers[APPS].records((await self._tree(APPS)).items)
        found = (record for record in records if isinstance(record, AppRecord))
        return tuple(
            sorted((a for a in found if environment in {None, a.environment}), key=lambda a: (a.environment, a.app))
        )

    async def problems(self) -> tuple[Problem, ...]:
        """The records that cannot be read now."""
        found: list[Problem] = []
        for kind in KINDS:
            found += self._readers[kind].problems((await self._tree(kind)).items)
        return tuple(found)

    async def tokens(self, environment: str) -> tuple[Token, ...]:
        """All tokens of an environment, by id."""
        records = self._readers[TOKENS].records((await self._tree(TOKENS)).items)
        return tuple(t for t in records if isinstance(t, Token) and t.environment == environment)

    async def _seen(self, kind: str, *, index: int = 0, wait: float = LONGEST_WAIT, consistent: bool) -> Found[Entry]:
        found = await self._api.tree(self._keys.folder(kind), index=index, wait=wait, consistent=consistent)
        if not found.items and not found.filtered:
            # Who shows no token is not told that keys were left out. A read of one key is refused.
            await self._api.get(self._keys.guard(kind), consistent=consistent)
        return found

    async def _tree(self, kind: str) -> Found[Entry]:
        found = await self._seen(kind, consistent=True)
        if found.filtered:
            raise BackendRefused(
                f"{self._api.where} shows this token only a part of the keys below {self._keys.folder(kind)}",
                f"give it `key_prefix` read on all of {self._keys.prefix}/; "
                f"it comes from {self._api.http.server.token_setting}",
            )
        return found

    # --- writing ---------------------------------------------------------------------------------------------

    async def publish(self, change: Change) -> None:
        """One transaction, with the guard key of its kind. Raises as the port says; BackendRefused when the record is
        too large for Consul. When the answer is lost, what became of it is looked up."""
        match change:
            case PublishApp():
                await self._write(APPS, partial(self._published, change))
            case WithdrawApp():
                await self._write(APPS, partial(self._withdrawn, change))
            case PutToken(token):
                key = self._keys.token(token.id, token.environment)
                await self._write(TOKENS, lambda found: Op("set", key, encode(token)))
            case DeleteToken(id, environment):
                await self._write(TOKENS, partial(self._deleted, id, environment))

    def _published(self, change: PublishApp, found: dict[str, Entry]) -> Op:
        key = self._keys.app(change.record.app, change.record.environment)
        present = found.pop(key, None)
        record = decode(present, APPS) if present else None
        others = [r for r in self._readers[APPS].records(found.values()) if isinstance(r, AppRecord)]
        check_change(change, record if isinstance(record, AppRecord) else None, others)
        return Op("cas", key, encode(change.record), present.index if present else 0)

    def _withdrawn(self, change: WithdrawApp, found: dict[str, Entry]) -> Op:
        key = self._keys.app(change.app, change.environment)
        if (present := found.get(key)) is None:
            raise no_app(change.app, change.environment)
        if change.expected is not None and isinstance(record := decode(present, APPS), AppRecord):
            check_serial(record.app, record.environment, record.serial, change.expected)
        return Op("delete-cas", key, index=present.index)

    def _deleted(self, id: str, environment: str, found: dict[str, Entry]) -> Op:
        key = self._keys.token(id, environment)
        if (present := found.get(key)) is None:
            raise no_token(id, environment)
        return Op("delete-cas", key, index=present.index)

    async def _write(self, kind: str, plan: Callable[[dict[str, Entry]], Op]) -> None:
        guard, reason = self._keys.guard(kind), ""
        for _ in range(TRIES):
            found = {entry.key: entry for entry in (await self._tree(kind)).items}
            seen = found.pop(guard).index if guard in found else 0
            operation = plan(found)
            try:
                await self._api.txn([operation, Op("cas", guard, guard_value(), seen)])
            except TxnRefused as refused:
                # Somebody else wrote: look again, for it may be in our way now.
                reason = refused.text
                await asyncio.sleep(random.random() * 0.05)
                continue
            except (BackendUnreachable, ServerRefused) as error:
                if not await self._done(operation, error):
                    raise
            return
        raise BackendConflict(
            f"others wrote to {self._keys.folder(kind)} of {self._api.where} at each of {TRIES} tries: {reason}",
            "try again",
        )

    async def _done(self, operation: Op, error: BackendError) -> bool:
        """Whether a write whose answer was lost was done all the same. Raises BackendRefused: it was too large."""
        size = len(operation.value or b"")
        status = error.status if isinstance(error, ServerRefused) else None
        if status == 413 or (status is None and size * 4 // 3 > VALUE_LIMIT):
            raise BackendRefused(
                f"the record {operation.key} is too large for {self._api.where}: {size} bytes compressed, "
                f"{size * 4 // 3} as they are sent, and Consul takes {VALUE_LIMIT} unless it is told otherwise",
                "keep fewer versions (nomad.keep_versions), or raise kv_max_value_size and txn_max_req_len in the "
                "`limits` of Consul's servers",
            ) from error
        if status is not None and status < 500:
            return False
        try:
            found = (await self._api.get(operation.key, consistent=True)).items
        except BackendError:
            return False
        return not found if operation.value is None else bool(found) and found[0].value == operation.value

    def lock(self, name: str, *, lifetime: float) -> AbstractAsyncContextManager[None]:
        """Hold the named lock: see `lock.hold` for how its loss is told."""
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is not the name of a lock")
        return hold(self._api, self._keys.lock(name), name, lifetime=lifetime, least=self._least_ttl)
