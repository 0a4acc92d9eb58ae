"""The reading end of a pipe, on the event loop."""

from __future__ import annotations

import asyncio
import os
from typing import Final

CHUNK: Final = 64 * 1024
"""Bytes read at once: all that a pipe of the usual size holds."""


class PipeEnd:
    """Owns the descriptor: close it. One reader at a time.

    Not `connect_read_pipe`: uvloop closes the descriptor and then the file object made of it, which closes the same
    number once more. A thread that opens a file in between has got that number, and loses its file.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor: int | None = descriptor
        self._ending = False
        self._waiting: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """What came; empty: nothing more will."""
        while self._descriptor is not None:
            await self._readable(self._descriptor)
            if self._descriptor is None:
                break
            try:
                data = os.read(self._descriptor, CHUNK)
            except BlockingIOError:
                data = None
            if self._ending:
                self.close()
            if data is not None:
                return data
        return b""

    async def _readable(self, descriptor: int) -> None:
        if self._ending:
            return
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        loop.add_reader(descriptor, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._descriptor is not None:
                loop.remove_reader(descriptor)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def end(self) -> None:
        """No more waiting: what is in the pipe now is the last."""
        self._ending = True
        self._wake()

    def close(self) -> None:
        """Twice does nothing. Whoever reads is told that this is the end."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if self._waiting is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._wake()
