"""`modal.experimental`: of the vendor's trials only what a web replica can use."""

from __future__ import annotations

from typing import Any

from . import state, where
from .exception import UnimplementedError
from .unavailable import Missing


def stop_fetching_inputs() -> None:
    """Take no further requests in this replica, finish, and end. In the replica the runner does it; here it raises."""
    stop = state.stop_inputs
    if stop is None:
        raise UnimplementedError(f"{where.caller()}: stop_fetching_inputs() has a meaning only in a replica")
    stop()


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return Missing(f"experimental.{name}")
