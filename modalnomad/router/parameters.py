"""Class parameters: from the query string to the key of a pool.

A parameter is taken from the query by its name; a name given several times counts with its last value, as web
frameworks read a single value. The query itself goes to the app as it came, these names included. Names and values are
percent-decoded and `+` is a space (application/x-www-form-urlencoded, as browsers send queries).

    str     UTF-8 text, perhaps empty
    int     decimal digits with an optional minus sign, 64 bits
    bool    true, false, 1, 0 (letters in any case)
    bytes   the decoded bytes as they are
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from modalnomad.model.manifest import Parameter
from modalnomad.model.replica import PoolKey
from modalnomad.router.replies import Reply
from modalnomad.router.table import Match

LIMIT = 16 * 1024
"""Bytes of all values together, as canonical JSON."""

_INTEGER = re.compile(rb"-?[0-9]{1,19}")
_BOOLEANS = {b"true": True, b"1": True, b"false": False, b"0": False}
_SHOWN = 64
_WORDS = {
    "str": "text in UTF-8",
    "int": "a whole number of at most 64 bits",
    "bool": "true or false",
    "bytes": "bytes",
}


def pool_key(match: Match, query: bytes) -> PoolKey:
    """`query` is the raw bytes after `?`. Raises Reply 422 `bad_parameter` naming the parameter, what was found and the
    type."""
    declared = match.revision.function.parameters
    if not declared:
        return PoolKey(match.revision.id)
    found = _find(query, frozenset(parameter.name for parameter in declared)) if query else {}
    values: dict[str, Any] = {}
    for parameter in declared:
        raw = found.get(parameter.name)
        if raw is not None:
            values[parameter.name] = _convert(parameter, raw)
        elif parameter.has_default:
            values[parameter.name] = parameter.default
        else:
            raise _bad(f"Parameter {parameter.name!r} ({parameter.type}) is missing from the query string.")
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    if (size := len(canonical)) > LIMIT:
        raise _bad(f"The class parameters take {size} bytes together; at most {LIMIT} are allowed.")
    return PoolKey(match.revision.id, canonical)


def still_valid(key: PoolKey, match: Match) -> PoolKey | None:
    """The pool of `match` with the same parameter values; None: its parameters are others. For requests that wait
    while their route moves to a new revision."""
    declared = match.revision.function.parameters
    values: dict[str, Any] = json.loads(key.parameters) if key.parameters else {}
    if not all(parameter.name in values and _fits(parameter, values[parameter.name]) for parameter in declared):
        return None
    if len(values) != len(declared):
        return None
    return PoolKey(match.revision.id, key.parameters)


def _find(query: bytes, names: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        decoded = _decode(name).decode("utf-8", "replace")
        if decoded in names:
            found[decoded] = _decode(value)
    return found


def _decode(raw: bytes) -> bytes:
    return unquote_to_bytes(raw.replace(b"+", b" "))


def _convert(parameter: Parameter, raw: bytes) -> Any:
    if parameter.type == "str":
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _mistyped(parameter, raw) from None
    if parameter.type == "bytes":
        return {"bytes": base64.b64encode(raw).decode()}
    if parameter.type == "bool":
        if (value := _BOOLEANS.get(raw.lower())) is None:
            raise _mistyped(parameter, raw)
        return value
    if _INTEGER.fullmatch(raw) is None or not -(2**63) <= (number := int(raw)) < 2**63:
        raise _mistyped(parameter, raw)
    return number


def _fits(parameter: Parameter, value: Any) -> bool:
    if parameter.type == "bytes":
        return isinstance(value, dict)
    return type(value).__name__ == parameter.type


def _mistyped(parameter: Parameter, raw: bytes) -> Reply:
    shown = raw[:_SHOWN].decode("utf-8", "backslashreplace") + ("…" if len(raw) > _SHOWN else "")
    return _bad(f"Parameter {parameter.name!r} is {shown!r}; it must be {parameter.type}: {_WORDS[parameter.type]}.")


def _bad(detail: str) -> Reply:
    return Reply(422, "bad_parameter", detail)
