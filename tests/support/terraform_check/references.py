"""Everything that is referred to exists: variables, locals, outputs of modules, attributes of resources."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tests.support.hcl import INDEX, SPLAT, Block, Reference
from tests.support.terraform_check.model import Finding, Module, Placed, Schema, referred
from tests.support.terraform_check.shape import type_of
from tests.support.terraform_schema import elements, fields, split

OWN: Final[Mapping[str, frozenset[str]]] = {
    "path": frozenset({"module", "root", "cwd"}),
    "terraform": frozenset({"workspace"}),
    "each": frozenset({"key", "value"}),
    "count": frozenset({"index"}),
}
"""What Terraform itself brings."""


def references(module: Module, modules: Mapping[str, Module], schema: Schema) -> Iterator[Finding]:
    """All findings of one module."""
    for placed in module.blocks:
        iterators = set(_iterators(placed.block))
        for reference in referred(placed.block):
            if reference.parts[0] in iterators:
                wrong = _own("each", "".join(reference.parts[1:2]), None)
            else:
                wrong = _wrong(reference, placed, module, modules, schema)
            if wrong is not None:
                yield placed.finding(reference.line, f"`{reference}`: {wrong[0]}", wrong[1])


def unused(module: Module) -> Iterator[Finding]:
    """Variables and locals that nothing reads."""
    read = set()
    for placed, reference in module.references():
        own = placed.block.kind == "variable" and placed.address == ".".join(reference.parts[:2])
        if not own:
            read.add(reference.parts[:2])
    for name, placed in module.variables.items():
        if ("var", name) not in read:
            yield placed.finding(placed.block.line, f"nothing reads variable `{name}`", "use it, or take it out")
    for name, (placed, value) in module.locals.items():
        if ("local", name) not in read:
            yield placed.finding(value.line, f"nothing reads local `{name}`", "use it, or take it out")


def _iterators(block: Block) -> Iterator[str]:
    """Names that `dynamic` blocks bring."""
    for inner in block.everywhere():
        if inner.kind == "dynamic":
            named = inner.arguments.get("iterator")
            yield named.text if named is not None else inner.labels[0]


Wrong = tuple[str, str] | None


def _wrong(
    reference: Reference, placed: Placed, module: Module, modules: Mapping[str, Module], schema: Schema
) -> Wrong:
    """What is wrong with it, and the cure."""
    root, *rest = reference.parts
    name = rest[0] if rest else ""
    if root in OWN:
        return _own(root, name, placed) or _each(reference, placed, module)
    if root == "self":
        return None
    if root == "var":
        wrong = _declared(name, module.variables, "no such variable", "declare it in variables.tf")
        return wrong or _of_variable(reference.parts, module)
    if root == "local":
        return _declared(name, module.locals, "no such local", "add it to a block `locals`")
    if root == "module":
        return _of_module(reference, module, modules)
    return _of_object(reference, module, schema)


def _own(root: str, name: str, placed: Placed | None) -> Wrong:
    """`placed` has what it takes, unless it is `None`: a dynamic block, whose own name is as `each`."""
    if name not in OWN[root]:
        return f"`{root}` has no `{name}`", f"there are {', '.join(sorted(OWN[root]))}"
    needed = {"each": "for_each", "count": "count"}.get(root)
    if placed is not None and needed is not None and needed not in placed.block.arguments:
        return f"{placed.address} has no `{needed}`", f"`{root}` is for blocks with it"
    return None


def _declared(name: str, known: Iterable[str], what: str, else_: str) -> Wrong:
    names = list(known)
    if name in names:
        return None
    similar = difflib.get_close_matches(name, names, n=1)
    return what, f"did you mean `{similar[0]}`?" if similar else else_


def _of_module(reference: Reference, module: Module, modules: Mapping[str, Module]) -> Wrong:
    name = reference.parts[1] if len(reference.parts) > 1 else ""
    call = module.calls.get(name)
    if call is None:
        return _declared(name, module.calls, "no such module is called", "add a block `module`")
    rest, wrong = _instance(reference.parts[2:], call)
    target = modules.get(module.called(call) or "")
    if wrong is None and rest and target is not None:
        return _declared(rest[0], target.outputs, f"{target.folder} has no such output", "add it to its outputs.tf")
    return wrong


def _of_object(reference: Reference, module: Module, schema: Schema) -> Wrong:
    kind, parts = "resource", reference.parts
    if parts[0] in {"data", "ephemeral"}:
        kind, parts = parts[0], parts[1:]
    address = ".".join((*(() if kind == "resource" else (kind,)), *parts[:2]))
    if len(parts) < 2 or address not in module.objects:
        return _declared(address, module.objects, "there is no such thing in this module", "write its full name")
    rest, wrong = _instance(parts[2:], module.objects[address])
    known: Mapping[str, Any] = schema[kind].get(parts[0], {})
    if wrong is not None or not rest or not known:
        return wrong
    wrong = _declared(rest[0], known, f"{parts[0]} has no such attribute", f"there are {', '.join(known)}")
    entry = known.get(rest[0])
    return _lost(rest[1:], split(entry)[1]) if isinstance(entry, str) else wrong


def _each(reference: Reference, placed: Placed, module: Module) -> Wrong:
    """Of `each.value`, where a variable is gone through."""
    over = placed.block.arguments.get("for_each")
    if reference.parts[:2] != ("each", "value") or over is None or over.reference is None:
        return None
    parts = (*over.reference.parts, INDEX, *reference.parts[2:])
    return _of_variable(parts, module) if parts[0] == "var" and parts[1] in module.variables else None


def _of_variable(parts: tuple[str, ...], module: Module) -> Wrong:
    kind = module.variables[parts[1]].block.arguments.get("type")
    return _lost(parts[2:], type_of(kind)) if kind is not None else None


def _lost(parts: tuple[str, ...], kind: str) -> Wrong:
    """Where a path leaves a value of this type."""
    for part in parts:
        outer, inner = elements(kind)
        if outer in {"string", "number", "bool"} and part != SPLAT:
            return f"a {kind} has nothing below it", "take it whole"
        if (part in {INDEX, SPLAT} and outer in {"list", "set", "map"}) or outer == "map":
            kind = inner
        elif outer == "object" and part not in {INDEX, SPLAT}:
            known = {name.rstrip("?"): one for name, one in fields(inner).items()}
            if part not in known:
                return _declared(part, known, f"there is no `{part}`", f"there are {', '.join(known)}")
            kind = known[part]
        elif outer in {"list", "set"} and not part.isdigit():
            return f"a {outer} has no `{part}`", "say which one by an index, or `[*]`"
        elif part != SPLAT:
            return None
    return None


def _instance(rest: tuple[str, ...], target: Placed) -> tuple[tuple[str, ...], Wrong]:
    """What follows the index; that one is there where it must be, and only there."""
    indexed = bool(rest) and rest[0] in {INDEX, SPLAT}
    if indexed and not target.repeated:
        return (), (f"{target.address} is one, without `count` or `for_each`", "leave the index out")
    if rest and not indexed and target.repeated:
        return (), (f"{target.address} has `count` or `for_each`", "say which one by an index")
    return (rest[1:] if indexed else rest), None
