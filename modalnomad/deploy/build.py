"""Build: from a description to revisions that can be started.

    validate → secrets exist? → images and bundle → could anything run it? → prepared

Nothing is built before every check that needs no build has passed; nothing is started here at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from modalnomad.deploy.hosts import Naming
from modalnomad.deploy.images import check_images
from modalnomad.deploy.plan import Plan, is_used, make_plan
from modalnomad.deploy.report import Report
from modalnomad.model.errors import ManifestInvalid, Problem
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Description, Function, Image, Notice, Source
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.ports.engine import Engine
from modalnomad.ports.secrets import Secrets

Bundler = Callable[[Description, tuple[Function, ...]], Awaitable[Digest]]
"""Packs the local source of these functions and stores it."""
Note = Callable[[Collection[RevisionId]], None]


class ImageBuilder(Protocol):
    """Resolves and builds one image of the program at `source`; None is the platform's own. Raises ImageBuildFailed or
    UserError."""

    async def __call__(self, image: Image | None, report: Callable[[str], None], source: Source) -> BuiltImage: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """An App whose revisions are built: it can be published at any moment."""

    description: Description
    plan: Plan
    revisions: tuple[Revision, ...]

    @property
    def ids(self) -> frozenset[RevisionId]:
        """Of its revisions."""
        return frozenset(revision.id for revision in self.revisions)

    def serves_like(self, other: Candidate) -> bool:
        """No caller could tell the two apart."""
        return (
            self.ids == other.ids
            and self.plan.app == other.plan.app
            and [named.hosts for named in self.plan.named] == [named.hosts for named in other.plan.named]
        )

    @property
    def by_tag(self) -> dict[str, Revision]:
        """Revision of each served function."""
        return {revision.function.tag: revision for revision in self.revisions}


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Everything that turns descriptions into candidates, for one environment."""

    engine: Engine
    secrets: Secrets
    images: ImageBuilder
    bundles: Bundler
    naming: Naming
    ephemeral: bool
    containers: bool = False
    """Replicas run in some."""
    prepares: bool = True
    """False: `engine` runs nothing, it is only asked what could run; whoever runs the revisions prepares them."""

    def plan(self, description: Description, name: str | None = None) -> Plan:
        """Raises ManifestInvalid or UserError."""
        return plan_program(description, self.naming, ephemeral=self.ephemeral, name=name, containers=self.containers)

    async def notices(self, plan: Plan) -> tuple[Notice, ...]:
        """All there is to say of it on this back end, each thing once. Raises BackendError."""
        return tuple(dict.fromkeys((*plan.notices, *await self.engine.remarks(plan.functions))))

    async def build(
        self, description: Description, plan: Plan, report: Report, note: Note = lambda revisions: None
    ) -> Candidate:
        """`note` is told what is about to be prepared: the engine goes on with it, also when this is cancelled. Raises
        UserError for the program's problems, BackendError for the machine's."""
        await self.store_anonymous(description)
        await self.secrets.check(plan.secrets, plan.environment)
        revisions = await make_revisions(description, plan, report, images=self.images, bundles=self.bundles)
        await self._refuse_unplaceable(revisions)
        if self.prepares:
            await self._prepare(revisions, note)
        return Candidate(description, plan, revisions)

    async def guess(self, last: Candidate, note: Note) -> tuple[Revision, ...]:
        """The revisions that an edit gives when it leaves all declarations as they are: same description, new bundle.
        Prepared; whether the guess holds is known when the program has been described again. `note`: see `build`."""
        bundle = await self.bundles(last.description, last.plan.functions)
        images = {tag: revision.image for tag, revision in last.by_tag.items()}
        revisions = last.plan.revisions(bundle, images)
        await self._prepare(revisions, note)
        return revisions

    async def _prepare(self, revisions: Collection[Revision], note: Note) -> None:
        note([revision.id for revision in revisions])
        await asyncio.gather(*(self.engine.prepare(revision) for revision in revisions))

    async def store_anonymous(self, description: Description) -> None:
        """Values written in the program become secrets behind the port."""
        for digest, values in description.anonymous_secrets.items():
            await self.secrets.create_anonymous(digest, self.naming.environment, values)

    async def _refuse_unplaceable(self, revisions: tuple[Revision, ...]) -> None:
        problems = []
        for revision in revisions:
            verdict = await self.engine.explain(revision)
            if verdict.answer == "never":
                function = revision.function
                problems.append(
                    Problem(function.where or function.tag, f"{function.tag} cannot run here: {verdict.reason}")
                )
        if problems:
            raise ManifestInvalid(problems)


def plan_program(
    description: Description, naming: Naming, *, ephemeral: bool, name: str | None = None, containers: bool = False
) -> Plan:
    """All that can be checked without building, images included. Raises ManifestInvalid or UserError."""
    used = (function for function in description.app.functions if is_used(function, ephemeral=ephemeral))
    problems, notices = check_images(used, containers=containers)
    return make_plan(description, naming, ephemeral=ephemeral, name=name, problems=problems, notices=notices)


async def make_revisions(
    description: Description, plan: Plan, report: Report, *, images: ImageBuilder, bundles: Bundler
) -> tuple[Revision, ...]:
    """Images and bundle, and what follows from them; nobody is asked about secrets or nodes. Raises UserError,
    BackendError."""
    built, bundle = await asyncio.gather(_images(plan, report, images), bundles(description, plan.functions))
    return plan.revisions(bundle, built)


async def _images(plan: Plan, report: Report, images: ImageBuilder) -> dict[str, BuiltImage]:
    """Each distinct image once, one after the other: their output stays readable."""
    built: dict[str, BuiltImage] = {}
    by_tag: dict[str, BuiltImage] = {}
    for function in plan.functions:
        same = function.image.model_dump_json(exclude={"where"}) if function.image else ""
        if same not in built:
            built[same] = await images(function.image, report.progress, plan.manifest.source)
        by_tag[function.tag] = built[same]
    return by_tag
