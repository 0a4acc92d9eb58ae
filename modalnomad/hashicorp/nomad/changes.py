"""Nomad's diff of a job (`Diff` of a plan) in short lines. Values of a task's environment are never shown. Pure.

Shape: https://developer.hashicorp.com/nomad/api-docs/jobs#create-job-plan
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from modalnomad_sdk import contract

from modalnomad.hashicorp.nomad.api import Shape

SIGNS: Final = {"Added": "+", "Deleted": "-", "Edited": "~"}
FOR_PEOPLE: Final = ("Meta", "UI")
"""Parts of a job that nothing runs of: they differ with each deploy."""
TELLS: Final = ("GetterSource", "DestPath", "Source", "LTarget", "Name", "Label")
"""Fields by which one of several objects of a kind is known."""
TICKET: Final = f"Env[{contract.ENV_TICKET_SHA256}]"
"""Follows from the revision."""
VALUE_SHOWN: Final = 60
DIGEST: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{20,52}(?![0-9a-f])")


def job_changes(diff: Shape, ids: Sequence[str] = ()) -> tuple[str, ...]:
    """One line a change, such as `~ Resources.MemoryMB: 256 → 512`. `ids`: what differs with these in it follows from
    the revision, and says nothing."""
    lines = list(_object(diff, "", ids))
    for group in diff.get("TaskGroups") or ():
        lines += _object(group, "", ids)
        for task in group.get("Tasks") or ():
            lines += _object(task, "", ids)
    return tuple(dict.fromkeys(lines))


def _object(shape: Shape, path: str, ids: Sequence[str]) -> Iterator[str]:
    for field in shape.get("Fields") or ():
        if (line := _field(field, path, ids)) is not None:
            yield line
    for each in shape.get("Objects") or ():
        name, sign = f"{path}{each.get('Name')}", SIGNS.get(str(each.get("Type")))
        if sign is None or name.startswith(FOR_PEOPLE):
            continue
        if sign == "~":
            yield from _object(each, f"{name}.", ids)
        else:
            yield f"{sign} {name}{_told(each, sign)}"


def _field(field: Shape, path: str, ids: Sequence[str]) -> str | None:
    name, sign = str(field.get("Name")), SIGNS.get(str(field.get("Type")))
    old, new = _text(field.get("Old")), _text(field.get("New"))
    follows = any(id in text for id in ids for text in (old, new)) or (bool(ids) and name == TICKET)
    if sign is None or follows or (not path and name.startswith(FOR_PEOPLE)):
        return None
    if name.startswith("Env["):
        return f"{sign} {path}{name}"
    values = {"+": new, "-": old, "~": f"{_short(old)} → {_short(new)}"}[sign]
    return f"{sign} {path}{name}: {values if sign == '~' else _short(values)}"


def _told(shape: Shape, sign: str) -> str:
    which = "New" if sign == "+" else "Old"
    values = {str(field.get("Name")): _text(field.get(which)) for field in shape.get("Fields") or ()}
    told = next((values[name] for name in TELLS if values.get(name)), "")
    return f" {_short(told)}" if told else ""


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _short(text: str) -> str:
    text = DIGEST.sub(r"\1…", text)
    return text if len(text) <= VALUE_SHOWN else f"…{text[-VALUE_SHOWN:]}" if "/" in text else f"{text[:VALUE_SHOWN]}…"
