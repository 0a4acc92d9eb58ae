"""Deployment: one program from its file to a new version of its App.

    collect ─▶ validate ─▶ (the App is ours from here on) ─▶ hosts free? ─▶ secrets, images, bundle ─▶ compare ─▶ apply

What fails on the way leaves the App as it was.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from modalnomad.deploy.apply import Applying, Change, Strategy
from modalnomad.deploy.build import Builder
from modalnomad.deploy.collect import Reference, collect
from modalnomad.deploy.origin import origin
from modalnomad.deploy.plan import Plan
from modalnomad.deploy.report import Report
from modalnomad.deploy.stage import Stage
from modalnomad.deploy.versions import is_unchanged, next_number, taken_hosts, with_version
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.errors import BackendConflict, ManifestInvalid
from modalnomad.ports.discovery import Discovery

LOCK_LIFETIME: Final = 30.0
"""Seconds after which a dead process's hold on an App ends, at the latest."""
LOCK_NAME_LIMIT: Final = 64

OpenStage = Callable[[], AbstractAsyncContextManager[Stage | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for."""

    reference: Reference
    name: str | None = None
    """Overrides the App's own."""
    tag: str | None = None
    strategy: Strategy = Strategy.ROLLING
    check: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What came of a change."""

    record: AppRecord
    skipped: bool
    """Nothing was changed, nothing was done."""
    served: bool
    """A platform runs and serves it."""
    direct_urls: dict[str, str]
    """Host → URL through a port of its own."""


class Deployment:
    """`published` tells at any moment whether the new version holds."""

    def __init__(self, builder: Builder, discovery: Discovery, stage: OpenStage, report: Report, *, keep: int) -> None:
        """`keep`: versions of an App that are kept."""
        self._builder = builder
        self._discovery = discovery
        self._stage = stage
        self._report = report
        self._keep = keep
        self._applying: Applying | None = None
        self.plan: Plan | None = None
        """Once it is known."""
        self.deployed: Deployed | None = None
        """Once all is done."""

    @property
    def published(self) -> bool:
        """Whether the new version holds."""
        return self._applying is not None and self._applying.published

    @property
    def record(self) -> AppRecord | None:
        """As it is to be, once that is known."""
        return self._applying.change.after if self._applying else None

    async def run(self, wanted: Wanted) -> None:
        """To the end. Raises ModalNomadError: the App is as it was unless the error says otherwise."""
        description = await collect(wanted.reference, on_output=self._report.output)
        self.plan = plan = self._builder.plan(description, wanted.name)
        for notice in dict.fromkeys((*plan.notices, *await self._builder.engine.remarks(plan.functions))):
            self._report.notice(plan.app, notice)
        async with hold_app(self._discovery, plan.app, plan.environment):
            before = await self._discovery.app(plan.app, plan.environment)
            await self._refuse_taken(plan)
            candidate = await self._builder.build(description, plan, self._report)
            version = await self._version(plan, plan.version(candidate.revisions, next_number(before)), wanted)
            unchanged = is_unchanged(before, version, tag=wanted.tag)
            async with self._stage() as stage:
                if before is not None and unchanged:
                    after = before
                else:
                    after = with_version(before, version, plan.environment, plan.app, keep=self._keep)
                    change = Change(before=before, after=after, strategy=wanted.strategy, check=wanted.check)
                    self._applying = Applying(change, self._discovery, stage, self._report)
                    await self._applying.run()
                self.deployed = Deployed(
                    record=after,
                    skipped=unchanged,
                    served=stage is not None,
                    direct_urls=await direct_urls(stage, after),
                )

    async def _refuse_taken(self, plan: Plan) -> None:
        """Before anything is built; publishing compares again."""
        wanted = [(named.endpoint, named.hosts) for named in plan.named]
        if problems := taken_hosts(plan.app, plan.environment, wanted, await self._discovery.apps()):
            raise ManifestInvalid(problems)

    async def _version(self, plan: Plan, version: AppVersion, wanted: Wanted) -> AppVersion:
        made = await origin(plan.manifest.source)
        return version.model_copy(
            update={
                "deployed_at": time.time(),
                "deployed_by": made.deployed_by,
                "client": made.client,
                "commit": made.commit,
                "dirty": made.dirty,
                "tag": wanted.tag or "",
            }
        )


async def direct_urls(stage: Stage | None, record: AppRecord) -> dict[str, str]:
    """Of all endpoints the record serves; empty when no platform runs."""
    hosts = tuple(route.hosts[0] for route in record.routes)
    return dict(await stage.direct_urls(hosts)) if stage is not None and hosts else {}


@asynccontextmanager
async def hold_app(discovery: Discovery, app: str, environment: str) -> AsyncIterator[None]:
    """Nobody else deploys, rolls back, stops or scales this App meanwhile. Raises BackendConflict naming who does."""
    async with AsyncExitStack() as held:
        try:
            await held.enter_async_context(discovery.lock(lock_name(app, environment), lifetime=LOCK_LIFETIME))
        except BackendConflict as error:
            raise BackendConflict(
                f"App {app} in environment {environment} is being changed by somebody else: {error.message}",
                "wait until that is done, then try again; nothing was changed by this one",
            ) from error
        yield


def lock_name(app: str, environment: str) -> str:
    """Of at most 64 characters."""
    name = f"deploy-{environment}-{app}"
    if len(name) <= LOCK_NAME_LIMIT:
        return name
    import hashlib

    return f"{name[: LOCK_NAME_LIMIT - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
