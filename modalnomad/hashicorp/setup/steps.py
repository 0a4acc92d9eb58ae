"""One step of setting up a cluster: looked at, made or changed where it is not as it should be, and told."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.setup.platform import Policy, ServerName
from modalnomad.hashicorp.setup.rights import Lacking
from modalnomad.model.errors import BackendError, BackendRefused, BackendUnreachable

Outcome = Literal["made", "changed", "there", "left", "would make", "would change", "failed", "not done"]
"""`left`: it is not as it would be made, and that is somebody else's choice; the detail says why."""


OWNER: Final = re.compile("[:,]")
"""Ends the beginning of a description, which says whose it is."""


THEIRS: Final = "is somebody else's"
UNSEEN: Final = "may be somebody else's: Nomad did not tell"
"""Why jobs of a namespace get no rights."""


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
    namespace: str = ""
    """Of Nomad, which it makes or gives rights to: not done where that is somebody else's, or may be."""


class SomebodyElses(BackendRefused):
    """What is there under a name of ours is not ours, and is left as it is."""


async def carry_out(
    server: ServerName, todos: Iterable[Todo], lacking: Lacking, foreign: dict[str, str], *, dry: bool
) -> AsyncIterator[Step]:
    """One after the other. A step that fails does not keep the next from being tried, unless the server is gone or can
    do nothing: then all that follow are told as not done. `foreign`: namespaces that get no rights, by this server or
    one after it, and why."""
    gone = ""
    for todo in todos:
        if gone:
            if todo.namespace:
                foreign.setdefault(todo.namespace, UNSEEN)
            yield Step(server, todo.what, "not done", gone)
            continue
        if todo.namespace in foreign:
            yield Step(server, todo.what, "not done", f"the namespace {todo.namespace} {foreign[todo.namespace]}")
            continue
        try:
            done = await todo.do(dry)
        except BackendError as error:
            if todo.namespace:
                foreign[todo.namespace] = THEIRS if isinstance(error, SomebodyElses) else UNSEEN
            fix = error.hint or ""
            if isinstance(error, ServerRefused) and error.status == 403:
                fix = await lacking.told(error)
            yield Step(server, todo.what, "failed", error.message, fix)
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


def ours(found: str, wanted: str) -> bool:
    """Is what has this description ours? `wanted`: ours now; other releases word it in other ways after its beginning,
    `modalnomad`, by which Terraform tells too."""
    return OWNER.split(found)[0] == OWNER.split(wanted)[0]


def different(policy: Policy, description: str, text: str, remove: str) -> str:
    """What is different about a policy that is there under this name; empty: nothing. `remove`: the command that
    deletes it. Raises SomebodyElses: neither description nor rules are ours."""
    if policy.same(text):
        return "" if description == policy.description else "its description was different"
    if ours(description, policy.description):
        return "its rules were different"
    shown = f"described as {description!r:.200}" if description else "without a description"
    raise SomebodyElses(
        f"there is another policy of this name, {shown}, with other rules",
        f"look at it; when nobody needs it as it is: `{remove}`, then this command again; tokens that name it then get "
        "the rights of the new one",
    )
