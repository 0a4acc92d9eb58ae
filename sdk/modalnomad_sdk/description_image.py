"""An Image's chain as plain data, in the shape of the platform's manifest."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from .build_call import call_data
from .exception import InvalidError
from .image import AUTO_DOCKERIGNORE, Image
from .image_base import LocalFiles, Step
from .patterns import NON_PYTHON_FILES, FilePatternMatcher, Ignore
from .secret import Secret

_COPIES: dict[str, Literal["file", "dir", "python"]] = {
    "add_local_file": "file",
    "add_local_dir": "dir",
    "add_local_python_source": "python",
}
EVERYTHING = ("!**",)
"""A list of patterns that leaves nothing out, and is not empty: empty means the default of the kind of files."""


References = Callable[[Collection[Secret], str], list[dict[str, Any]]]
"""Secrets and where they are used → `modalnomad.model.manifest.SecretRef`s."""


def image_data(image: Image | None, references: References) -> dict[str, Any] | None:
    """`modalnomad.model.manifest.Image` of it.

    Raises:
        InvalidError: a local module or folder that the chain names is not there; the message says which line.
    """
    if image is None:
        return None
    recipe = image.recipe
    given = dict(recipe.base_arguments)
    if recipe.base_secrets:
        given["secrets"] = references(recipe.base_secrets, recipe.where)
    return {
        "base": recipe.base,
        "base_arguments": given,
        "python_version": recipe.python_version,
        "steps": [_step_data(step, references) for step in recipe.steps],
        "mounts": [_mount_data(files) for files in recipe.mounts],
        "where": recipe.where,
    }


def _step_data(step: Step, references: References) -> dict[str, Any]:
    arguments = dict(step.arguments)
    if step.secrets:
        arguments["secrets"] = references(step.secrets, step.where)
    if step.refusal:
        arguments["refusal"] = step.refusal
    if step.env:
        arguments["env"] = dict(step.env)
    if step.gpu:
        arguments["gpu"] = step.gpu
    files = step.files
    if step.function is not None:
        arguments.update(call_data(step))
    if step.kind in _COPIES:
        kind = _COPIES[step.kind]
        mount = _mount_data(LocalFiles(kind, arguments["local"], arguments["remote"], step.ignore, step.where))
        files = (mount["local"],)
        arguments = {"local": mount["local"], "remote": mount["remote"], "ignore": mount["ignore"]}
    return {"kind": step.kind, "arguments": arguments, "files": list(files), "where": step.where}


def _mount_data(files: LocalFiles) -> dict[str, Any]:
    local = module_source(files.local, files.where) if files.kind == "python" else files.local
    return {
        "kind": files.kind,
        "local": local,
        "remote": files.remote,
        "ignore": list(_patterns(files, local)),
        "where": files.where,
    }


def module_source(name: str, place: str) -> str:
    """Absolute path of a module's file or a package's folder.

    Raises:
        InvalidError: there is no such module, or it has no Python source.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise InvalidError(f"{place}: Image.add_local_python_source({name!r}): {error}") from None
    if spec is None:
        raise InvalidError(
            f"{place}: Image.add_local_python_source({name!r}): there is no such module (looked in {sys.path[0]} and "
            "where Python's packages are)"
        )
    locations = list(spec.submodule_search_locations or ())
    if locations:
        return os.path.abspath(locations[0])
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise InvalidError(f"{place}: Image.add_local_python_source({name!r}): the module has no Python source")
    return os.path.abspath(spec.origin)


def _patterns(files: LocalFiles, local: str) -> tuple[str, ...]:
    ignore: Ignore | None = files.ignore
    if ignore is None or ignore is AUTO_DOCKERIGNORE or ignore is NON_PYTHON_FILES:
        return ()
    if isinstance(ignore, FilePatternMatcher):
        return _matcher_patterns(ignore) or EVERYTHING
    if callable(ignore):
        return tuple(_left_out(ignore, Path(local))) or EVERYTHING
    if isinstance(ignore, str):
        raise InvalidError(f"{files.where}: ignore={ignore!r} is one text; write a list of patterns")
    return tuple(str(pattern) for pattern in ignore) or (EVERYTHING if files.kind == "python" else ())


def _matcher_patterns(matcher: FilePatternMatcher) -> tuple[str, ...]:
    if not matcher.negated:
        return matcher.patterns
    flipped = (
        pattern.strip()[1:] if pattern.strip().startswith("!") else f"!{pattern}" for pattern in matcher.patterns
    )
    return ("**", *flipped)


def _left_out(predicate: Any, folder: Path) -> Iterator[str]:
    """Files that a predicate leaves out, one by one: a manifest holds no code."""
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            relative = Path(parent, name).relative_to(folder)
            if predicate(relative):
                yield "".join(f"\\{char}" if char in "*?[]\\!" else char for char in relative.as_posix())
