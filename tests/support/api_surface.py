"""Public names and parameters of a package that is imported as `modal`, as JSON. Run as a program: the vendor's package
and ours cannot be in one process under one name.

    python tests/support/api_surface.py <modal | modalnomad_sdk> <class> …
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import warnings
from typing import Any

Surface = dict[str, Any]


def parameters(value: Any) -> list[list[str]] | None:
    """[name, kind, default] of each; None when it has no signature. Private ones are left out."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    return [
        [one.name, one.kind.name, default(one.default)]
        for one in signature.parameters.values()
        if not one.name.startswith("_") and one.name not in {"cls", "self"}
    ]


def default(value: Any) -> str:
    """Plain values as they are written; anything else is only `<object>`."""
    if value is inspect.Parameter.empty:
        return ""
    plain = value is None or isinstance(value, (bool, int, float, str)) or value in ([], {}, ())
    return repr(value) if plain else "<object>"


def member(owner: Any, name: str) -> Surface:
    """`kind` is callable, attribute or unavailable (ours: raises when it is used)."""
    found = getattr(owner, name)
    static = inspect.getattr_static(owner, name, None)
    if type(found).__name__ == "Missing":
        return {"kind": "unavailable"}
    if isinstance(static, property) or not callable(found):
        return {"kind": "attribute"}
    if inspect.isclass(found):
        return {"kind": "class"}
    return {"kind": "callable", "parameters": parameters(found)}


def surface(package: str, classes: list[str]) -> Surface:
    """Of the package's `__all__`, of the classes named, and of `exception`."""
    warnings.simplefilter("ignore")
    modal = importlib.import_module(package)
    exception = importlib.import_module(f"{package}.exception")
    names = {name: member(modal, name) for name in modal.__all__ if not name.startswith("_")}
    members: Surface = {}
    for name in classes:
        owner = getattr(modal, name)
        public = [one for one in dir(owner) if not one.startswith("_")]
        # Ours answers for some names without listing them.
        public += [one for one in getattr(owner, "_runtime", ()) if one not in public]
        members[name] = {one: member(owner, one) for one in sorted(public)}
        members[name]["__init__"] = {"kind": "callable", "parameters": parameters(owner.__init__) or []}
    errors = {
        name: [base.__name__ for base in value.__mro__[1:] if not base.__name__.startswith("_")]
        for name, value in vars(exception).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and not name.startswith("_")
    }
    return {"version": modal.__version__, "names": names, "members": members, "errors": errors}


if __name__ == "__main__":
    json.dump(surface(sys.argv[1], sys.argv[2:]), sys.stdout)
