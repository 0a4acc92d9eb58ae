"""How a start ends that cannot go on."""

from __future__ import annotations

from modalnomad_sdk.contract import Exit


class Refused(Exception):
    """The message says what was wanted, what was found and what to do; it holds no secret's value."""

    def __init__(self, message: str, code: Exit = Exit.BAD_CONFIGURATION) -> None:
        super().__init__(message)
        self.code = code
