"""The parts of `run`: an engine and a router without listeners, for calls that one local entrypoint makes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from modalnomad.deploy.build import Builder
from modalnomad.deploy.call_plan import CallPlan, plan_calls
from modalnomad.deploy.entry import Described, EntryProcess, Message
from modalnomad.deploy.report import Report
from modalnomad.embedded.discovery import EphemeralDiscovery
from modalnomad.kit.tasks import Tasks
from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from modalnomad.ports.engine import Engine
from modalnomad.router.calls import Call, Outcome
from modalnomad.router.server import RouterServer
from modalnomad.settings import Settings
from modalnomad.wiring.building import builder_of, images_of
from modalnomad.wiring.ending import Ending
from modalnomad.wiring.home import working
from modalnomad.wiring.parts import RouterPools, build, running

MOST = max(4, 2 * (os.cpu_count() or 1))
"""Replicas at once of a Function that names no max_containers: `map` over a thousand items must not start a thousand
processes on this machine."""
AT_ONCE = 1000
"""Calls under way; the others wait."""


@dataclass(slots=True)
class RunParts:
    """What makes calls possible, for as long as this process lives."""

    settings: Settings
    engine: Engine
    builder: Builder
    router: RouterServer
    pools: RouterPools
    revisions: dict[RevisionId, Revision] = field(default_factory=dict)
    """All that may have replicas."""

    def plan(self, described: Described, name: str | None) -> CallPlan:
        """Raises ManifestInvalid."""
        return plan_calls(described.description, described.needs, self.settings.environment, name=name, most=MOST)

    async def build(self, described: Described, plan: CallPlan, report: Report) -> None:
        """Afterwards its Functions can be called. Raises UserError, BackendError."""
        candidate = await self.builder.build(described.description, plan, report)
        self.revisions.update({revision.id: revision for revision in candidate.revisions})

    def ending(self) -> Ending:
        """The orderly end of everything that was called."""
        return Ending(self.router, self.pools, self.revisions, self.settings)


@asynccontextmanager
async def open_run(settings: Settings) -> AsyncIterator[RunParts]:
    """The parts of `run`. Leaving it ends every replica at once. Raises BackendError: home not writable."""
    # Nobody reaches these replicas but the calls of this process.
    quiet = {"tls_cert": None, "tls_key": None, "admin_port": None, "access_log": None}
    settings = settings.model_copy(update={"router": settings.router.model_copy(update=quiet)})
    parts = build(settings, EphemeralDiscovery(settings.home), web_urls=lambda revision: {})
    builder = builder_of(
        settings,
        engine=parts.engine,
        secrets=parts.secrets,
        artifacts=parts.artifacts,
        images=images_of(settings, parts.images, parts.secrets),
        ephemeral=True,
    )
    with working(settings, "run"):
        async with running(parts, listen=False):
            yield RunParts(settings, parts.engine, builder, parts.router, parts.pools)


class Exchange:
    """Answers the calls of one entrypoint. Owns them: closing it cancels what is under way."""

    def __init__(
        self, parts: RunParts, process: EntryProcess, on_retry: Callable[[Call, Outcome, float], None]
    ) -> None:
        self._by_tag = {revision.function.tag: revision for revision in parts.revisions.values()}
        self._caller = parts.router.caller
        self._process = process
        self._on_retry = on_retry
        self._tasks = Tasks("calls")
        self._open: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._closed = False

    def take(self, message: Message) -> None:
        """A `call` or a `cancel`; others are ignored."""
        if self._closed:
            return  # it has not heard yet that it is to end
        record = message.record
        if (number := record.get("call")) is not None:
            task = self._tasks.spawn(self._answer(int(number), message), "call")
            self._open[number] = task
            task.add_done_callback(lambda _: self._open.pop(number, None))
        elif (task_of := self._open.get(record.get("cancel", 0))) is not None:
            task_of.cancel()

    async def _answer(self, number: int, message: Message) -> None:
        async with self._room:
            outcome = await self._call(message)
        await self._process.tell({"answer": number, "outcome": outcome.kind}, outcome.body)

    async def _call(self, message: Message) -> Outcome:
        record = message.record
        tag = str(record["function"])
        revision = self._by_tag.get(tag)
        if revision is None:
            known = ", ".join(self._by_tag) or "none"
            return Outcome.failure("not_found", f"`{tag}` is no Function of the App that runs (its Functions: {known})")
        call = Call(revision, str(record["parameters"]), str(record["method"]), message.payload)
        return await self._caller.call(call, lambda outcome, delay: self._on_retry(call, outcome, delay))

    async def close(self) -> None:
        """Cancel all. Twice does nothing more."""
        self._closed = True
        await self._tasks.close()
