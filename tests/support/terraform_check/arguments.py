"""Every block and argument against the providers' schema, and Terraform's own blocks against the language."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tests.support.hcl import UNKNOWN, Block, Value
from tests.support.terraform_check.model import Finding, Module, Placed, Schema
from tests.support.terraform_schema import elements, fields, split

Arguments = Mapping[str, Any]

ASSERTION: Final = {"min": 0, "block": {"condition": "r any", "error_message": "r string"}}
LIFECYCLE: Final = {
    "create_before_destroy": "o bool",
    "prevent_destroy": "o bool",
    "ignore_changes": "o any",
    "replace_triggered_by": "o any",
    "precondition": ASSERTION,
    "postcondition": ASSERTION,
}
META: Final[Arguments] = {
    "count": "o number",
    "for_each": "o any",
    "depends_on": "o any",
    "provider": "o any",
    "lifecycle": {"min": 0, "max": 1, "block": LIFECYCLE},
}
LANGUAGE: Final[Mapping[str, Arguments]] = {
    "terraform": {"required_version": "r string", "required_providers": {"min": 0, "max": 1, "block": None}},
    "variable": {
        "type": "r any",
        "description": "r string",
        "default": "o any",
        "sensitive": "o bool",
        "nullable": "o bool",
        "ephemeral": "o bool",
        "validation": ASSERTION,
    },
    "output": {
        "value": "r any",
        "description": "r string",
        "sensitive": "o bool",
        "ephemeral": "o bool",
        "depends_on": "o any",
        "precondition": ASSERTION,
    },
    "check": {"data": {"min": 0, "max": 1, "block": None}, "assert": {**ASSERTION, "min": 1}},
    "moved": {"from": "r any", "to": "r any"},
    "import": {"id": "r string", "to": "r any", "for_each": "o any"},
    "removed": {"from": "r any", "lifecycle": {"min": 0, "max": 1, "block": {"destroy": "r bool"}}},
}
MOST_TOLD: Final = 20
OF_PROVIDERS: Final = ("resource", "data", "ephemeral")


def arguments(module: Module, schema: Schema) -> Iterator[Finding]:
    """All findings of one module."""
    for placed in module.blocks:
        block = placed.block
        if block.kind in LANGUAGE:
            yield from _within(placed, block, LANGUAGE[block.kind], placed.address)
        elif block.kind in OF_PROVIDERS or block.kind == "provider":
            yield from _of_provider(placed, schema)
        elif block.kind not in {"locals", "module"}:
            cure = _near(block.kind, [*LANGUAGE, *OF_PROVIDERS, "provider", "locals", "module"])
            yield placed.finding(block.line, f"there is no block `{block.kind}`", cure)
        for inner in block.everywhere():
            for name, line in inner.twice:
                yield placed.finding(line, f"`{name}` is written twice", "keep one")
    for placed in list(module.objects.values()):
        if placed.block not in [top.block for top in module.blocks]:
            yield from _of_provider(placed, schema)


def _of_provider(placed: Placed, schema: Schema) -> Iterator[Finding]:
    block = placed.block
    known = schema[block.kind]
    name = block.labels[0]
    if name not in known:
        cure = f"{_near(name, known)}; a new one goes into KEPT of tests/support/terraform_schema.py"
        yield placed.finding(block.line, f"no {block.kind} `{name}` in tests/data/provider-schema.json", cure)
        return
    meta = {"alias": "o string"} if block.kind == "provider" else META
    yield from _within(placed, block, {**meta, **known[name]}, placed.address)


def _within(placed: Placed, block: Block, known: Arguments | None, address: str) -> Iterator[Finding]:
    """Arguments and blocks of one block; `None` takes anything."""
    if known is None:
        return
    for name, value in block.arguments.items():
        yield from _argument(placed, value, known, address, name)
        version = f"{name}_version"
        if name.endswith("_wo") and version in known and version not in block.arguments:
            cure = f"write `{version} = …`: a higher one sends the value again"
            yield placed.finding(value.line, f"{address} lacks `{version}`", cure)
    given: dict[str, int] = {}
    for inner in block.blocks:
        name = inner.labels[0] if inner.kind == "dynamic" and inner.labels else inner.kind
        # A dynamic block may be none or many: it counts as one of what must be there, and not against the most allowed.
        given[name] = given.get(name, 0) + 1
        yield from _block(placed, inner, known, address, name)
    for name, entry in known.items():
        if isinstance(entry, str):
            if "r" in split(entry)[0] and name not in block.arguments:
                yield placed.finding(block.line, f"{address} lacks `{name}`", f"write `{name} = …` ({split(entry)[1]})")
        elif given.get(name, 0) < entry["min"]:
            yield placed.finding(block.line, f"{address} lacks a block `{name}`", f"write `{name} {{ … }}`")
        elif given.get(name, 0) > entry.get("max", given.get(name, 0)):
            yield placed.finding(block.line, f"{address} has `{name}` {given[name]} times", f"keep {entry['max']}")


def _argument(placed: Placed, value: Value, known: Arguments, address: str, name: str) -> Iterator[Finding]:
    entry = known.get(name)
    if entry is None:
        yield placed.finding(value.line, f"{address} has no argument `{name}`", _near(name, known))
    elif not isinstance(entry, str):
        yield placed.finding(value.line, f"`{name}` of {address} is a block", f"write `{name} {{ … }}` without `=`")
    else:
        marks, kind = split(entry)
        if not set(marks) & set("ro"):
            yield placed.finding(value.line, f"`{name}` of {address} is the provider's to tell", "leave it out")
        if "d" in marks:
            yield placed.finding(
                value.line, f"`{name}` of {address} is deprecated", "leave it out, or use what replaced it"
            )
        for where, wrong in mismatches(value, kind):
            yield placed.finding(value.line, f"`{name}{where}` of {address} is {wrong}", f"write a {kind}")


def _block(placed: Placed, inner: Block, known: Arguments, address: str, name: str) -> Iterator[Finding]:
    entry = known.get(name)
    here = f"{address}.{name}"
    if entry is None:
        yield placed.finding(inner.line, f"{address} has no block `{name}`", _near(name, known))
        return
    if isinstance(entry, str):
        outer, element = elements(split(entry)[1])
        shape, element = elements(element) if outer in {"list", "set"} else (outer, "")
        if shape != "object":
            yield placed.finding(inner.line, f"`{name}` of {address} is an argument", f"write `{name} = …`")
            return
        allowed: Arguments | None = {field: f"o {kind}" for field, kind in fields(element).items()}
    else:
        allowed = entry["block"]
    if inner.kind != "dynamic":
        yield from _within(placed, inner, allowed, here)
        return
    contents = list(inner.named("content"))
    if len(contents) != 1 or "for_each" not in inner.arguments:
        yield placed.finding(inner.line, f"dynamic {here} is incomplete", "give it `for_each` and one `content { … }`")
    for content in contents:
        yield from _within(placed, content, allowed, here)


def _near(name: str, known: Iterable[str]) -> str:
    """The cure for a word that does not exist."""
    names = sorted(known)
    if similar := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean `{similar[0]}`?"
    return f"there are {', '.join(names)}" if len(names) <= MOST_TOLD else "nothing has a name like it"


# --- types ---------------------------------------------------------------------------------------------------


def mismatches(value: Value, kind: str) -> Iterator[tuple[str, str]]:
    """Where within a value, and what stands there, that is surely of another type than `kind`."""
    return unlike(value.literal, kind)


def unlike(given: Any, kind: str, where: str = "") -> Iterator[tuple[str, str]]:
    """The same of what a value is, as far as it is known."""
    outer, inner = elements(kind)
    if given is UNKNOWN or given is None or kind == "any":
        return
    if outer in {"list", "set"} and isinstance(given, list):
        for number, one in enumerate(given):
            yield from unlike(one, inner, f"{where}[{number}]")
    elif outer == "map" and isinstance(given, dict):
        for name, one in given.items():
            yield from unlike(one, inner, f"{where}.{name if isinstance(name, str) else '?'}")
    elif outer == "object" and isinstance(given, dict):
        yield from _of_object(given, fields(inner), where)
    elif (outer, _form(given)) not in {("string", "string"), ("number", "number"), ("bool", "bool"), ("tuple", "list")}:
        yield where, f"a {_form(given)}"


def _of_object(given: dict[Any, Any], wanted: Mapping[str, str], where: str) -> Iterator[tuple[str, str]]:
    """`name?` is a field that may be left out."""
    known = {name.rstrip("?"): kind for name, kind in wanted.items()}
    for name, one in given.items():
        if name is UNKNOWN:
            return
        if name not in known:
            yield f"{where}.{name}", "unknown there"
        else:
            yield from unlike(one, known[name], f"{where}.{name}")
    for name in wanted:
        if not name.endswith("?") and name not in given:
            yield f"{where}.{name}", "missing"


def _form(given: Any) -> str:
    names = {bool: "bool", int: "number", float: "number", str: "string", list: "list", dict: "map"}
    return names[type(given)]
