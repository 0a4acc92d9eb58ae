"""Revising what is deployed without building anything: roll back, stop, scale by hand."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from modalnomad.deploy.apply import Change
from modalnomad.deploy.changing import AppChange, OpenStage, hold_app
from modalnomad.deploy.origin import origin
from modalnomad.deploy.report import Report
from modalnomad.deploy.strategy import Strategy
from modalnomad.deploy.versions import (
    check_scaling,
    earlier_version,
    is_unchanged,
    merged,
    next_number,
    overridden,
    revision_of,
    stopped,
    taken_hosts,
    with_version,
)
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.errors import BackendRefused, ManifestInvalid, NotFound, UserError
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import ScalingOverride
from modalnomad.ports.artifacts import Artifacts
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.secrets import Secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Where what a version needs lies."""

    artifacts: Artifacts
    secrets: Secrets
    has_image: Callable[[BuiltImage], Awaitable[bool]]
    """Whether replicas can still be started from it."""


class Rollback(AppChange):
    """An old version again, as a new one."""

    def __init__(self, stores: Stores, discovery: Discovery, stage: OpenStage, report: Report, *, keep: int) -> None:
        """`keep`: versions of an App that are kept."""
        super().__init__(discovery, stage, report)
        self._stores = stores
        self._keep = keep

    async def run(self, app: str, environment: str, to: str | None, *, strategy: Strategy, check: bool) -> None:
        """`to`: `v3`, `3`; None: the one before. Raises NotFound for a version that is not kept, BackendRefused when
        something of it is gone."""
        async with hold_app(self._discovery, app, environment):
            before = await self.present(app, environment)
            old = earlier_version(before, to)
            wanted = [(route.endpoint, route.hosts) for route in old.routes]
            if problems := taken_hosts(app, environment, wanted, await self._discovery.apps()):
                raise ManifestInvalid(problems)
            if is_unchanged(before, old, tag=None):
                await self.skip(before)
                return
            await refuse_missing(app, old, self._stores)
            version = await self._again(old, next_number(before))
            after = with_version(before, version, environment, app, keep=self._keep)
            await self.apply(Change(before=before, after=after, strategy=strategy, check=check))

    async def _again(self, old: AppVersion, number: int) -> AppVersion:
        made = await origin()
        return old.model_copy(
            update={
                "number": number,
                "deployed_at": time.time(),
                "deployed_by": made.deployed_by,
                "client": made.client,
                "note": f"rollback to v{old.number}",
            }
        )


async def refuse_missing(app: str, version: AppVersion, stores: Stores) -> None:
    """Raises SecretMissing; BackendRefused naming what was taken away by hand of what is kept for the version."""
    for revision in version.revisions:
        await stores.secrets.check(revision.secrets, revision.environment)
    gone: dict[str, None] = {}
    for bundle in dict.fromkeys(revision.bundle for revision in version.revisions):
        try:
            await stores.artifacts.locate(bundle)
        except NotFound:
            gone[f"its source (bundle {bundle[:12]})"] = None
    for revision in version.revisions:
        if not await stores.has_image(revision.image):
            gone[f"the image of {revision.function.tag} ({revision.image.digest[:12]})"] = None
    if gone:
        raise BackendRefused(
            f"v{version.number} of App {app} cannot be served again, as something of it was removed: {', '.join(gone)}",
            "deploy that program again; what kept versions need is not to be removed by hand",
        )


class Stop(AppChange):
    """Nothing of the App is served any more."""

    async def run(self, app: str, environment: str) -> None:
        """Raises UserError when that is so already."""
        async with hold_app(self._discovery, app, environment):
            before = await self.present(app, environment)
            await self.apply(Change(before=before, after=stopped(before, time.time())))


class Scale(AppChange):
    """Scaling of one Function set by hand, until the next version."""

    async def run(self, app: str, environment: str, name: str, values: ScalingOverride | None) -> None:
        """`name`: of the Function, or of one of its endpoints. `values`: those that are given change, None takes all
        of them back. Raises NotFound, or UserError for what `check_scaling` refuses."""
        async with hold_app(self._discovery, app, environment):
            before = await self.present(app, environment)
            revision = served_revision(before, name)
            tag = revision.function.tag
            present = before.overrides.get(tag, ScalingOverride())
            wanted = ScalingOverride() if values is None else merged(present, values)
            check_scaling(revision.function, wanted, given=values or ScalingOverride())
            if wanted == present:
                await self.skip(before)
            else:
                await self.apply(Change(before=before, after=overridden(before, tag, wanted)))


def served_revision(record: AppRecord, name: str) -> Revision:
    """Of the Function of that name. Raises UserError when the App is stopped, NotFound."""
    if record.current is None:
        raise UserError(
            f"App {record.app} in environment {record.environment} is stopped: there is nothing to scale",
            f"bring it back first: modalnomad app rollback {record.app} v{record.version}",
        )
    return revision_of(record, name)


def scaling_in_force(revision: Revision, override: ScalingOverride | None) -> dict[str, Any]:
    """What holds now, by the names Modal gives them."""
    declared = revision.function.scaling.model_dump(include=set(ScalingOverride.model_fields))
    return declared | ({} if override is None else override.model_dump(exclude_none=True))


async def warm_replicas(stage: OpenStage, revisions: Sequence[Revision]) -> int | None:
    """Replicas of these that are ready or starting; None: no platform runs."""
    async with stage() as platform:
        if platform is None:
            return None
        return sum([sum((await platform.warm_counts(revision.id)).values()) for revision in revisions])
