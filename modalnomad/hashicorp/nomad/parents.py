"""A revision's job: registered when it is missing or another one, found again, taken away with its replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.nomad.api import NomadApi, Shape, readable
from modalnomad.hashicorp.nomad.shapes import Allocation, allocation_of, job_of
from modalnomad.model.errors import BackendConflict, BackendRefused
from modalnomad.model.replica import ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.render.cluster import META_PREFIX, META_REVISION, META_SPEC, TASK, environment_of, namespace_of
from modalnomad.render.nomad import META_VERSION, Rendering, parent_job, prewarm_job

logger = logging.getLogger("modalnomad.nomad")

TRIES: Final = 20
"""Lost races, and names that are taken, until it is given up."""
END_LIMIT: Final = 15.0
"""Seconds for killed replicas to be gone."""
END_LOOK: Final = 0.05
"""Seconds between two looks at whether they are."""

Renderings = Callable[[Revision, int], Awaitable[Rendering]]
"""All that goes into a revision's job, for a version of its App."""
Versions = Callable[[Revision], Awaitable[int]]
"""The number of the App's version that is being made."""


class Parents:
    """For whoever may register jobs (`submit-job`)."""

    def __init__(self, api: NomadApi, rendering: Renderings, version_of: Versions) -> None:
        self._api = api
        self._rendering = rendering
        self._version_of = version_of

    async def body(self, revision: Revision) -> dict[str, Any]:
        """As it would be registered now. Raises UserError, BackendError."""
        found = await self._find(revision.id, namespace_of(revision.environment))
        version = _version(found[0]) if found else None
        return await self._render(revision, version or await self._version_of(revision))

    async def body_beside(self, revision: Revision, earlier: str | None) -> tuple[dict[str, Any], bool]:
        """As it would be registered, under the name of the job it has now, or else of the one that a revision before
        it has (`earlier`), so that the two can be compared; and whether there is one. Raises as `body`."""
        for id in filter(None, dict.fromkeys((str(revision.id), earlier))):
            for found in await self._find(id, namespace_of(revision.environment)):
                if not found.get("Stop") and (version := _version(found)) is not None:
                    body = await self._render(revision, version)
                    if body["Job"]["ID"] == found["ID"]:
                        return body, True
        return await self._render(revision, await self._version_of(revision)), False

    async def prewarm_body(self, revision: Revision) -> dict[str, Any]:
        """The job that makes its environment on all nodes. Raises UserError, BackendError."""
        return prewarm_job(revision, await self._rendering(revision, await self._version_of(revision)))

    async def prepare(self, revision: Revision) -> bool:
        """Have its job registered, as it is rendered now: False if it was so already. Its replicas run on. A job of it
        that is there under another version's name stays; one that somebody stopped or changed by hand is put right,
        with a warning. Raises UserError, BackendError."""
        namespace, bump = namespace_of(revision.environment), 0
        for _ in range(TRIES):
            found = await self._find(revision.id, namespace)
            if found:
                body = await self._render(revision, _version(found[0]) or await self._version_of(revision))
                expect = await self._outdated(found[0], body)
                if expect is None:
                    return False
            else:
                body, expect = await self._render(revision, await self._version_of(revision) + bump), 0
            try:
                await self._api.register(body, expect=expect)
            except BackendConflict:
                # Somebody was faster; or the name belongs to another revision, of a deploy that was never published.
                taken = await self._api.job(str(body["Job"]["ID"]), namespace)
                if taken is not None and (taken.get("Meta") or {}).get(META_REVISION) != revision.id:
                    bump += 1
                continue
            return True
        raise BackendConflict(
            f"the job of {revision.app}/{revision.function.tag} was changed by somebody else {TRIES} times in a row",
            "run it again",
        )

    async def _render(self, revision: Revision, version: int) -> dict[str, Any]:
        return parent_job(revision, await self._rendering(revision, version))

    async def _find(self, revision: str, namespace: str = "*", *, children: bool = False) -> list[Shape]:
        """Stubs, the newest that is not stopped first."""
        which = "!=" if children else "=="
        listing = await self._api.jobs(
            namespace, filter=f'Meta.{META_REVISION} == "{revision}" and ParentID {which} ""'
        )
        with readable("a list of jobs"):
            ours = [job for job in listing.items if environment_of(str(job["Namespace"])) is not None]
            return sorted(ours, key=lambda job: (not job.get("Stop"), int(job.get("SubmitTime") or 0)), reverse=True)

    async def _outdated(self, found: Shape, body: Shape) -> int | None:
        """The JobModifyIndex of what is to be replaced; None: it is as it should be."""
        job, index = body["Job"], int(found["JobModifyIndex"])
        meta, wanted = found.get("Meta") or {}, job["Meta"]
        same = found["ID"] == job["ID"] and all(meta.get(n) == wanted.get(n) for n in (META_SPEC, META_PREFIX))
        if found.get("Stop"):
            logger.warning("the job %s was stopped, by hand or by a deploy that failed: registered again", found["ID"])
            return index
        if not same:
            return index if found["ID"] == job["ID"] else 0
        if edited((await self._api.plan(job, diff=True)).get("Diff") or {}):
            logger.warning("the job %s was changed by hand; it is registered again as it was deployed", found["ID"])
            return index
        return None

    # --- the end -------------------------------------------------------------------------------------------------

    async def retire(self, revision: str) -> None:
        """Stop its jobs, kill its replicas, take back what waits for a place. Returns when all are gone. Raises
        BackendError."""
        for parent in await self._find(revision):
            if not parent.get("Stop"):
                await self._api.deregister(str(parent["ID"]), str(parent["Namespace"]))
        await self._end_all(revision, await self._find(revision, children=True))

    async def end(self, keys: Collection[ReplicaKey]) -> None:
        """The same for these replicas alone: their jobs stay."""
        for revision in sorted({key.pool.revision for key in keys}):
            children = await self._find(revision, children=True)
            with readable("a list of jobs"):
                wanted = [child for child in children if job_of(child).key in keys]
            await self._end_all(revision, wanted)

    async def _end_all(self, revision: str, children: Collection[Shape]) -> None:
        try:
            async with asyncio.timeout(END_LIMIT):
                await asyncio.gather(*(self._end(child) for child in children if child.get("Status") != "dead"))
        except TimeoutError as error:
            raise BackendRefused(
                f"replicas of revision {revision[:8]} have not ended within {END_LIMIT:g} s of being killed",
                "see their allocations in Nomad",
            ) from error

    async def _end(self, child: Shape) -> None:
        id, namespace = str(child["ID"]), str(child["Namespace"])
        stopped = False
        while True:
            allocation = await self.allocation(id, namespace)
            if allocation is not None and not allocation.alive:
                return
            if allocation is not None and allocation.task_state == "running":
                try:
                    await self._api.signal(allocation.id, TASK, "SIGKILL")
                except ServerRefused as error:
                    logger.info("%s", error.message)
            elif not stopped:
                await self._api.deregister(id, namespace, hurry=True)
                stopped = True
            elif allocation is None:
                return
            await asyncio.sleep(END_LOOK)

    async def allocation(self, job: str, namespace: str) -> Allocation | None:
        """The newest one of a child."""
        with readable("a list of allocations"):
            found = [allocation_of(shape) for shape in (await self._api.allocations_of(job, namespace)).items]
        return max(found, key=lambda allocation: allocation.created, default=None)

    async def alive(self, revision: str) -> int:
        """How many replicas of it Nomad runs or means to."""
        return sum(child.get("Status") != "dead" for child in await self._find(revision, children=True))


def _version(job: Shape) -> int | None:
    text = str((job.get("Meta") or {}).get(META_VERSION, ""))
    return int(text) if text.isascii() and text.isdigit() else None


def edited(diff: Shape) -> bool:
    """Whether a plan's diff changes what runs, not only what people read (Meta, UI, source)."""
    fields = [str(field.get("Name")) for field in diff.get("Fields") or () if field.get("Type") != "None"]
    objects = [str(each.get("Name")) for each in diff.get("Objects") or () if each.get("Type") != "None"]
    groups = [group for group in diff.get("TaskGroups") or () if group.get("Type") != "None"]
    return bool(
        groups
        or [name for name in fields if not name.startswith(("Meta[", "UI"))]
        or [name for name in objects if name not in {"UI", "Meta", "UIConfig", "JobUIConfig"}]
    )
