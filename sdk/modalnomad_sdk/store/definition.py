"""An image's definition: plain JSON data that says everything about an environment's content.

    {"schema": 1,
     "python": "3.11.7",                     full version
     "implementation": "cpython",
     "platform": "linux-x86_64-glibc",
     "steps": [{"kind": "install", "requirements": "six==1.17.0 --hash=…\\n", "verify": true},
               {"kind": "files", "archive": sha256 of a .tar.gz},         unpacked into <env>/root
               {"kind": "run", "command": "python -m x", "environment": {…}, "workdir": "sub/folder"},
               {"kind": "call", "source": "script:app.py", "function": "download", "args": […], "kwargs": {…},
                "code": sha256 of what it is made of, "timeout": 3600.0, "environment": {…}, "workdir": ""}],
     "sources": {"environment": {"UV_INDEX": …}, "arguments": […]}}       where packages come from; not hashed

`run` and `call` may have `secrets`: references, whose values come by `Inputs.variables`. The program that a call loads
is `Inputs.source`; of it only `code` counts. `sources` is outside the digest: packages are pinned by the hashes of
their files, wherever they come from. Its values have credentials masked; `Inputs.reveal` gives them back at build time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

SCHEMA = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
STEP_KINDS = frozenset({"install", "files", "run", "call"})


def definition_digest(definition: Mapping[str, Any]) -> str:
    """SHA-256 of the definition's canonical JSON without `sources`, 64 lower-case hex digits."""
    content = {key: value for key, value in definition.items() if key != "sources"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_definition(definition: Mapping[str, Any]) -> None:
    """ValueError when this store cannot build it: another schema or an unknown step."""
    if definition.get("schema") != SCHEMA:
        raise ValueError(f"image definition of schema {definition.get('schema')!r}; this store builds {SCHEMA}")
    for step in definition.get("steps", ()):
        if step.get("kind") not in STEP_KINDS:
            raise ValueError(f"unknown step {step.get('kind')!r} in an image definition")


def packages_of(definition: Mapping[str, Any]) -> list[str]:
    """`name==version` (or `name @ url`) of everything pinned, in order."""
    installs = [step for step in definition.get("steps", ()) if step["kind"] == "install"]
    lines = [line for step in installs for line in step["requirements"].splitlines()]
    return [re.split(r" --hash=| \\| ; ", line, maxsplit=1)[0].strip() for line in lines if re.match(r"[\w.]", line)]
