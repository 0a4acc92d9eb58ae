"""Planning: everything a deploy looks at before it builds, told instead of done."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modalnomad.deploy.build import Builder
from modalnomad.deploy.bundle import make_bundle, missing_sources
from modalnomad.deploy.collect import Reference, collect
from modalnomad.deploy.compare import CodeChange, Difference, compare
from modalnomad.deploy.plan import Plan
from modalnomad.deploy.report import Report
from modalnomad.deploy.scratch import scratch_folder
from modalnomad.deploy.versions import taken_hosts
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import ManifestInvalid, NotFound, SecretMissing
from modalnomad.ports.artifacts import Artifacts
from modalnomad.ports.discovery import Discovery


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A program beside what is deployed of its App."""

    plan: Plan
    before: AppRecord | None
    differences: tuple[Difference, ...]
    obstacles: tuple[str, ...]
    """What would make the deploy fail as things are."""


async def compare_program(
    reference: Reference,
    name: str | None,
    *,
    builder: Builder,
    discovery: Discovery,
    artifacts: Artifacts,
    report: Report,
) -> Comparison:
    """Reads, writes nothing. Raises UserCodeFailed, ManifestInvalid or UserError for a program no deploy would take."""
    description = await collect(reference, on_output=report.output)
    plan = builder.plan(description, name)
    if problems := missing_sources(description, plan.functions):
        raise ManifestInvalid(problems)
    for notice in await builder.notices(plan):
        report.notice(plan.app, notice)
    before = await discovery.app(plan.app, plan.environment)
    wanted = [(named.endpoint, named.hosts) for named in plan.named]
    taken = taken_hosts(plan.app, plan.environment, wanted, await discovery.apps())
    obstacles = [str(problem) for problem in taken]
    try:
        # Values written in the program become secrets when it is deployed.
        named = [ref for ref in plan.secrets if ref.name is not None]
        await builder.secrets.check(named, plan.environment)
    except SecretMissing as error:
        obstacles.append(error.message)
    code = await _code_change(plan, before, artifacts)
    newer = await asyncio.to_thread(_newer_files, plan, before)
    return Comparison(
        plan=plan,
        before=before,
        differences=compare(plan, before, code, newer),
        obstacles=tuple(obstacles),
    )


async def _code_change(plan: Plan, before: AppRecord | None, artifacts: Artifacts) -> CodeChange | None:
    """None: the old source is not there."""
    if before is None or not before.versions or not before.versions[-1].revisions:
        return CodeChange()
    with scratch_folder("modalnomad-plan-") as folder:
        old = folder / "old.tar.gz"
        try:
            await artifacts.get(before.versions[-1].revisions[0].bundle, old)
        except NotFound:
            return None
        return await asyncio.to_thread(_compare_bundles, plan, old, folder)


def _compare_bundles(plan: Plan, old: Path, folder: Path) -> CodeChange:
    new = make_bundle(plan.manifest.source, plan.functions, folder / "bundle.tar.gz")
    return CodeChange.between(dict(_files(old)), dict(_files(new)))


def _files(bundle: Path) -> Iterator[tuple[str, str]]:
    """Path → digest of the content, with what may run told apart from what may not."""
    with tarfile.open(bundle) as tar:
        for entry in tar:
            if entry.isfile() and (content := tar.extractfile(entry)) is not None:
                yield entry.name, f"{entry.mode:o} {hashlib.file_digest(content, 'sha256').hexdigest()}"  # type: ignore[arg-type]


def _newer_files(plan: Plan, before: AppRecord | None) -> dict[str, tuple[str, ...]]:
    """Function → local files that its image's steps read and that were written since the last deploy."""
    if before is None or not before.versions:
        return {}
    since = before.versions[-1].deployed_at
    found = {
        function.tag: tuple(
            os.path.basename(file) for step in function.image.steps for file in step.files if _written(file) > since
        )
        for function in plan.functions
        if function.image is not None
    }
    return {tag: files for tag, files in found.items() if files}


def _written(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0.0
