"""Deployment: one program from its file to a new version of its App.

    collect ─▶ validate ─▶ (the App is ours from here on) ─▶ hosts free? ─▶ secrets, images, bundle ─▶ compare ─▶ apply

What fails on the way leaves the App as it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from modalnomad.deploy.apply import Change
from modalnomad.deploy.build import Builder
from modalnomad.deploy.changing import AppChange, OpenStage, hold_app
from modalnomad.deploy.collect import Reference, collect
from modalnomad.deploy.origin import origin
from modalnomad.deploy.plan import Plan
from modalnomad.deploy.prewarming import Prewarm, prewarm_all
from modalnomad.deploy.report import Report
from modalnomad.deploy.strategy import Strategy
from modalnomad.deploy.versions import is_unchanged, next_number, taken_hosts, with_version
from modalnomad.model.apps import AppVersion
from modalnomad.model.errors import ManifestInvalid
from modalnomad.ports.discovery import Discovery


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for."""

    reference: Reference
    name: str | None = None
    """Overrides the App's own."""
    tag: str | None = None
    strategy: Strategy = Strategy.ROLLING
    check: bool = False
    prewarm: Prewarm | None = None
    """Makes environments on all machines first."""


class Deployment(AppChange):
    """A new version, made from a program."""

    def __init__(self, builder: Builder, discovery: Discovery, stage: OpenStage, report: Report, *, keep: int) -> None:
        """`keep`: versions of an App that are kept."""
        super().__init__(discovery, stage, report)
        self._builder = builder
        self._keep = keep

    async def run(self, wanted: Wanted) -> None:
        """To the end. Raises ModalNomadError: the App is as it was unless the error says otherwise."""
        description = await collect(wanted.reference, on_output=self._report.output)
        plan = self._builder.plan(description, wanted.name)
        for notice in await self._builder.notices(plan):
            self._report.notice(plan.app, notice)
        async with hold_app(self._discovery, plan.app, plan.environment):
            before = await self._discovery.app(plan.app, plan.environment)
            await self._refuse_taken(plan)
            candidate = await self._builder.build(description, plan, self._report)
            version = await self._version(plan, plan.version(candidate.revisions, next_number(before)), wanted)
            if before is not None and is_unchanged(before, version, tag=wanted.tag):
                if wanted.prewarm is not None:  # machines may be new
                    await prewarm_all(before.revisions, wanted.prewarm, self._report)
                await self.skip(before, renews=True)
            else:
                after = with_version(before, version, plan.environment, plan.app, keep=self._keep)
                change = Change(
                    before=before,
                    after=after,
                    strategy=wanted.strategy,
                    check=wanted.check,
                    prewarm=wanted.prewarm,
                    renews=True,
                )
                await self.apply(change)

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
