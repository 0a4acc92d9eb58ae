"""A cell that holds the latest value and wakes whoever waits for a change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cell(Generic[T]):
    """The latest value. Watchers see the newest one; values in between may be skipped. One event loop only."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._changed: asyncio.Event = asyncio.Event()

    @property
    def value(self) -> T:
        """What it holds now."""
        return self._value

    def set(self, value: T) -> None:
        """Replace the value and wake all watchers."""
        self._value = value
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, wanted: Callable[[T], bool]) -> T:
        """Wait for a value that satisfies `wanted`; the present one counts."""
        while not wanted(self._value):
            await self._changed.wait()
        return self._value

    async def watch(self) -> AsyncIterator[T]:
        """The present value at once, then the latest after each change."""
        seen = -1
        while True:
            while seen == self._version:
                await self._changed.wait()
            seen = self._version
            yield self._value
