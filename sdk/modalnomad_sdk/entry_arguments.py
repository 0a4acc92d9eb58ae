"""Options on the command line from a function's annotations."""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .declarations import ParameterDeclaration
from .partial import is_method


class BadSignature(Exception):
    """A parameter the command line cannot give: the end of a sentence that begins with the function's name."""


@dataclass
class Arguments:
    """What was given. `parameters`: those of the class."""

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


_CAN = "str, int, float, bool, datetime, a Literal of str or int, or Optional of one of them"


def read_arguments(
    program: str,
    doc: str,
    class_parameters: Sequence[ParameterDeclaration],
    function: Callable[..., Any],
    arguments: Sequence[str],
) -> Arguments:
    """Values for the function and, in the same set of options, for its class. `--help` and wrong usage end the
    process, as argparse does. Raises BadSignature."""
    found = list(inspect.signature(function).parameters.values())
    if found and (is_method(function) or found[0].name == "self"):
        found = found[1:]
    if len(found) == 1 and found[0].kind is inspect.Parameter.VAR_POSITIONAL and not class_parameters:
        return Arguments(args=list(arguments))
    parser = argparse.ArgumentParser(
        prog=program,
        description=doc or None,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    taken: set[str] = set()
    for parameter in class_parameters:
        taken.add(parameter.name)
        kind = _encoded if parameter.type == "bytes" else {"str": str, "int": int, "bool": bool}[parameter.type]
        _add(parser, parameter.name, kind, parameter.has_default, parameter.default, note="of the class")
    annotations = _annotations(function)
    for one in found:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            raise BadSignature(f"takes `{one}`: `*args` is possible alone, as the only parameter, and `**` is not")
        if one.name in taken:
            raise BadSignature(f"has a parameter `{one.name}`, which is a parameter of its class too: rename one")
        has_default = one.default is not one.empty
        kind = _kind(annotations.get(one.name, one.annotation), one)
        _add(parser, one.name, kind, has_default, one.default if has_default else None)
    given = vars(parser.parse_args(list(arguments)))
    result = Arguments(parameters={name: given[name] for name in taken if name in given})
    for one in found:
        if one.kind is one.POSITIONAL_ONLY:
            result.args.append(given.get(one.name, one.default))
        elif one.name in given:
            result.kwargs[one.name] = given[one.name]
    return result


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """With texts (`from __future__ import annotations`) looked up; one that cannot be stays a text."""
    try:
        return typing.get_type_hints(function)
    except Exception:
        return {}


def _kind(annotation: Any, parameter: inspect.Parameter) -> Any:
    """str, int, float, bool, datetime, or a tuple of choices. Raises BadSignature."""
    if annotation is parameter.empty:
        by_default = type(parameter.default)
        return by_default if by_default in (str, int, float, bool) else str
    if annotation in (str, int, float, bool, datetime):
        return annotation
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = [arg for arg in args if arg is not type(None)]
        if len(kinds) == 1 and len(args) == 2:
            return _kind(kinds[0], parameter)
    if origin is typing.Literal and len({type(arg) for arg in args}) == 1 and type(args[0]) in (str, int):
        return args
    shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    raise BadSignature(
        f"takes `{parameter.name}: {shown}`, which the command line cannot give: annotate it as {_CAN}, or write a "
        "local entrypoint that makes the value"
    )


def _add(
    parser: argparse.ArgumentParser, name: str, kind: Any, has_default: bool, default: Any, *, note: str = ""
) -> None:
    option = "--" + name.replace("_", "-")
    said = [note] if note else []
    if not has_default:
        said.append("required")
    elif default is not None:
        said.append(f"default: {default}".replace("%", "%%"))
    more: dict[str, Any] = {}
    if kind is bool:
        more["action"] = argparse.BooleanOptionalAction
    elif isinstance(kind, tuple):
        more.update(type=type(kind[0]), choices=kind)
    else:
        more.update(type=_when if kind is datetime else kind, metavar=_METAVARS.get(kind, "TEXT"))
    help_text = f"[{'; '.join(said)}]" if said else " "
    parser.add_argument(option, dest=name, required=not has_default, default=argparse.SUPPRESS, help=help_text, **more)


_METAVARS = {int: "N", float: "NUMBER", datetime: "YYYY-MM-DD[THH:MM:SS]"}


def _when(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date: write 2026-01-31 or 2026-01-31T12:00:00") from None


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
