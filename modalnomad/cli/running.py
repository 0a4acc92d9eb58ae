"""One `run`: the program's process, the replicas its calls need, and what is told of both."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modalnomad.cli.lines_told import LinesTold
from modalnomad.cli.replicas_told import ReplicasTold
from modalnomad.cli.run_view import RunView
from modalnomad.deploy.collect import Reference
from modalnomad.deploy.entry import Described, EntryProcess
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError
from modalnomad.wiring.death import Death
from modalnomad.wiring.run import Exchange, RunParts

INTERRUPT_TIME = 3.0
"""Seconds the program has to end after Ctrl-C."""
ABORT_TIME = 3.0
"""Seconds its replicas have then."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be run."""

    reference: Reference
    arguments: tuple[str, ...]
    name: str | None
    write_result: Path | None


class Running:
    """Owns the program's process and the tasks that follow replicas and their output."""

    def __init__(self, parts: RunParts, view: RunView, wanted: Wanted) -> None:
        self._parts = parts
        self._view = view
        self._wanted = wanted
        self._process: EntryProcess | None = None
        self._exchange: Exchange | None = None
        self._lines = LinesTold(parts.engine, view)
        self._death = Death("run")
        self._tasks = Tasks("run", self._death.of)
        self._described = False
        self._returned: Mapping[str, Any] = {}
        self.code = 1
        """The program's exit code, once it has ended."""

    async def run(self) -> None:
        """From its import to its end. Raises ModalNomadError."""
        wanted = self._wanted
        process = self._process = await EntryProcess.start(
            wanted.reference,
            wanted.arguments,
            write_result=wanted.write_result,
            on_line=self._view.line if self._view.captures else None,
        )
        described = await process.described()
        if described is not None:
            self._described = True
            await self._build(described)
            await process.tell({"start": True})
            await self._serve(process)
        self.code = _exit_code(await process.ended(), wanted.reference)

    async def _build(self, described: Described) -> None:
        parts = self._parts
        plan = parts.plan(described, self._wanted.name)
        for notice in await parts.builder.notices(plan):
            self._view.notice(plan.app, notice)
        await parts.build(described, plan, self._view)
        self._tasks.guard(self._lines.follow(), "logs")
        told = ReplicasTold(self._view, parts.revisions.get)
        self._tasks.guard(told.follow(parts.pools.replicas.watch()), "replicas")
        self._tasks.spawn(self._death.watch("router", parts.router.died), "router")

    async def _serve(self, process: EntryProcess) -> None:
        """Answer its calls until it ends. Raises BackendError when a part of the platform died."""
        exchange = self._exchange = Exchange(self._parts, process, self._view.retry)
        answering = self._tasks.spawn(self._answer(process, exchange), "answering")
        await asyncio.wait({answering, self._death.future}, return_when=asyncio.FIRST_COMPLETED)
        if self._death.future.done():
            self._death.future.result()
        answering.result()
        await exchange.close()

    async def _answer(self, process: EntryProcess, exchange: Exchange) -> None:
        async with aclosing(process.messages()) as messages:  # type: ignore[type-var]
            async for message in messages:
                if "returned" in message.record:
                    self._returned = message.record["returned"]
                else:
                    exchange.take(message)

    async def stop(self) -> None:
        """The orderly end; then the result."""
        if self._parts.revisions:
            await self._parts.ending().run(self._view.progress)
        await self._lines.caught_up()
        if self._described:
            self._view.returned(self._returned, self.code)

    async def abort(self) -> None:
        """After Ctrl-C: calls are cancelled, the program is interrupted, replicas end, all within seconds."""
        if self._exchange is not None:
            await self._exchange.close()
        if self._process is not None:
            await self._process.interrupt(INTERRUPT_TIME)
        with suppress(TimeoutError):
            async with asyncio.timeout(ABORT_TIME):
                await self._parts.ending().run(lambda text: None)
        await self._lines.caught_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._exchange is not None:
            await self._exchange.close()
        if self._process is not None:
            await self._process.close()
        await self._tasks.close()
        self._death.close()


def _exit_code(code: int, reference: Reference) -> int:
    """Raises BackendError when a signal ended it."""
    if code < 0:
        raise BackendError(f"{reference}: its process was ended by signal {-code}", "a signal 9 may be lack of memory")
    return code
