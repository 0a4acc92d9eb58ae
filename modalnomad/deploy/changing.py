"""What all changes of a deployed App have in common: one at a time, and at any moment it is known whether it holds."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from modalnomad.deploy.apply import Applying, Change
from modalnomad.deploy.report import Report
from modalnomad.deploy.stage import Stage
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendConflict, BackendUnreachable, NotFound, UserError
from modalnomad.model.ids import NAME
from modalnomad.ports.discovery import Discovery

LOCK_LIFETIME: Final = 30.0
"""Seconds after which a dead process's hold on an App ends, at the latest."""
LOCK_NAME_LIMIT: Final = 64

OpenStage = Callable[[], AbstractAsyncContextManager[Stage | None]]
"""The platform that runs; None: none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What came of a change."""

    record: AppRecord
    """As it is now."""
    skipped: bool
    """The App was so before: there is no new version."""
    renewed: tuple[str, ...] = ()
    """Functions that did not change, and whose jobs were registered anew."""
    served: bool
    """A platform runs and serves it."""
    direct_urls: dict[str, str]
    """Host → URL through a port of its own."""


class AppChange:
    """`published` tells at any moment whether the change holds."""

    def __init__(self, discovery: Discovery, stage: OpenStage, report: Report) -> None:
        self._discovery = discovery
        self._stage = stage
        self._report = report
        self._applying: Applying | None = None
        self.changed: Changed | None = None
        """Once all is done."""

    @property
    def published(self) -> bool:
        """Whether the change holds."""
        return self._applying is not None and self._applying.published

    @property
    def record(self) -> AppRecord | None:
        """As it is to be, once that is known."""
        return self._applying.change.after if self._applying else None

    async def apply(self, change: Change) -> None:
        """Do it. Raises as `Applying.run`; BackendUnreachable when a platform runs and does not answer."""
        async with AsyncExitStack() as stack:
            stage = await stack.enter_async_context(self._stage())
            self._applying = Applying(change, self._discovery, stage, self._report)
            await self._applying.run()
            await self._finish(change.after, stage, skipped=False, renewed=self._applying.renewed)

    async def skip(self, record: AppRecord, *, renews: bool = False) -> None:
        """It was so before. `renews`: see `Change`."""
        async with self._stage() as stage:
            renewed = await stage.renew(record.revisions) if renews and stage is not None else ()
            await self._finish(record, stage, skipped=True, renewed=renewed)

    async def _finish(self, record: AppRecord, stage: Stage | None, *, skipped: bool, renewed: tuple[str, ...]) -> None:
        self.changed = Changed(
            record=record,
            skipped=skipped,
            renewed=renewed,
            served=stage is not None and await stage.serving(),
            direct_urls=await direct_urls(stage, record),
        )

    async def present(self, app: str, environment: str) -> AppRecord:
        """See the function of this name."""
        return await present(self._discovery, app, environment)


async def present(discovery: Discovery, app: str, environment: str) -> AppRecord:
    """The App's record as it is. Raises NotFound naming those there are."""
    record = await discovery.app(app, environment)
    if record is None or not record.versions:
        raise await no_such_app(discovery, app, environment)
    return record


async def no_such_app(discovery: Discovery, app: str, environment: str) -> NotFound:
    """Names the Apps there are."""
    names = ", ".join(record.app for record in await discovery.apps(environment)) or "none"
    return NotFound(f"there is no App {app} in environment {environment} (there: {names})", "deploy it first")


async def direct_urls(stage: Stage | None, record: AppRecord) -> dict[str, str]:
    """Of all endpoints the record serves; empty when no platform runs, or not any more: it is not needed."""
    hosts = tuple(route.hosts[0] for route in record.routes)
    if stage is None or not hosts:
        return {}
    try:
        return dict(await stage.direct_urls(hosts))
    except BackendUnreachable:
        return {}


@asynccontextmanager
async def hold_app(discovery: Discovery, app: str, environment: str) -> AsyncIterator[None]:
    """Nobody else deploys, rolls back, stops or scales this App meanwhile. Raises BackendConflict naming who does."""
    async with AsyncExitStack() as held:
        try:
            await held.enter_async_context(discovery.lock(lock_name(app, environment), lifetime=LOCK_LIFETIME))
        except BackendConflict as error:
            raise BackendConflict(
                f"App {app} in environment {environment} is being changed by somebody else: {error.message}",
                "wait until that is done, then try again",
            ) from error
        yield


def lock_name(app: str, environment: str) -> str:
    """Of at most 64 characters. Raises UserError for what is no App's name."""
    if not NAME.fullmatch(app):
        raise UserError(f"{app!r} is not the name of an App", "a name is 1 to 64 letters, digits, '-', '_' and '.'")
    name = f"deploy-{environment}-{app}"
    if len(name) <= LOCK_NAME_LIMIT:
        return name
    return f"{name[: LOCK_NAME_LIMIT - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
