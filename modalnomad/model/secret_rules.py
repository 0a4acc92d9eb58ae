"""What may be the name, a key or a value of a secret, and how it is told that one is not there. Pure. No value, not
even a part of one, stands in any message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from modalnomad.model.errors import BackendConflict, NotFound, SecretMissing, UserError
from modalnomad.model.ids import ENVIRONMENT_NAME, RESERVED_KEY, SECRET_KEY, SECRET_NAME, env_flag
from modalnomad.model.manifest import SecretRef

VALUE_LIMIT: Final = 32_768
"""Characters of one value."""
ENTRY_LIMIT: Final = 131_071
"""Bytes of `KEY=VALUE`: what Linux takes as one environment variable."""
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
NAME_RULE: Final = "1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit"


def check_environment(environment: str) -> str:
    """The same. Raises UserError."""
    if not ENVIRONMENT_NAME.fullmatch(environment):
        raise UserError(
            f"{environment!r} is not the name of an environment",
            "a name is 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit",
        )
    return environment


def check_name(name: str) -> None:
    """Raises UserError."""
    if not SECRET_NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a name for a secret", f"a name is {NAME_RULE}")


def check_values(values: Mapping[str, str], what: str) -> None:
    """Raises UserError with all problems at once. `what`: `secret db`."""
    problems = []
    for key, value in values.items():
        if not SECRET_KEY.fullmatch(key):
            problems.append(f"{key[:80]!r} is not a key: it must be a name as environment variables have it")
        elif RESERVED_KEY.fullmatch(key):
            problems.append(f"{key} is reserved: PATH and names beginning with LD_, NOMAD_, VAULT_ or MODALNOMAD_ are")
        elif len(value) > VALUE_LIMIT:
            problems.append(f"the value of {key} has {len(value):,} characters, more than {VALUE_LIMIT:,}")
        elif "\0" in value:
            problems.append(f"the value of {key} contains a NUL character, which no environment variable can hold")
        elif not _encodable(value):
            problems.append(f"the value of {key} contains half a surrogate pair, which is not text")
        elif len(key) + 1 + len(value.encode("utf-8", "surrogateescape")) > ENTRY_LIMIT:
            problems.append(f"{key} and its value are longer than {ENTRY_LIMIT:,} bytes of UTF-8")
    if problems:
        raise UserError(f"{what} cannot be stored:\n" + "\n".join(f"  {problem}" for problem in problems))


def _encodable(value: str) -> bool:
    """Undecodable bytes of the command line (surrogateescape) travel on as they came; other lone surrogates cannot."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def check_digest(digest: str) -> str:
    """The same. Raises UserError."""
    if not DIGEST.fullmatch(digest):
        raise UserError(f"{digest!r} is not a SHA-256 digest")
    return digest


def check_present(found: Iterable[tuple[SecretRef, str, frozenset[str] | None]]) -> None:
    """Each reference, its environment, and the keys that are there, None: no such secret. Raises SecretMissing naming
    every absent secret and every absent required key, with the commands that create them."""
    problems: list[str] = []
    hints: list[str] = []
    for ref, where, keys in found:
        if keys is None:
            problems.append(_missing(ref, where))
            hints.append(_create_hint(ref.name, ref.required_keys, where) if ref.name else "deploy the App again")
            continue
        if absent := [key for key in ref.required_keys if key not in keys]:
            has = ", ".join(sorted(keys)) or "none"
            shown = ref.name or "of Secret.from_dict"
            problems.append(f"secret {shown} in environment {where} has no key {', '.join(absent)} (its keys: {has})")
            if ref.name:
                hints.append(_create_hint(ref.name, sorted({*keys, *ref.required_keys}), where, force=True))
    if problems:
        raise SecretMissing("\n".join(problems), "\n".join(["create it with:", *dict.fromkeys(hints)]))


def exists_already(name: str, environment: str) -> BackendConflict:
    """To be raised."""
    return BackendConflict(
        f"secret {name} exists already in environment {environment}",
        f"replace it with: modalnomad secret create {name} KEY=VALUE --force{env_flag(environment)}",
    )


def not_there(name: str, environment: str) -> NotFound:
    """To be raised."""
    return NotFound(
        f"there is no secret {name} in environment {environment}",
        f"see what there is with: modalnomad secret list{env_flag(environment)}",
    )


def _missing(ref: SecretRef, environment: str) -> str:
    if ref.name is None:
        return f"the values of a Secret.from_dict are not stored in environment {environment}"
    problem = f"there is no secret {ref.name} in environment {environment}"
    if not SECRET_NAME.fullmatch(ref.name):
        problem += f", and there cannot be: a name is {NAME_RULE}"
    return problem


def _create_hint(name: str, keys: Sequence[str], environment: str, *, force: bool = False) -> str:
    pairs = " ".join(f"{key}=VALUE" for key in keys) or "KEY=VALUE"
    return f"  modalnomad secret create {name} {pairs}{' --force' if force else ''}{env_flag(environment)}"
