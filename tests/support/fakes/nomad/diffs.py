"""`Diff` of a plan: what of a job's specification is added, deleted or edited. Names of fields and maps are as Nomad's
(`Meta[key]`, `args[0]`), objects in lists bear the singular of the list's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.support.fakes.nomad.state import Shape

_SKIPPED: Final = frozenset(
    {
        "ID",
        "Version",
        "VersionTag",
        "Status",
        "StatusDescription",
        "CreateIndex",
        "ModifyIndex",
        "JobModifyIndex",
        "SubmitTime",
        "Stable",
        "Update",
        "TaskGroups",
        "Tasks",
        "NomadTokenID",
        "DispatchIdempotencyToken",
        "Identity",
    }
)
_FLAT: Final = frozenset({"Meta", "Env"})
_IN_PLACE: Final = frozenset({"KillTimeout", "RestartPolicy", "LogConfig", "ShutdownDelay", "Services", "KillSignal"})


def job_diff(old: Shape | None, new: Shape, counts: Mapping[str, Shape]) -> Shape:
    """`counts`: of the groups' updates, by name."""
    diff = _object(old or {}, new, None)
    before = {group["Name"]: group for group in (old or {}).get("TaskGroups") or ()}
    after = {group["Name"]: group for group in new["TaskGroups"] or ()}
    names = sorted({*before, *after})
    groups = [_group(before.get(name), after.get(name), counts.get(name, {})) for name in names]
    kind = "Added" if old is None else _kind(diff, *groups)
    return {"Fields": diff["Fields"], "ID": new["ID"], "Objects": diff["Objects"], "TaskGroups": groups, "Type": kind}


def _group(old: Shape | None, new: Shape | None, counts: Shape) -> Shape:
    diff = _object(old or {}, new or {}, None)
    for field in diff["Fields"] or ():
        if field["Name"] == "Count":
            grown = int(field["New"] or 0) > int(field["Old"] or 0)
            field["Annotations"] = ["forces create" if grown else "forces destroy"]
    before = {task["Name"]: task for task in (old or {}).get("Tasks") or ()}
    after = {task["Name"]: task for task in (new or {}).get("Tasks") or ()}
    tasks = [_task(before.get(name), after.get(name)) for name in sorted({*before, *after})]
    names = {"Place": "create", "Stop": "destroy", "DestructiveUpdate": "create/destroy update"}
    names |= {"InPlaceUpdate": "in-place update", "Migrate": "migrate", "Ignore": "ignore"}
    updates = {shown: counts[name] for name, shown in names.items() if counts.get(name)}
    kind = "Added" if old is None else "Deleted" if new is None else _kind(diff, *tasks)
    return {
        "Fields": diff["Fields"],
        "Name": str((new or old or {})["Name"]),
        "Objects": diff["Objects"],
        "Tasks": tasks or None,
        "Type": kind,
        "Updates": updates or None,
    }


def _task(old: Shape | None, new: Shape | None) -> Shape:
    diff = _object(old or {}, new or {}, None)
    kind = "Added" if old is None else "Deleted" if new is None else _kind(diff)
    changed = {field["Name"] for field in diff["Fields"] or ()} | {each["Name"] for each in diff["Objects"] or ()}
    notes = {"Added": "forces create", "Deleted": "forces destroy"}
    note = notes.get(kind)
    if kind == "Edited":
        note = "forces in-place update" if changed <= _IN_PLACE else "forces create/destroy update"
    return {
        "Annotations": [note] if note else None,
        "Fields": diff["Fields"],
        "Name": str((new or old or {})["Name"]),
        "Objects": diff["Objects"],
        "Type": kind,
    }


def _kind(*parts: Shape) -> str:
    for part in parts:
        if part.get("Type", "None") != "None" or part.get("Fields") or part.get("Objects"):
            return "Edited"
    return "None"


def _object(old: Mapping[str, Any], new: Mapping[str, Any], name: str | None) -> Shape:
    fields: list[Shape] = []
    objects: list[Shape] = []
    for key in sorted({*old, *new} - _SKIPPED):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if key in _FLAT:
            fields += _flat(key, before or {}, after or {})
        elif _is_list(before, after) and not _holds_objects(before, after) and name != "Config":
            objects += _set(key, before or [], after or [])
        elif _is_list(before, after) and not _holds_objects(before, after):
            fields += _flat(key, dict(enumerate(before or ())), dict(enumerate(after or ())))
        elif _is_list(before, after):
            objects += _items(key, before or [], after or [])
        elif isinstance(before, dict) or isinstance(after, dict):
            inner = _object(before or {}, after or {}, key)
            objects.append({"Fields": inner["Fields"], "Name": key, "Objects": inner["Objects"], "Type": inner["Type"]})
        elif _shown(before) != _shown(after):
            fields.append(_field(key, before, after))
    kind = "Added" if not old else "Deleted" if not new else "Edited"
    return {"Fields": fields or None, "Objects": objects or None, "Type": kind if fields or objects else "None"}


def _is_list(before: Any, after: Any) -> bool:
    return isinstance(before, list) or isinstance(after, list)


def _holds_objects(before: Any, after: Any) -> bool:
    return any(isinstance(each, dict) for each in [*(before or ()), *(after or ())])


def _items(key: str, before: list[Any], after: list[Any]) -> list[Shape]:
    found = []
    for number in range(max(len(before), len(after))):
        old = before[number] if number < len(before) else {}
        new = after[number] if number < len(after) else {}
        if old != new:
            inner = _object(old, new, key)
            name = key.removesuffix("s")
            found.append({"Fields": inner["Fields"], "Name": name, "Objects": inner["Objects"], "Type": inner["Type"]})
    return found


def _set(key: str, before: list[Any], after: list[Any]) -> list[Shape]:
    fields = [_field(key, None, item) for item in after if item not in before]
    fields += [_field(key, item, None) for item in before if item not in after]
    kind = "Added" if not before else "Deleted" if not after else "Edited"
    return [{"Fields": fields, "Name": key, "Objects": None, "Type": kind}] if fields else []


def _flat(key: str, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[Shape]:
    names = sorted({*before, *after})
    return [_field(f"{key}[{n}]", before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]


def _field(name: str, old: Any, new: Any) -> Shape:
    kind = "Added" if old is None else "Deleted" if new is None else "Edited"
    return {"Annotations": None, "Name": name, "New": _shown(new), "Old": _shown(old), "Type": kind}


def _shown(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
