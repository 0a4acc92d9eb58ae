"""The GPU classes of old programs: `gpu=modal.gpu.A100(count=2)` is today written `gpu="A100:2"`."""

from __future__ import annotations

from . import where
from .notices import note


def _gpu(kind: str, count: int) -> str:
    place = where.caller()
    text = f"{kind}:{count}" if count != 1 else kind
    note("old_name", f'`modal.gpu` is an old name: write gpu="{text}"', place)
    return text


def T4(count: int = 1) -> str:
    """NVIDIA T4."""
    return _gpu("T4", count)


def L4(count: int = 1) -> str:
    """NVIDIA L4."""
    return _gpu("L4", count)


def A10G(count: int = 1) -> str:
    """NVIDIA A10G."""
    return _gpu("A10G", count)


def L40S(count: int = 1) -> str:
    """NVIDIA L40S."""
    return _gpu("L40S", count)


def A100(*, count: int = 1, size: str = "40GB") -> str:
    """NVIDIA A100 with 40GB or 80GB."""
    return _gpu(f"A100-{size}" if size != "40GB" else "A100", count)


def H100(count: int = 1) -> str:
    """NVIDIA H100."""
    return _gpu("H100", count)


def Any(count: int = 1) -> str:
    """Any NVIDIA GPU."""
    return _gpu("ANY", count)
