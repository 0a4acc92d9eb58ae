"""What the contracts are tried on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.engines import Harness, embedded


@pytest.fixture(params=["embedded", "embedded with templates"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """An engine of each kind."""
    async with embedded(tmp_path / "home", warm="templates" in request.param) as h:
        yield h
