"""Background work with a name and an owner. `create_task` is called nowhere else in the platform."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

logger = logging.getLogger("modalnomad.tasks")

T = TypeVar("T")


class Tasks:
    """Owns tasks: closing it cancels and awaits them all.

    `spawn` is for work that ends; `guard` for work that must go on until the owner closes: when such a task ends by
    itself, `on_death` is called with its name and error (the process should stop).
    """

    def __init__(self, name: str, on_death: Callable[[str, BaseException], None] | None = None) -> None:
        self.name = name
        self._on_death = on_death
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run to its end. An exception nobody awaits is logged."""
        if self._closing:
            coroutine.close()
            raise RuntimeError(f"{self.name} is closing; cannot start {name}")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self.name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def guard(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run until the owner closes; ending earlier, even without an error, is a death."""
        try:
            task = self.spawn(self._guarded(coroutine, name), name)
        except RuntimeError:
            coroutine.close()
            raise
        # Cancelled before its first step, the task has not touched it, and Python would warn of that.
        task.add_done_callback(lambda _: coroutine.close())
        return task

    async def _guarded(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await coroutine
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.exception("background task %s:%s died", self.name, name)
            self._died(name, error)
        else:
            if not self._closing:
                self._died(name, RuntimeError(f"{name} ended by itself"))

    def _died(self, name: str, error: BaseException) -> None:
        if self._on_death is not None:
            self._on_death(name, error)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task %s failed", task.get_name(), exc_info=error)

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel all and wait until each has ended."""
        self._closing = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
