"""What a cluster gathers over the years, and which of it goes: revisions' jobs, artifacts, values of Secret.from_dict.

What kept versions need stays, and so does what was put in the last hour, or the last day while a deploy is under way:
a deploy puts things before a record says that they are needed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.nomad.api import NomadApi, Shape
from modalnomad.hashicorp.nomad.parents import Parents
from modalnomad.hashicorp.nomad.shapes import Job, job_of
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.model.errors import BackendConflict
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.ports.pruning import Item, NowRule, Rule, Shelf, fate
from modalnomad.render.cluster import META_PREFIX, environment_of
from modalnomad.render.nomad import META_APP
from modalnomad.settings import DEFAULT_PREFIX

YOUNG: Final = 3600.0
"""Seconds for which nothing that was just put goes, whoever put it."""
DEPLOYING: Final = 86400.0
"""The same while anything is being deployed anywhere."""
AT_ONCE: Final = 8
"""Jobs that are read at the same time."""

Hold = Callable[[str, str], AbstractAsyncContextManager[None]]
"""(App, environment) → nobody deploys it meanwhile. Raises BackendConflict when somebody does."""


async def put_before(consul: ConsulApi, prefix: str, now: float) -> float:
    """What `Rule.put_before` is now. Ask before the records are read. Raises BackendError."""
    return now - (DEPLOYING if await deploying(consul, prefix) else YOUNG)


async def deploying(consul: ConsulApi, prefix: str) -> bool:
    """Is any App being deployed, rolled back or stopped? Raises BackendError."""
    return any(entry.session for entry in (await consul.tree(f"{prefix}/locks/deploy-", consistent=True)).items)


async def registered(api: NomadApi, prefix: str | None) -> list[Job]:
    """Jobs of revisions and of replicas that are not over, of all environments. `prefix`: those with records there;
    None: those of other installations too. Raises BackendError."""
    jobs = map(job_of, (await api.jobs()).items)
    return [
        job
        for job in jobs
        if job.revision
        and environment_of(job.namespace) is not None
        and not job.stopped
        and job.status != "dead"
        and prefix in {None, prefix_of(job)}
    ]


def prefix_of(job: Job) -> str:
    """`consul.prefix` of whoever deployed it."""
    return job.meta.get(META_PREFIX, DEFAULT_PREFIX)


class JobShelf(Shelf):
    """Jobs that replicas of a revision are children of. They go when no replica of it lives."""

    def __init__(self, api: NomadApi, parents: Parents, hold: Hold, *, prefix: str) -> None:
        """`prefix`: of the records by which it is known what is needed."""
        self._prefix = prefix
        self._api = api
        self._parents = parents
        self._hold = hold

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says. One item for each revision, however many jobs it has."""
        jobs = await registered(self._api, self._prefix)
        lives = {job.revision for job in jobs if job.key is not None}
        newest: dict[str, Job] = {}
        for job in sorted(jobs, key=lambda job: job.submitted_at):
            if job.parameterized:
                newest[job.revision] = job
        return tuple(
            Item(
                "job",
                job.id,
                0,
                *_job_fate(job, job.revision in lives, rule),
                environment_of(job.namespace) or "",
                f"{job.revision} {job.meta.get(META_APP, '')}",
            )
            for job in sorted(newest.values(), key=lambda job: (job.namespace, job.id))
        )

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says. A deploy of the App cannot find the job there and rely on it meanwhile."""
        revision, _, app = item.key.partition(" ")
        try:
            async with self._hold(app, item.environment):
                if RevisionId(revision) in (await rule()).needed.revisions or await self._parents.alive(revision):
                    return None
                await self._parents.retire(revision)
        except BackendConflict:
            return None  # it is being deployed
        return item.size


def _job_fate(job: Job, lives: bool, rule: Rule) -> tuple[bool, str]:
    goes, why = fate(RevisionId(job.revision) in rule.needed.revisions, job.submitted_at, rule)
    return (False, "a replica of it lives") if goes and lives else (goes, why)


class ArtifactShelf(Shelf):
    """Bundles, packs of images, and archives of what starts replicas."""

    def __init__(self, artifacts: ObjectArtifacts, api: NomadApi, *, prefix: str) -> None:
        """`prefix`: as of `JobShelf`."""
        self._prefix = prefix
        self._artifacts = artifacts
        self._api = api
        self._named: frozenset[str] | None = None
        """By jobs that are left; None: not known."""

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says."""
        found = await asyncio.to_thread(self._artifacts.stored)
        named = await named_digests(self._api, lambda job, lives: not self._goes(job, lives, rule))
        self._named = None
        items = []
        for digest, stored in sorted(found.items()):
            goes, why = fate(digest in rule.needed.bundles, stored.st_mtime, rule)
            if goes and digest in named:
                goes, why = False, "a job names it"
            items.append(Item("artifact", digest, stored.st_size, goes, why))
        return tuple(items)

    def _goes(self, job: Job, lives: bool, rule: Rule) -> bool:
        return prefix_of(job) == self._prefix and _job_fate(job, lives, rule)[0]

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says. Jobs that go are gone by now; whoever registers one later has put it again before."""
        if self._named is None:
            self._named = await named_digests(self._api)
        now = await rule()
        digest = Digest(item.name)
        if digest in now.needed.bundles or digest in self._named:
            return None
        freed = await asyncio.to_thread(self._artifacts.remove, digest, unless_put_since=now.put_before)
        return freed or None

    async def tidy(self) -> None:
        """As the port says."""
        await asyncio.to_thread(self._artifacts.tidy)


_DIGEST: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


async def named_digests(api: NomadApi, stays: Callable[[Job, bool], bool] = lambda job, lives: True) -> frozenset[str]:
    """All that stands anywhere in a job of a revision that `stays` (does a replica of it live?), or in a replica's that
    has no place yet; whoever's they are. Raises BackendError."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def read(job: Job) -> Shape | None:
        async with limit:
            return await api.job(job.id, job.namespace)

    jobs = await registered(api, None)
    lives = {job.revision for job in jobs if job.key is not None}
    wanted = [
        job
        for job in jobs
        if (job.key is not None and job.status == "pending")
        or (job.parameterized and stays(job, job.revision in lives))
    ]
    found = await asyncio.gather(*map(read, wanted))
    return frozenset(digest for shape in found if shape is not None for digest in _DIGEST.findall(json.dumps(shape)))


async def digests_elsewhere(api: NomadApi, prefix: str) -> frozenset[str]:
    """What jobs with records elsewhere than below `prefix` name. Raises BackendError."""
    return await named_digests(api, lambda job, lives: prefix_of(job) != prefix)


class AnonymousShelf(Shelf):
    """Values of `Secret.from_dict`. Named secrets go only with `secret delete`."""

    def __init__(
        self,
        secrets: VaultSecrets,
        environments: Callable[[], Awaitable[Sequence[str]]],
        others: Callable[[], Awaitable[frozenset[str]]],
    ) -> None:
        """`others`: digests that other installations need, see `digests_elsewhere`."""
        self._secrets = secrets
        self._environments = environments
        self._others = others

    async def look(self, rule: Rule) -> tuple[Item, ...]:
        """As the port says."""
        found: Mapping[str, Mapping[str, float]] = {
            environment: await self._secrets.anonymous(environment) for environment in await self._environments()
        }
        fates = {
            (environment, digest): fate((environment, digest) in rule.needed.anonymous, stored, rule)
            for environment, digests in sorted(found.items())
            for digest, stored in sorted(digests.items())
        }
        # All jobs are listed for it, and mostly nothing goes.
        others = await self._others() if any(goes for goes, _ in fates.values()) else frozenset[str]()
        return tuple(
            Item(
                "secret",
                f"of Secret.from_dict, {digest[:12]}",
                0,
                *((False, "a job names it") if goes and digest in others else (goes, why)),
                environment,
                digest,
            )
            for (environment, digest), (goes, why) in fates.items()
        )

    async def remove(self, item: Item, rule: NowRule) -> int | None:
        """As the port says."""
        now = await rule()
        if (item.environment, item.key) in now.needed.anonymous:
            return None
        removed = await self._secrets.remove_anonymous(item.key, item.environment, unless_put_since=now.put_before)
        return item.size if removed else None
