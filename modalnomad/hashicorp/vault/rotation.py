"""Which replicas were started with older values of their secrets than there are now. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def versions_text(versions: Mapping[str, int]) -> str:
    """`api=1,db=3`."""
    return ",".join(f"{name}={version}" for name, version in sorted(versions.items()))
