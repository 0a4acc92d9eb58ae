"""GPUs: what a program asks for, and what a card is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024
ANY: Final = "ANY"
"""The type that every card is of."""
MEMORY_TOLERANCE: Final = 0.85
"""A card sold as 80 GB reports a little less, and vendors differ on what a GB is."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. `uuid` is what CUDA_VISIBLE_DEVICES takes whatever order the driver counts in."""

    uuid: str
    name: str
    memory: int
    """MiB."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the user's choices: `H100:2`, `A100-80GB`, `ANY`."""

    type: str
    memory: int
    """GB the name asks for; 0: any."""
    count: int

    def fits(self, gpu: Gpu) -> bool:
        """Is it of this type? Its words (RTX-PRO-6000 has three) stand in the card's name, one behind the other."""
        return (self.type == ANY or _words(self.type) in _words(gpu.name)) and gpu.memory >= self.least

    @property
    def least(self) -> float:
        """MiB a card has to report."""
        return self.memory * 1000 * 1000 * 1000 / MIB * MEMORY_TOLERANCE

    def __str__(self) -> str:
        memory = f"-{self.memory}GB" if self.memory else ""
        return f"{self.type}{memory}:{self.count}"


def _words(text: str) -> str:
    return f" {' '.join(re.findall(r'[A-Z0-9]+', text.upper()))} "


def parse_choice(text: str) -> Choice:
    """`TYPE[-<n>GB][!][:count]`, any case. "!" (exactly this type) is what we do anyway."""
    name, _, count = text.upper().partition(":")
    match = re.fullmatch(r"(.+?)(?:-(\d+)GB)?!?", name)
    assert match is not None
    return Choice(type=match[1], memory=int(match[2] or 0), count=int(count or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStock:
    """Cards of one type on one machine."""

    node: str
    name: str
    """As the driver calls it: `NVIDIA H100 80GB HBM3`."""
    memory: int | None
    """MiB of each; None: not told."""
    count: int
    used: int
    """By replicas, as far as the one who asks may see them."""
    free: int
    """That a new replica could get now."""
    state: str = ""
    """Why none of them is free, or some are not, whoever uses them: `draining`, `down`, `1 unhealthy`. Empty: well."""
