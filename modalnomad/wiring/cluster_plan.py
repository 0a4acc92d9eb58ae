"""What a deploy would change on Nomad: each Function's job as it is and as it would be, and whether any node could run
it. Nothing is built, stored or registered."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from modalnomad.deploy.bundle import make_bundle
from modalnomad.deploy.origin import deployer
from modalnomad.deploy.plan import Plan
from modalnomad.deploy.planning import Comparison
from modalnomad.deploy.scratch import scratch_folder
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.hashicorp.nomad.changes import job_changes
from modalnomad.hashicorp.nomad.explaining import explain
from modalnomad.hashicorp.nomad.parents import Parents
from modalnomad.model.errors import UserError
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Image
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.settings import ArtifactSettings, Settings
from modalnomad.wiring.cluster import Cluster, open_cluster, renderer
from modalnomad.wiring.program_text import no_text

NOT_MADE: Final = Digest("0" * 64)
"""In place of an image that a deploy would have to make first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """One Function's job."""

    function: str
    job: str
    """Its id in Nomad: of the one that is registered, or that would be."""
    registered: bool
    """It is there already, as the job of what is served or of the same revision."""
    changes: tuple[str, ...]
    """What is to be another, in Nomad's own names."""
    answer: Literal["yes", "not_now", "never"]
    """Whether a replica would get a place."""
    reason: str
    guessed: bool
    """Its image is not made yet: names that follow from it are not known."""


async def plan_jobs(settings: Settings, comparison: Comparison) -> tuple[JobPlan, ...]:
    """For each Function, in the order of the program. Raises BackendError; UserError for what Nomad cannot run."""
    async with open_cluster(settings) as cluster:
        with scratch_folder("modalnomad-plan-") as folder:
            keys = await cluster.platform_keys()
            # The archive that starts replicas is put where nobody reads it: only its name is needed.
            scratch = ObjectArtifacts(ArtifactSettings(store=str(folder / "artifacts")), cluster.home)
            rendering = renderer(cluster, keys, deployer(), no_text, archives=scratch)
            parents = Parents(cluster.nomad, rendering, cluster.next_version)
            bundle = await asyncio.to_thread(_bundle, comparison.plan, folder)
            images = dict(_images(comparison, docker=settings.nomad.driver == "docker"))
            before = comparison.before
            newest = before.versions[-1].revisions if before is not None and before.versions else ()
            served = {revision.function.tag: revision for revision in newest}
            return tuple(
                [
                    await _plan(cluster, parents, revision, served.get(revision.function.tag))
                    for revision in comparison.plan.revisions(bundle, images)
                ]
            )


async def _plan(cluster: Cluster, parents: Parents, revision: Revision, served: Revision | None) -> JobPlan:
    verdict = await explain(cluster.nomad, parents, revision)
    job, replaces, changes = "", False, tuple[str, ...]()
    with suppress(UserError):  # then it is the reason of the verdict
        body, replaces = await parents.body_beside(revision, served.id if served is not None else None)
        job = str(body["Job"]["ID"])
        if replaces:
            diff = (await cluster.nomad.plan(body["Job"], diff=True)).get("Diff") or {}
            # What differs by the revision's name alone says nothing, unless it is the same revision.
            changes = job_changes(diff, () if served is None or served.id == revision.id else (revision.id, served.id))
    return JobPlan(
        function=revision.function.tag,
        job=job,
        registered=replaces,
        changes=changes,
        answer=verdict.answer,
        reason=verdict.reason,
        guessed=revision.image.digest == NOT_MADE,
    )


def _bundle(plan: Plan, folder: Path) -> Digest:
    made = make_bundle(plan.manifest.source, plan.functions, folder / "bundle.tar.gz")
    with made.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def _images(comparison: Comparison, *, docker: bool) -> Iterator[tuple[str, BuiltImage]]:
    """By Function: the one it has now, where it is declared the same; it may still be another one, made of newer
    files."""
    reference = f"not-made@sha256:{NOT_MADE}" if docker else None
    unmade = BuiltImage(digest=NOT_MADE, python="", pack=None if docker else NOT_MADE, reference=reference)
    known: dict[str, BuiltImage] = {}
    versions = comparison.before.versions if comparison.before is not None else ()
    for revision in (revision for version in versions for revision in version.revisions):
        if (revision.image.reference is not None) == docker:
            known[_declared(revision.function.image)] = revision.image
    for function in comparison.plan.functions:
        yield function.tag, known.get(_declared(function.image), unmade)


def _declared(image: Image | None) -> str:
    return image.model_dump_json(exclude={"where"}) if image is not None else ""
