"""Secret: environment variables that are kept apart from the program."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import state, where
from .exception import InvalidError
from .unavailable import Missing

if TYPE_CHECKING:
    from .process import Client

_COMMANDS = "Use `modalnomad secret create`, `list` and `delete`"


class Secret:
    """Variables for a Function's environment; made by the `from_…` constructors.

    No message, repr or manifest holds a value. A secret that has values here becomes an anonymous one at deploy.
    """

    objects = Missing("Secret.objects", _COMMANDS)

    def __init__(
        self,
        *,
        name: str | None = None,
        environment_name: str | None = None,
        required_keys: Sequence[str] = (),
        load: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        self._name = name
        self.environment_name = environment_name
        self.required_keys = tuple(required_keys)
        self._load = load
        self._where = where.caller()

    @property
    def name(self) -> str | None:
        """Name of a stored Secret; None for one that has its values here."""
        return self._name

    def _values(self) -> Mapping[str, str] | None:
        """Values of a secret that has them here; None for one that is stored. Read at deploy only."""
        return None if self._load is None else self._load()

    @staticmethod
    def from_dict(env_dict: Mapping[str, str | None] = {}) -> Secret:
        """The given variables. A value of None leaves the variable out.

        Raises:
            InvalidError: a key or value is not a text.
        """
        place = where.caller()
        if not isinstance(env_dict, Mapping):
            raise InvalidError(f"{place}: Secret.from_dict needs a dict of texts, not a {type(env_dict).__name__}")
        return Secret(load=_constant(checked(env_dict, place, "Secret.from_dict")))

    @staticmethod
    def from_local_environ(env_keys: Sequence[str]) -> Secret:
        """Variables of the environment that the deploy runs in.

        Raises:
            InvalidError: one of them is not set there.
        """
        if state.replica() is not None:
            return Secret(load=dict)
        absent = sorted(key for key in env_keys if key not in os.environ)
        if absent:
            raise InvalidError(f"{where.caller()}: Secret.from_local_environ: not set here: {', '.join(absent)}")
        return Secret(load=_constant({key: os.environ[key] for key in env_keys}))

    @staticmethod
    def from_dotenv(path: str | Path | None = None, *, filename: str = ".env", client: Client | None = None) -> Secret:
        """Variables of a dotenv file: `path` (a file, or a folder that it is in or above), else searched upward from
        the working directory. Read at deploy.
        """
        place = where.caller()
        if state.replica() is not None:
            return Secret(load=dict)
        start = Path(path) if path is not None else Path.cwd()
        return Secret(load=lambda: _read_dotenv(start, filename, place))

    @staticmethod
    def from_name(
        name: str,
        *,
        environment_name: str | None = None,
        required_keys: Sequence[str] = [],
        client: Client | None = None,
    ) -> Secret:
        """A stored secret. That it exists, with all of `required_keys`, is checked at deploy."""
        if not isinstance(name, str) or not name:
            raise InvalidError(f"{where.caller()}: Secret.from_name({name!r}): a name is needed")
        if isinstance(required_keys, str):
            raise InvalidError(f"{where.caller()}: Secret.from_name(required_keys={required_keys!r}): write a list")
        return Secret(name=name, environment_name=environment_name, required_keys=required_keys)

    def hydrate(self, client: Client | None = None) -> Secret:
        """Nothing to do here: secrets are resolved at deploy."""
        return self

    client = Missing("Secret.client", _COMMANDS)
    get_dashboard_url = Missing("Secret.get_dashboard_url", _COMMANDS)
    info = Missing("Secret.info", _COMMANDS)
    object_id = Missing("Secret.object_id", _COMMANDS)
    update = Missing("Secret.update", _COMMANDS)

    def __repr__(self) -> str:
        return f"Secret.from_name({self._name!r})" if self._name else "<Secret with values of its own>"


def _constant(values: Mapping[str, str]) -> Callable[[], Mapping[str, str]]:
    return lambda: values


def checked(values: Mapping[str, Any], place: str, what: str) -> dict[str, str]:
    """`values` without those that are None.

    Raises:
        InvalidError: a key or value is not a text; only the key is named.
    """
    for key, value in values.items():
        if not isinstance(key, str):
            raise InvalidError(f"{place}: {what}: the key {key!r} is a {type(key).__name__}; a text is needed")
        if value is not None and not isinstance(value, str):
            raise InvalidError(
                f"{place}: {what}: the value of `{key}` is a {type(value).__name__}; a text is needed, as in str(…)"
            )
    return {key: value for key, value in values.items() if value is not None}


def _read_dotenv(start: Path, filename: str, place: str) -> dict[str, str]:
    if start.is_file():
        return parse_dotenv(start.read_text(encoding="utf-8"))
    start = Path(os.path.abspath(start))
    for folder in (start, *start.parents):
        if (folder / filename).is_file():
            return parse_dotenv((folder / filename).read_text(encoding="utf-8"))
    raise InvalidError(f"{place}: Secret.from_dotenv: there is no {filename} in {start} or above it")


_LINE = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?(?P<key>[A-Za-z_][A-Za-z0-9_.]*)[ \t]*=[ \t]*
    (?:'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|(?P<plain>[^\n]*?))
    [ \t]*(?:(?:^|(?<=\s))\#[^\n]*)?$""",
    re.MULTILINE | re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def parse_dotenv(text: str) -> dict[str, str]:
    """KEY=value lines: comments, `export`, single quotes (literal) and double quotes (escapes), also over lines."""
    found: dict[str, str] = {}
    for match in _LINE.finditer(text.replace("\r\n", "\n")):
        if match["single"] is not None:
            value = match["single"]
        elif match["double"] is not None:
            value = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), match["double"], flags=re.DOTALL)
        else:
            value = match["plain"].strip()
        found[match["key"]] = value
    return found
