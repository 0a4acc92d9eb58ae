"""The highest demand of the recent past, in buckets of time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

BUCKETS = 12


@dataclass(frozen=True, slots=True)
class Peak:
    """Highest value seen within the last `span` seconds, exact to a twelfth of it. Immutable: `seen` returns the next
    one."""

    span: float
    buckets: tuple[tuple[int, int], ...] = ()
    """(bucket number, highest value in it), oldest first; at most BUCKETS + 1."""

    def seen(self, now: float, value: int) -> Self:
        """With one more observation. `now` never goes back."""
        number = self._number(now)
        kept = tuple(bucket for bucket in self.buckets if bucket[0] >= number - BUCKETS)
        if kept and kept[-1][0] == number:
            kept, value = kept[:-1], max(value, kept[-1][1])
        return replace(self, buckets=(*kept, (number, value)))

    def over(self, span: float, now: float) -> Self:
        """For another span; what it forgets of the past is when the peak was, not how high."""
        return self if span == self.span else replace(self, span=span, buckets=()).seen(now, self.value(now))

    def value(self, now: float) -> int:
        """0 when nothing was seen."""
        oldest = self._number(now) - BUCKETS
        return max((value for number, value in self.buckets if number >= oldest), default=0)

    def _number(self, now: float) -> int:
        return int(now // (self.span / BUCKETS)) if self.span > 0 else int(now)
