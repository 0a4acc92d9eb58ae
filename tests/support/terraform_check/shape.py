"""What each module must say of itself, and that calls of modules give what they take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.support.hcl import INDEX, Reference, Value
from tests.support.terraform_check.arguments import mismatches
from tests.support.terraform_check.model import Finding, Module, Placed, Schema
from tests.support.terraform_schema import split

SECRET = re.compile(r"(^|_)(token|jwt|secret|password|secret_id|private_key)$")
VERSION = r">= \d+\.\d+(\.\d+)?"
CALL = {"source", "providers", "count", "for_each", "depends_on"}


def declared(module: Module, modules: Mapping[str, Module], schema: Schema) -> Iterator[Finding]:
    """Types, descriptions, what is sensitive."""
    for name, placed in module.variables.items():
        yield from _variable(name, placed)
    for name, placed in module.outputs.items():
        yield from _description(placed, f"output `{name}`")
        value, marked = placed.block.arguments.get("value"), placed.block.arguments.get("sensitive")
        if value is not None and (marked is None or marked.literal is not True):
            for reference in given_out(value):
                if sensitive(reference, module, modules, schema):
                    what = f"output `{name}` gives {reference}, which is sensitive"
                    yield placed.finding(value.line, what, "write `sensitive = true`")


def _variable(name: str, placed: Placed) -> Iterator[Finding]:
    given = placed.block.arguments
    yield from _description(placed, f"variable `{name}`")
    for validation in placed.block.named("validation"):
        message = validation.arguments.get("error_message")
        if message is not None and not re.search(r"\.(\"|\n\s*\w+)$", message.text):
            yield placed.finding(
                message.line, f"a message of variable `{name}` is no sentence", "end it with a full stop"
            )
        condition = validation.arguments.get("condition")
        if condition is not None and ("var", name) not in {one.parts[:2] for one in condition.references}:
            yield placed.finding(
                validation.line, f"a condition of variable `{name}` does not read it", "check its value"
            )
    if "type" in given and "default" in given:
        for where, wrong in mismatches(given["default"], type_of(given["type"])):
            what = f"the default of variable `{name}`{where} is {wrong}"
            yield placed.finding(given["default"].line, what, f"its type is {given['type'].text}")
    secret = SECRET.search(name) and given.get("type") is not None and given["type"].text == "string"
    if secret and "default" in given and given["default"].literal is not None:
        yield placed.finding(given["default"].line, f"the default of variable `{name}` is a secret", "write `null`")
    for mark in ("sensitive", "ephemeral"):
        if secret and (mark not in given or given[mark].literal is not True):
            what = f"variable `{name}` holds a secret, by its name"
            yield placed.finding(placed.block.line, what, f"write `{mark} = true`: it is neither shown nor kept")


def given_out(value: Value) -> Iterator[Reference]:
    """What it reads; a thing that a `for` goes through counts by what is taken of its elements."""
    parts = [one.parts for one in value.references]
    for one in value.references:
        if not any(other[: len(one.parts) + 1] == (*one.parts, INDEX) for other in parts):
            yield one


def _description(placed: Placed, what: str) -> Iterator[Finding]:
    description = placed.block.arguments.get("description")
    if description is not None and not str(description.literal).rstrip().endswith("."):
        yield placed.finding(description.line, f"the description of {what} is no sentence", "end it with a full stop")


DEEPEST: Final = 8
"""Locals of locals, at most."""


def sensitive(
    reference: Reference, module: Module, modules: Mapping[str, Module], schema: Schema, further: int = DEEPEST
) -> bool:
    """Whether what it refers to is secret: by the provider's schema, or by an output or variable marked so."""
    root, *rest = reference.parts
    if root == "local" and rest and rest[0] in module.locals:
        read = module.locals[rest[0]][1].references if further else ()
        return any(sensitive(one, module, modules, schema, further - 1) for one in read)
    if root == "var" and rest and rest[0] in module.variables:
        return _marked(module.variables[rest[0]])
    names = [part for part in rest if not part.startswith("[")]
    if root == "module" and names and names[0] in module.calls:
        target = modules.get(module.called(module.calls[names[0]]) or "")
        given = target.outputs if target is not None else {}
        return any(_marked(one) for name, one in given.items() if names[1:2] in ([], [name]))
    kind, parts = (root, names) if root in {"data", "ephemeral"} else ("resource", [root, *names])
    entries: Mapping[str, Any] = schema[kind].get(parts[0], {}) if parts else {}
    some = [one for name, one in entries.items() if parts[2:3] in ([], [name])]
    return any("s" in split(one)[0] for one in some if isinstance(one, str))


def _marked(placed: Placed) -> bool:
    marked = placed.block.arguments.get("sensitive")
    return marked is not None and marked.literal is True


# --- calls ---------------------------------------------------------------------------------------------------


def calls(module: Module, modules: Mapping[str, Module]) -> Iterator[Finding]:
    """Each module that is called exists, gets what it needs, and nothing that it does not know."""
    for name, call in module.calls.items():
        folder = module.called(call)
        target = modules.get(folder or "")
        if target is None:
            yield call.finding(call.block.line, f"module `{name}` names no folder of modules", f"there is no {folder}")
            continue
        for argument, value in call.block.arguments.items():
            if argument in CALL:
                continue
            variable = target.variables.get(argument)
            if variable is None:
                cure = f"there are {', '.join(target.variables)}"
                yield call.finding(value.line, f"{target.folder} has no variable `{argument}`", cure)
            elif value.literal is None and _never_null(variable):
                what = f"`{argument}` of module `{name}` is null"
                yield call.finding(value.line, what, f"{target.folder} needs a value: write one, or leave it out")
            elif "type" in variable.block.arguments:
                kind = type_of(variable.block.arguments["type"])
                for where, wrong in mismatches(value, kind):
                    yield call.finding(
                        value.line, f"`{argument}{where}` of module `{name}` is {wrong}", f"write a {kind}"
                    )
        for argument, variable in target.variables.items():
            if "default" not in variable.block.arguments and argument not in call.block.arguments:
                what = f"module `{name}` lacks `{argument}`"
                yield call.finding(call.block.line, what, f"{target.folder} has no default for it")


def _never_null(variable: Placed) -> bool:
    nullable = variable.block.arguments.get("nullable")
    return nullable is not None and nullable.literal is False and "default" not in variable.block.arguments


def type_of(value: Value) -> str:
    """A variable's type as the schema writes types; `name?` is a field that may be left out."""
    if value.call is None:
        inner = {f"{name}{'?' * _optional(one)}": type_of(one) for name, one in value.items().items()}
        return "{" + ",".join(f"{name}={kind}" for name, kind in inner.items()) + "}" if inner else value.text
    name, given = value.call
    return type_of(given[0]) if name == "optional" else f"{name}({type_of(given[0])})"


def _optional(value: Value) -> bool:
    return value.call is not None and value.call[0] == "optional"


# --- versions and providers ----------------------------------------------------------------------------------


def required(module: Module) -> dict[str, Value]:
    """Providers that a module says it needs."""
    return {
        name: value
        for placed in module.of("terraform")
        for block in placed.block.named("required_providers")
        for name, value in block.arguments.items()
    }


def used(module: Module) -> dict[str, Placed]:
    """Providers by what is used of them."""
    return {placed.block.labels[0].partition("_")[0]: placed for placed in module.objects.values()}


def versions(module: Module, modules: Mapping[str, Module]) -> Iterator[Finding]:
    """Every module says which Terraform and which providers it needs; only those that people run set providers up."""
    settings = list(module.of("terraform"))
    first = module.blocks[0]
    if not settings:
        yield Finding(first.file, 1, f"{module.folder} says no version", "write `terraform { required_version = … }`")
    for placed in settings:
        version = placed.block.arguments.get("required_version")
        if version is not None and not re.fullmatch(VERSION, str(version.literal)):
            what = f"required_version of {module.folder} says no least version"
            yield placed.finding(version.line, what, 'write ">= 1.11"')
    needed, wanted = required(module), dict(used(module))
    for call in module.calls.values():
        target = modules.get(module.called(call) or "")
        if module.is_root and target is not None:
            wanted |= dict.fromkeys(required(target), call)
    for provider, placed in wanted.items():
        if provider not in needed:
            cure = "name it in required_providers, with source and version"
            yield placed.finding(placed.block.line, f"{placed.address} needs provider `{provider}`", cure)
    configured = {placed.block.labels[0]: placed for placed in module.of("provider")}
    for provider, value in needed.items():
        given = value.literal if isinstance(value.literal, dict) else {}
        if given.get("source") != f"hashicorp/{provider}" or not re.fullmatch(VERSION, str(given.get("version"))):
            what = f"provider `{provider}` of {module.folder} lacks source or version"
            yield Finding(
                first.file, value.line, what, f'write {{ source = "hashicorp/{provider}", version = ">= …" }}'
            )
        if provider not in wanted:
            yield Finding(first.file, value.line, f"{module.folder} does not use provider `{provider}`", "take it out")
        if module.is_root and provider not in configured:
            what = f"{module.folder} does not set up provider `{provider}`"
            yield Finding(first.file, value.line, what, f'write `provider "{provider}" {{ … }}`')
    if not module.is_root:
        for placed in configured.values():
            what = f"{module.folder} sets up a provider"
            yield placed.finding(placed.block.line, what, "leave that to the module that people run")
