"""What the contracts are tried on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.cluster_servers import Servers
from tests.support.engines import Harness, embedded
from tests.support.nomad_agent import nomad_program
from tests.support.nomad_engine import nomad_engine


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Of a real cluster, where there is a Nomad on PATH."""
    if nomad_program() is None:
        pytest.skip("no nomad on PATH: not tried on a real one")
    with Servers() as found:
        yield found


@pytest.fixture(params=["embedded", "embedded with templates", "nomad (real)"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """An engine of each kind."""
    if "nomad" in request.param:
        async with (
            request.getfixturevalue("servers").environment() as place,
            nomad_engine(place, tmp_path / "home") as h,
        ):
            yield h
        return
    async with embedded(tmp_path / "home", warm="templates" in request.param) as h:
        yield h
