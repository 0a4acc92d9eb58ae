"""One start: the revision's job found, its secrets' versions asked, the child dispatched exactly once."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.nomad.api import Dispatched, NomadApi, Shape
from modalnomad.hashicorp.nomad.mirror import Mirror
from modalnomad.hashicorp.nomad.shapes import Job
from modalnomad.hashicorp.nomad.view import blocked
from modalnomad.hashicorp.nomad.world import World, job_name
from modalnomad.kit.clock import monotonic
from modalnomad.model.errors import BackendError, BackendUnreachable, ModalNomadError, NotFound
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import Failure, ReplicaKey
from modalnomad.render.cluster import idempotency_token
from modalnomad.render.nomad import dispatch_body

logger = logging.getLogger("modalnomad.nomad")

PAUSES: Final = (0.05, 0.3, 1.0)
"""Seconds before a dispatch is repeated that was not answered, the last one again and again: the same token starts
nothing twice."""
ELECTION: Final = 5.0
"""Seconds for which it is repeated at least: three servers whose leader was killed had another one after 2.9 to 3.5."""
DISPATCH_LIMIT: Final = 3.0
"""Seconds for an answer to one of them."""
SECRETS_LIMIT: Final = 3.0
"""Seconds to learn the versions of its secrets."""
ASKED_KEPT: Final = 10_000
"""Keys remembered; only the last seconds' matter."""
LOOKS: Final = (0.05, 0.1, 0.2, *(0.5,) * 20, 1.0, 2.0, 5.0)
"""Seconds between looks at a child while nothing is told about it: how it fails is known within one. Later ends are
found by the lists."""

SecretTexts = Callable[[RevisionId], Awaitable[str]]
"""`db=3,api=1` of a revision as they are now. Raises BackendError, SecretMissing."""


AGAIN: Final = "deploy the App again"
FINAL: Final = (
    "is stopped",
    "Dispatch request",
    "Dispatch did not",
    "Payload",
    "validation failed",
    "Permission denied",
)
"""In texts of 500 that a repetition does not change."""


class Dispatcher:
    """Failures are returned: whoever watches is told. NotFound is raised."""

    def __init__(
        self, api: NomadApi, world: World, mirror: Mirror, secret_versions: SecretTexts | None, router: str
    ) -> None:
        self._api = api
        self._world = world
        self._mirror = mirror
        self._secret_versions = secret_versions
        self._router = router
        self.asked: set[ReplicaKey] = set()
        """Replicas that were dispatched from here."""

    async def dispatch(self, key: ReplicaKey, reason: str, request_id: str) -> Failure | None:
        """None: it is under way, and the world has its child. Raises NotFound: its revision has no job, or one that was
        stopped."""
        if (waiting := blocked(self._world, key)) is not None:
            return waiting
        try:
            parent = await self._parent(key.pool.revision)
        except BackendError as error:
            return _failure(error)
        secrets = await self._secrets(key.pool.revision)
        if isinstance(secrets, Failure):
            return secrets
        if len(self.asked) >= ASKED_KEPT:
            self.asked.clear()
        self.asked.add(key)
        body = dispatch_body(key, reason=reason, request_id=request_id, secrets=secrets, started_by=self._router)
        try:
            done = await self._repeated(parent, key, body)
            await self._took(parent, done, body)
        except BackendError as error:
            return _failure(error)
        return None

    async def _parent(self, revision: RevisionId) -> Job:
        """Raises NotFound, BackendError."""
        found = self._world.parents(revision)
        if not found or found[0].stopped:
            await self._mirror.find_parents(revision)
            found = self._world.parents(revision)
        if not found:
            raise NotFound(f"Nomad has no job of revision {revision}", AGAIN)
        if found[0].stopped:
            raise NotFound(f"the job {found[0].id} of revision {revision} was stopped in Nomad", AGAIN)
        return found[0]

    async def _secrets(self, revision: RevisionId) -> str | Failure:
        if self._secret_versions is None:
            return ""
        try:
            async with asyncio.timeout(SECRETS_LIMIT):
                return await self._secret_versions(revision)
        except TimeoutError:
            return Failure("start_failed", f"its secrets: Vault did not answer within {SECRETS_LIMIT:g} s", away=True)
        except ModalNomadError as error:
            return _failure(error, "its secrets: ")

    async def _repeated(self, parent: Job, key: ReplicaKey, body: Shape) -> Dispatched:
        """Raises NotFound, BackendError."""
        token, until, said = idempotency_token(key), monotonic() + ELECTION, ""
        for tries in itertools.count():
            last = tries >= len(PAUSES) and monotonic() >= until
            try:
                return await self._api.dispatch(parent.id, parent.namespace, body, token=token, limit=DISPATCH_LIMIT)
            except ServerRefused as error:
                if "job not found" in error.text:
                    self._world.forget_job(parent, parent.index)
                    raise NotFound(f"Nomad has no job {parent.id} any more", AGAIN) from error
                if last or not _passing(error):
                    raise
                failure: BackendError = error
            except BackendUnreachable as error:
                if last:
                    raise
                failure = error
            if failure.message != said:
                said = failure.message
                logger.warning("dispatch of %s is repeated: %s", key, said)
            await asyncio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
        raise AssertionError("the last try returns or raises")

    async def _took(self, parent: Job, done: Dispatched, body: Shape) -> None:
        """The child is known from now on, whether an event tells of it or not."""
        if self._world.job(job_name(parent.namespace, done.job)) is not None:
            return
        if done.repeated:  # of another router, or of an earlier life: alive or dead
            await self._mirror.find_child(parent.namespace, done.job)
            return
        child = {
            "ID": done.job,
            "Namespace": parent.namespace,
            "ParentID": parent.id,
            "Status": "pending",
            "Meta": {**parent.meta, **body["Meta"]},
            "SubmitTime": time.time_ns(),
            "CreateIndex": done.index,
            "ModifyIndex": done.index,
        }
        self._world.take_job(child, done.index)

    async def look_after(self, job: Job) -> None:
        """While no events tell what becomes of it: look, until it ended, or for as long as most starts take."""
        for pause in LOOKS:
            await asyncio.sleep(pause)
            if self._mirror.streaming(job.namespace):
                return
            try:
                await self._mirror.refresh(job)
            except BackendError:
                continue
            allocation = self._world.allocation(job)
            if allocation is not None and not allocation.alive:
                return


def _failure(error: ModalNomadError, what: str = "") -> Failure:
    """Of a start that could not begin."""
    away = isinstance(error, BackendUnreachable) or (isinstance(error, ServerRefused) and _passing(error))
    return Failure("start_failed", what + error.message, error.hint or "", away=away)


def _passing(error: ServerRefused) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return error.status == 429 or (error.status >= 500 and not any(text in error.text for text in FINAL))
