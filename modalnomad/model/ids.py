"""Identifiers and the rules for names."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

RevisionId = NewType("RevisionId", str)
"""32 lower-case hex digits: truncated SHA-256 of the revision's content."""
Digest = NewType("Digest", str)
"""64 lower-case hex digits: SHA-256 of a file's bytes or of an image's definition."""

DEFAULT_ENVIRONMENT = "main"
LAST_EPOCH = 999_999_999
"""Of a replica's number. Whoever may start replicas may claim any: a number with this one is not used again."""

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
ENVIRONMENT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SECRET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
SECRET_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,16383}")
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
RESERVED_KEY = re.compile(r"(?:LD|NOMAD|VAULT|MODALNOMAD)_.*|PATH", re.DOTALL)


def env_flag(environment: str) -> str:
    """What a command that is shown to somebody needs to mean this environment; empty for the default one."""
    return "" if environment == DEFAULT_ENVIRONMENT else f" --env {environment}"


def default_label(app: str, tag: str) -> str:
    """Label of an endpoint without one of its own: `<app>-<function>`, `<app>-<class>-<method>` (design §4)."""
    return re.sub(r"[^a-z0-9-]", "-", f"{app}-{tag}".lower()).strip("-")


def cut_label(label: str) -> str:
    """At most 63 characters: longer ones become the first 56, a dash and 6 hex digits of their SHA-256."""
    if len(label) <= 63:
        return label
    return f"{label[:56]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
