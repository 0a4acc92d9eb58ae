"""The ASGI lifespan of one app (ASGI specification, lifespan protocol 2.0), as Modal treats it.

idle ─start─▶ starting ─complete─▶ running ─stop─▶ stopping ─▶ ended
                 ├─raised or returned before it asked for anything─▶ unsupported
                 └─failed, or raised later─▶ LifespanFailed
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[Any]]


def _seen(task: asyncio.Task[None]) -> None:
    """What an app raises after it said `failed` repeats what it said."""
    if not task.cancelled():
        task.exception()


class LifespanFailed(Exception):
    """Start-up or shutdown failed. The message is the app's own; `__cause__` what it raised, if it raised."""


class Lifespan:
    """Runs the app's lifespan in a task of its own, which this object owns."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        """Filled by the app while it starts; every request gets a shallow copy."""
        self.supported = True
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[Message] | None = None

    async def start(self) -> None:
        """Returns when the app has started up, or has no lifespan. Raises LifespanFailed."""
        answer = await self._ask("startup")
        if answer is None:
            self.supported = False
        elif answer["type"] == "lifespan.startup.failed":
            self._raise("startup", answer)

    async def stop(self) -> None:
        """Returns when the app has shut down. Raises LifespanFailed."""
        if not self.supported or self._task is None:
            return
        answer = await self._ask("shutdown")
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            self._raise("shutdown", answer)

    def _raise(self, phase: str, answer: Message) -> None:
        text = answer.get("message") or "no message was given"
        raise LifespanFailed(f"ASGI lifespan {phase} failed: {str(text).rstrip()}")

    async def _ask(self, phase: str) -> Message | None:
        """Send `lifespan.<phase>`; the app's answer, or None when it ended without one before or after this."""
        answer = self._answer = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="lifespan")
            self._task.add_done_callback(_seen)
        self._events.put_nowait({"type": f"lifespan.{phase}"})
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            said: Message = answer.result()
            return said
        answer.cancel()
        error = self._task.exception()
        if error is not None and self._asked:
            raise LifespanFailed(f"ASGI lifespan {phase} failed: {type(error).__name__}: {error}") from error
        return None

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        self._asked = True
        return await self._events.get()

    async def _send(self, message: Message) -> None:
        kinds = ("startup", "shutdown")
        if message["type"] not in [f"lifespan.{kind}.{end}" for kind in kinds for end in ("complete", "failed")]:
            raise RuntimeError(f"{message['type']!r} is no message of the ASGI lifespan protocol")
        if self._answer is None or self._answer.done():
            raise RuntimeError(f"{message['type']!r} was sent when nothing had been asked")
        self._answer.set_result(message)
