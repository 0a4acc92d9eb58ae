"""Mistakes one at a time, each with exactly what the check says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

MODULES: Final = "terraform/modules"
ENVIRONMENT: Final = f"{MODULES}/environment/main.tf"
NOMAD: Final = f"{MODULES}/nomad-platform/main.tf"
VAULT: Final = f"{MODULES}/vault-platform/main.tf"
CONSUL: Final = f"{MODULES}/consul-platform/main.tf"
ROUTER: Final = f"{MODULES}/router-job/main.tf"
FULL: Final = "terraform/examples/full/main.tf"
MINIMAL: Final = "terraform/examples/minimal/main.tf"


class Mutation(NamedTuple):
    """In `file`, what the pattern `old` finds first becomes `new`; `found`: a part of each finding, and no others."""

    name: str
    file: str
    old: str
    new: str
    found: tuple[str, ...]

    def apply(self, files: Mapping[str, str]) -> dict[str, str]:
        """The files with this one mistake."""
        text, times = re.subn(self.old, self.new, files[self.file], count=1, flags=re.MULTILINE | re.DOTALL)
        assert times == 1, f"{self.file} has nothing like {self.old!r} any more: write this mutation anew"
        return {**files, self.file: text}


def line(name: str) -> str:
    """A pattern for one argument's line."""
    return rf"^ *{name} += [^\n]*\n"
