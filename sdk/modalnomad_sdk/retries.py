"""How often a failed call is tried again."""

from __future__ import annotations

from . import where
from .exception import InvalidError


class Retries:
    """Retry a failed call with growing pauses.

    Args:
        max_retries: how many tries after the first; 0 or more.
        backoff_coefficient: each pause is this many times the one before, 1…10.
        initial_delay: seconds before the first retry, 0…60.
        max_delay: the longest pause in seconds, 1…60.
    """

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
    ) -> None:
        place = where.caller()
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            raise InvalidError(f"{place}: Retries(max_retries={max_retries!r}): a whole number of at least 0 is needed")
        for name, value, low, high in (
            ("backoff_coefficient", backoff_coefficient, 1, 10),
            ("initial_delay", initial_delay, 0, 60),
            ("max_delay", max_delay, 1, 60),
        ):
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InvalidError(f"{place}: Retries({name}={value!r}): a number from {low} to {high} is needed")
        self.max_retries = max_retries
        self.backoff_coefficient = float(backoff_coefficient)
        self.initial_delay = float(initial_delay)
        self.max_delay = float(max_delay)

    def __repr__(self) -> str:
        return f"Retries(max_retries={self.max_retries}, backoff_coefficient={self.backoff_coefficient})"
