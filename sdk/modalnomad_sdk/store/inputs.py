"""What a build needs beside the definition, and what must not be part of it: places on this machine and credentials."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Inputs:
    """`python`: the interpreter to use (None: looked for). `archives`: digest of a `files` step → its .tar.gz here.
    `reveal`: masked text of `sources` → the real one, for index addresses with credentials; never shown.
    `secrets`: texts that no line of output may show. `variables`: number of a step → variables it gets from secrets.
    `source`: the program that `call` steps load, as .tar.gz. `cancelled`: set it from another thread to stop the
    build."""

    python: Path | None = None
    archives: Mapping[str, Path] = field(default_factory=dict)
    reveal: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)
    variables: Mapping[int, Mapping[str, str]] = field(default_factory=dict, repr=False)
    source: Path | None = None
    cancelled: threading.Event | None = None
