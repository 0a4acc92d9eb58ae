"""The end of a long-running command by the end of one of its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from modalnomad.model.errors import BackendError


class Death:
    """Fails once, with the first part that ended by itself; made on the event loop."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Never done but by a BackendError, or by `close`."""

    def of(self, name: str, error: BaseException) -> None:
        """This part ended. For `Tasks`, too."""
        if not self.future.done():
            self.future.set_exception(
                BackendError(
                    f"{self._command} cannot go on: {name} ended: {error}", "run it with --verbose to see what happened"
                )
            )
            self.future.exception()  # nobody may be waiting any more

    async def watch(self, name: str, end: Callable[[], Awaitable[None]]) -> None:
        """Wait for the end of a part that raises when it comes."""
        try:
            await end()
        except Exception as error:
            self.of(name, error)

    async def wait(self) -> None:
        """Raises BackendError when a part ended; else never returns."""
        await asyncio.shield(self.future)

    def close(self) -> None:
        """Nobody waits any longer."""
        self.future.cancel()
