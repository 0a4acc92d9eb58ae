"""What can go wrong in the store. `output` is the failing tool's own words, complete; empty when no tool ran."""

from __future__ import annotations


class StoreError(Exception):
    """Base. `message` is one sentence; `hint` says what to do next."""

    def __init__(self, message: str, output: str = "", hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.output = output
        self.hint = hint


class BuildFailed(StoreError):
    """uv or a command of the image ended with an error; nothing was left behind."""


class DiskFull(StoreError):
    """No space left on the store's device; what was half built is removed."""


class BuildCancelled(StoreError):
    """The caller gave up; the child processes are gone and what was half built is removed."""


class PythonMissing(StoreError):
    """The Python the image asks for is not on this machine, and none is ever downloaded."""


class UvMissing(StoreError):
    """The uv program was not found."""
