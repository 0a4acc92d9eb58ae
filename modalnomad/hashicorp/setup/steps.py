"""One step of setting up a cluster: looked at, made or changed where it is not as it should be, and told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.setup.platform import ServerName
from modalnomad.model.errors import BackendError, BackendUnreachable

Outcome = Literal["made", "changed", "there", "left", "would make", "would change", "failed", "not done"]
"""`left`: it is not as it would be made, and that is somebody else's choice; the detail says why."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a step ended. `fix`: what to do, where there is something to do."""

    outcome: Outcome
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What is told of one step."""

    server: ServerName
    what: str
    """`policy modalnomad-router`."""
    outcome: Outcome
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Todo:
    """`do(dry)`: look, and unless `dry` make it so. Raises BackendError."""

    what: str
    do: Callable[[bool], Awaitable[Done]]


async def carry_out(server: ServerName, todos: Iterable[Todo], *, dry: bool) -> AsyncIterator[Step]:
    """One after the other. A step that fails does not keep the next from being tried, unless the server is gone or can
    do nothing: then all that follow are told as not done."""
    gone = ""
    for todo in todos:
        if gone:
            yield Step(server, todo.what, "not done", gone)
            continue
        try:
            done = await todo.do(dry)
        except BackendError as error:
            yield Step(server, todo.what, "failed", error.message, error.hint or "")
            if isinstance(error, BackendUnreachable) or (isinstance(error, ServerRefused) and error.status == 503):
                gone = "the server did not answer the step before"
        else:
            yield Step(server, todo.what, done.outcome, done.detail, done.fix)


async def create(dry: bool, make: Callable[[], Awaitable[object]], detail: str = "") -> Done:
    """It is not there."""
    if dry:
        return Done("would make", detail)
    await make()
    return Done("made", detail)


async def change(dry: bool, make: Callable[[], Awaitable[object]], detail: str) -> Done:
    """It is there, and different."""
    if dry:
        return Done("would change", detail)
    await make()
    return Done("changed", detail)
