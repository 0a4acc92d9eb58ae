"""What other modules take from module `names`, followed into the values that it gives."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.hcl import INDEX, SPLAT
from tests.support.terraform import TERRAFORM, run
from tests.support.terraform_check.arguments import unlike
from tests.support.terraform_check.model import Finding, Module, Placed, Schema, Texts, modules
from tests.support.terraform_schema import split

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


def astray(files: Texts, given: Mapping[str, Any], schema: Schema) -> list[Finding]:
    """References that lead to nothing in `given`, or to what the provider does not take there."""
    found = set()
    for module in modules(files).values():
        found |= {one for placed in module.of("resource") for one in _of_another_type(placed, module, given, schema)}
        for placed, reference in module.references():
            for parts in _meant(reference.parts, placed, module, DEEPEST):
                value = _given(parts[2:], given) if _of_names(parts, module) else None
                if isinstance(value, Lost):
                    what = f"`{reference}`: module `names` gives no `{value.part}` there"
                    found.add(placed.finding(reference.line, what, value.cure))
    return sorted(found)


def _of_names(parts: Parts, module: Module) -> bool:
    call = module.calls.get(parts[1]) if len(parts) > 1 else None
    return call is not None and (module.called(call) or "").endswith("/modules/names")


def _of_another_type(placed: Placed, module: Module, given: Mapping[str, Any], schema: Schema) -> Iterator[Finding]:
    """Arguments that are one reference, to an object where a text is wanted for example."""
    entries = schema["resource"].get(placed.block.labels[0], {})
    for name, argument in placed.block.arguments.items():
        entry = entries.get(name)
        if argument.reference is None or not isinstance(entry, str):
            continue
        for parts in _meant(argument.reference.parts, placed, module, DEEPEST):
            value = _given(parts[2:], given) if _of_names(parts, module) else None
            for where, wrong in unlike(value, split(entry)[1]) if not isinstance(value, Lost) else ():
                what = f"`{name}{where}` of {placed.address} is {wrong}, by {argument.reference}"
                yield placed.finding(argument.line, what, f"write a {split(entry)[1]}")


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


class Lost(NamedTuple):
    """The first part that is not there, and the cure."""

    part: str
    cure: str


def _given(parts: Parts, value: Any) -> Any:
    """What is there, `None` where that is not known, or `Lost`."""
    for part in parts:
        if part in {INDEX, SPLAT}:
            inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
            if not inner:
                return None
            value = inner[0]
        elif not isinstance(value, dict):
            return Lost(part, "it ends before")
        elif part not in value:
            similar = difflib.get_close_matches(part, value, n=1)
            return Lost(part, f"did you mean `{similar[0]}`?" if similar else f"there are {', '.join(value)}")
        else:
            value = value[part]
    return value
