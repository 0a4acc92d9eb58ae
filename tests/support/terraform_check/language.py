"""What Terraform refuses whatever the providers take: labels, names given twice, what may stand where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tests.support.hcl import INDEX, Value
from tests.support.terraform_check.model import Finding, Module, Placed, Schema, referred

LABELS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("resource", "data", "ephemeral"), 2),
    **dict.fromkeys(("variable", "output", "module", "provider", "check"), 1),
    **dict.fromkeys(("terraform", "locals", "moved", "import", "removed"), 0),
}
LISTS: Final = {"compact", "concat", "distinct", "flatten", "keys", "range", "sort", "split", "tolist", "values"}
"""Functions that give a list, over which no block is repeated."""
OF_ONE: Final = {"connection", "postcondition", "provisioner"}
"""Blocks that know themselves."""


def labelled(module: Module) -> tuple[Module, list[Finding]]:
    """The module without blocks that have too few or too many labels, and what is to be said of those."""
    wrong = [one for one in module.blocks if len(one.block.labels) != LABELS.get(one.block.kind, len(one.block.labels))]
    told = [
        one.finding(
            one.block.line,
            f"`{one.block.kind}` has {len(one.block.labels)} labels",
            f"write {LABELS[one.block.kind]}",
        )
        for one in wrong
    ]
    return Module(module.folder, tuple(one for one in module.blocks if one not in wrong)), told


def language(module: Module, schema: Schema) -> Iterator[Finding]:
    """All findings of one module."""
    yield from _declared_once(module)
    yield from _circles(module)
    for name, placed in module.variables.items():
        if "type" in placed.block.arguments and not _is_type(placed.block.arguments["type"]):
            value = placed.block.arguments["type"]
            yield placed.finding(value.line, f"the type of variable `{name}` is none", "such as `list(string)`")
    for placed in [*module.objects.values(), *module.calls.values()]:
        yield from _repeated(placed)
    for placed in module.blocks:
        yield from _selves(placed)
        for inner in placed.block.everywhere():
            if "depends_on" in inner.arguments:
                yield from _depends_on(placed, inner.arguments["depends_on"])
            if inner.kind == "lifecycle" and "ignore_changes" in inner.arguments and placed.block.kind == "resource":
                yield from _ignored(placed, inner.arguments["ignore_changes"], schema)
    for name, call in module.calls.items():
        for inner in call.block.blocks:
            yield call.finding(inner.line, f"`{inner.kind}` of module `{name}` is a block", "write it with `=`")


def _declared_once(module: Module) -> Iterator[Finding]:
    seen: set[str] = set()
    for placed in module.blocks:
        names = [(placed.address, placed.block.line)]
        if placed.block.kind == "locals":
            names = [(f"local.{name}", value.line) for name, value in placed.block.arguments.items()]
        elif placed.block.kind == "provider" and (alias := placed.block.arguments.get("alias")) is not None:
            names = [(f"{placed.address}.{alias.literal}", placed.block.line)]
        elif not placed.block.labels:
            continue
        for name, line in names:
            if name in seen:
                yield placed.finding(line, f"{name} is there twice", "keep one")
            seen.add(name)


def _circles(module: Module) -> Iterator[Finding]:
    """Things and locals that read themselves, by way of others too; not by way of modules, which come part by part."""
    read: dict[str, tuple[Placed, int, set[str]]] = {}
    for address, placed in module.objects.items():
        read[address] = (placed, placed.block.line, {_address(one.parts) for one in referred(placed.block)})
    for name, (placed, value) in module.locals.items():
        read[f"local.{name}"] = (placed, value.line, {_address(one.parts) for one in value.references})
    for address, (placed, line, first) in read.items():
        reached, todo = set(first), [*first]
        while todo:
            more = read[one][2] - reached if (one := todo.pop()) in read else set()
            reached |= more
            todo += more
        if address in reached:
            yield placed.finding(line, f"{address} waits for itself", "take a reference, or a depends_on, out")


def _address(parts: tuple[str, ...]) -> str:
    return ".".join(parts[: 3 if parts[0] in {"data", "ephemeral"} else 2])


def _is_type(value: Value) -> bool:
    """A type constraint, such as `map(object({ a = optional(string) }))`."""
    if value.call is None:
        return value.text in {"string", "number", "bool", "any"}
    name, given = value.call
    if name in {"list", "set", "map"} and len(given) == 1:
        return _is_type(given[0])
    if name == "object" and len(given) == 1:
        inner = [one.call for one in given[0].items().values()]
        fields = [
            call[1][0] if call is not None and call[0] == "optional" and call[1] else one
            for call, one in zip(inner, given[0].items().values(), strict=True)
        ]
        return all(map(_is_type, fields))
    return name == "tuple" and len(given) == 1


def _repeated(placed: Placed) -> Iterator[Finding]:
    """`count` or `for_each`, over what can be gone through."""
    given = placed.block.arguments
    if {"count", "for_each"} <= given.keys():
        yield placed.finding(given["for_each"].line, f"{placed.address} has `count` and `for_each`", "keep one")
    if "for_each" in given and (
        isinstance(given["for_each"].literal, list) or (given["for_each"].call or ("",))[0] in LISTS
    ):
        yield placed.finding(given["for_each"].line, f"{placed.address} goes through a list", "write `toset(…)`")


def _selves(placed: Placed) -> Iterator[Finding]:
    for inner in placed.block.everywhere():
        for value in inner.arguments.values() if inner.kind not in OF_ONE else ():
            for reference in value.references:
                if reference.parts[0] == "self":
                    yield placed.finding(reference.line, f"`{reference}`: known in a postcondition", "name the thing")


def _depends_on(placed: Placed, value: Value) -> Iterator[Finding]:
    if not isinstance(value.literal, list) or any(isinstance(one, str) for one in value.literal):
        cure = "write `depends_on = [vault_policy.this, …]`"
        yield placed.finding(value.line, f"depends_on of {placed.address} is no list of things", cure)
    for reference in value.references:
        if len([part for part in reference.parts if part != INDEX]) > len(_address(reference.parts).split(".")):
            yield placed.finding(reference.line, f"`{reference}` in depends_on is a part", "name the whole")


def _ignored(placed: Placed, value: Value, schema: Schema) -> Iterator[Finding]:
    known = schema["resource"].get(placed.block.labels[0], {})
    if value.text == "all":
        return
    for one in value.literal if isinstance(value.literal, list) else [value.text]:
        if isinstance(one, str):
            yield placed.finding(value.line, f"ignore_changes of {placed.address} has a text", "write bare names")
    for reference in value.references:
        if known and reference.parts[0] not in known:
            what = f"{placed.address} has no `{reference.parts[0]}` to ignore changes of"
            yield placed.finding(reference.line, what, f"there are {', '.join(known)}")
