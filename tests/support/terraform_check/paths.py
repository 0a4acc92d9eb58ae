"""What other modules take from module `names`, followed into the values that it gives."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.support.hcl import INDEX, SPLAT
from tests.support.terraform import TERRAFORM, run
from tests.support.terraform_check.model import Finding, Module, Placed, Texts, modules

DEEPEST: Final = 8
"""Locals of locals, at most."""

Parts = tuple[str, ...]


def outputs_of_names(folder: Path) -> Mapping[str, Any]:
    """Its outputs for one environment, by Terraform itself; `folder` takes the plan."""
    names, plan = TERRAFORM / "modules" / "names", folder / "plan"
    words = ("plan", "-lock=false", f"-out={plan}", '-var=environments=["main"]')
    planned = run(names, *words, data=folder / "data")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    told = run(names, "show", "-json", str(plan), data=folder / "data")
    assert told.returncode == 0, told.stderr
    given = json.loads(told.stdout)["planned_values"]["outputs"]
    return {name: output["value"] for name, output in given.items()}


def astray(files: Texts, given: Mapping[str, Any]) -> list[Finding]:
    """References that lead to nothing in `given`."""
    found = set()
    for module in modules(files).values():
        for placed, reference in module.references():
            for parts in _meant(reference.parts, placed, module, DEEPEST):
                call = module.calls.get(parts[1]) if len(parts) > 1 else None
                if call is None or not (module.called(call) or "").endswith("/modules/names"):
                    continue
                if (wrong := _lost(parts[2:], given)) is not None:
                    what = f"`{reference}`: module `names` gives no `{wrong[0]}` there"
                    found.add(placed.finding(reference.line, what, wrong[1]))
    return sorted(found)


def _meant(parts: Parts, placed: Placed, module: Module, further: int) -> Iterator[Parts]:
    """The reference as one to a module, through locals and `for_each`; nothing where it is none."""
    if parts[0] == "module":
        yield parts
    elif further and parts[0] == "local" and len(parts) > 1 and parts[1] in module.locals:
        home, value = module.locals[parts[1]]
        if value.reference is not None:
            yield from _meant((*value.reference.parts, *parts[2:]), home, module, further - 1)
    elif further and parts[:2] == ("each", "value") and "for_each" in placed.block.arguments:
        over = placed.block.arguments["for_each"]
        if over.call is None and not over.text.startswith(("{", "[")):
            for reference in over.references:
                if reference.parts[0] in {"module", "local"}:
                    yield from _meant((*reference.parts, INDEX, *parts[2:]), placed, module, further - 1)


def _lost(parts: Parts, value: Any) -> tuple[str, str] | None:
    """The first part that is not there, and the cure."""
    for part in parts:
        if part in {INDEX, SPLAT}:
            inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
            if not inner:
                return None
            value = inner[0]
        elif not isinstance(value, dict):
            return part, "it ends before"
        elif part not in value:
            similar = difflib.get_close_matches(part, value, n=1)
            return part, f"did you mean `{similar[0]}`?" if similar else f"there are {', '.join(value)}"
        else:
            value = value[part]
    return None
