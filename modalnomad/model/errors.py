"""The platform's errors. Each says what was asked, what was found and what to do next; only `cli/` prints them.

    ModalNomadError(message, hint)      exit 1, one message and a hint, no traceback
    ├── UserError                       the user's move
    │     ├── ManifestInvalid(problems) every problem at once: path, value found, rule
    │     ├── UserCodeFailed(output)    the user's module raised while it was described: their traceback, untouched
    │     ├── SecretMissing             unknown secret or key
    │     ├── ImageBuildFailed(output)  the resolver's or the command's own words
    │     └── NotFound                  no such App, secret, token, replica …
    └── BackendError                    the machine's or the cluster's move
          ├── BackendUnreachable
          ├── BackendRefused
          └── BackendConflict           somebody else wrote first

What the router answers to a caller is not an error of this tree: see `router/replies.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ModalNomadError(Exception):
    """Base. `message` is one sentence or paragraph without a final newline; `hint` says what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(ModalNomadError):
    """Something in the user's program or command."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where (`app.py:12`, `functions.f.scaling.max_containers`), and what, with the value found."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ManifestInvalid(UserError):
    """The App cannot be deployed as written; `problems` holds all reasons."""

    def __init__(self, problems: Sequence[Problem], hint: str | None = None) -> None:
        super().__init__("\n".join(str(problem) for problem in problems), hint)
        self.problems = tuple(problems)


class UserCodeFailed(UserError):
    """The user's module raised; `output` is what it printed, traceback included, untouched."""

    def __init__(self, message: str, output: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.output = output


class SecretMissing(UserError):
    """A named secret, or a required key of one, does not exist in the environment."""


class ImageBuildFailed(UserError):
    """An image could not be resolved or built; `output` is the tool's own last words. `told`: as the last lines of the
    build's progress, so that whoever saw those need not see them again."""

    def __init__(self, message: str, output: str, hint: str | None = None, *, told: bool = False) -> None:
        super().__init__(message, hint)
        self.output = output
        self.told = told


class NotFound(UserError):
    """The named thing does not exist."""


class BackendError(ModalNomadError):
    """The machine or the cluster could not do it."""


class BackendUnreachable(BackendError):
    """No answer."""


class BackendRefused(BackendError):
    """An answer that says no: permissions, disk full, port taken."""


class BackendConflict(BackendError):
    """Compare-and-set failed: somebody else wrote first."""
