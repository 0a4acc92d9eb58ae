"""Nomad's event stream (developer.hashicorp.com/nomad/api-docs/events): what changes, told within milliseconds.

A stream without `namespace=*` rights is opened with 200 and then silent, so it counts as open only after its first
line. What happened while nobody listened may be lost (the server keeps the last 100 events): whoever owns the stream
lists everything again each time it opens.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Final

import aiohttp

from modalnomad.hashicorp.http import broken
from modalnomad.hashicorp.nomad.api import ODD, NomadApi, Shape
from modalnomad.model.errors import BackendError, BackendRefused, BackendUnreachable

logger = logging.getLogger("modalnomad.nomad")

FIRST_LINE: Final = 2.0
"""Seconds within which a stream says its first line (`{}`, at once), or the token may not read it."""
SILENCE: Final = 75.0
"""Seconds without a byte after which a stream is dead; heartbeats come each 30 s."""
PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before the next try; the last one repeats."""


@dataclass(frozen=True, slots=True)
class Event:
    """`object` is what it is about, as it is after it; its shape is that of `GET`, fields without a value left out."""

    topic: str
    kind: str
    index: int
    key: str
    object: Shape
    deleted: bool = False
    """Purged or collected; `object` is as it last was."""


async def stream(api: NomadApi, topics: tuple[str, ...], namespace: str) -> AsyncGenerator[tuple[Event, ...], None]:
    """Events from now on, first `()` when it is open. One connection: it ends by raising BackendUnreachable, or
    BackendRefused when the token may not read these topics."""
    what = f"Nomad's event stream of {', '.join(topics)} in namespace {namespace}"
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(FIRST_LINE):
                response = await stack.enter_async_context(api.stream(topics, namespace, silence=SILENCE))
                lines = await stack.enter_async_context(aclosing(_lines(response)))
                line = await anext(lines, None)
        except TimeoutError as error:
            raise BackendRefused(
                f"{what} stays silent: Nomad hangs, or the token may not read it",
                "it needs read-job and list-jobs in the environments' namespaces, and node read",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise BackendUnreachable(f"{what} ended: {broken(error)}") from error
        if line is not None:
            yield ()
        try:
            while line is not None:
                if events := _events(line):
                    yield events
                line = await anext(lines, None)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BackendUnreachable(f"{what} ended: {broken(error)}") from error
    raise BackendUnreachable(f"{what} was closed by the server")


async def follow(
    api: NomadApi,
    topics: tuple[str, ...],
    namespace: str,
    *,
    opened: Callable[[], Awaitable[None]],
    heard: Callable[[tuple[Event, ...]], None],
    lost: Callable[[BackendError], Awaitable[None]],
) -> None:
    """For ever: connect, `opened` (list everything now; its BackendError counts as a loss), then each `heard`; when the
    stream ends `lost`, and after a pause again. What it ends with is logged once, until it says something else."""
    tries, said = 0, ""
    while True:
        try:
            events = stream(api, topics, namespace)
            async with aclosing(events):
                async for batch in events:
                    if batch:
                        heard(batch)
                    else:
                        await opened()
                        if said:
                            logger.warning("Nomad's event stream of %s is open again", ", ".join(topics))
                        tries, said = 0, ""
        except BackendError as error:
            if error.message != said:
                said = error.message
                logger.warning("%s", said)
            await lost(error)
        except ODD as error:  # not what Nomad says: a proxy, another version
            logger.exception("what Nomad tells cannot be read")
            await lost(BackendRefused(f"what Nomad tells cannot be read: {error!r}"))
        await asyncio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
        tries += 1


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Lines of any length, as they come."""
    rest = bytearray()
    async for piece in response.content.iter_any():
        rest += piece
        if b"\n" in piece:
            *whole, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in whole:
                yield line


def _events(line: bytes) -> tuple[Event, ...]:
    """Empty: a heartbeat. Raises ODD."""
    found = json.loads(line) if line.strip() else {}
    return tuple(
        Event(
            topic=str(event["Topic"]),
            kind=str(event["Type"]),
            index=int(event["Index"]),
            key=str(event["Key"]),
            object=event["Payload"].get(event["Topic"]) or {},
            deleted=bool(event["Payload"].get("Deleted")),
        )
        for event in found.get("Events") or ()
    )
