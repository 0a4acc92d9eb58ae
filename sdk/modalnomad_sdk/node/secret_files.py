"""Secrets that Nomad wrote into files of the task: each a JSON object of strings."""

from __future__ import annotations

import json
import os
import re

from .refused import Refused

RESERVED = re.compile(r"(?:LD|NOMAD|VAULT|MODALNOMAD)_.*|PATH", re.DOTALL)


def read_secrets(folder: str, names: str) -> dict[str, str]:
    """Variables of all files in `names` (comma-separated, in `folder`), later ones winning. Raises Refused, which never
    shows a value."""
    found: dict[str, str] = {}
    for name in names.split(","):
        found.update(_read(folder, name))
    return found


def _read(folder: str, name: str) -> dict[str, str]:
    if not name or "/" in name or name in (".", ".."):
        raise Refused(f"MODALNOMAD_SECRET_FILES names {name!r}, which is no file of this task")
    try:
        with open(os.path.join(folder, name), "rb") as file:
            content = json.loads(file.read())
    except OSError as error:
        raise Refused(f"the secret in {name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise Refused(f"the secret in {name} is not JSON: did its template render?") from None
    if not isinstance(content, dict):
        raise Refused(f"the secret in {name} is not an object of names and texts")
    for key, value in content.items():
        if problem := _problem(key, value):
            raise Refused(f"the secret in {name} cannot become variables: {key!r} {problem}")
    return content


def _problem(key: str, value: object) -> str:
    """What is wrong with one variable; empty: nothing."""
    if not isinstance(value, str):
        return "is not a text: store it as one"
    if not key or "=" in key or "\0" in key:
        return "is no name of a variable"
    if RESERVED.fullmatch(key):
        return "is reserved: PATH and names beginning with LD_, NOMAD_, VAULT_ or MODALNOMAD_ are"
    if "\0" in value:
        return "holds a NUL, which no variable can"
    try:
        (key + value).encode()
    except UnicodeEncodeError:
        return "is not Unicode text"
    return ""
