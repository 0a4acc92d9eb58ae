"""What the contracts are tried on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.cluster_servers import Place, Servers, fake_place
from tests.support.engines import Harness, embedded
from tests.support.nomad_agent import nomad_program
from tests.support.nomad_engine import nomad_engine
from tests.support.openbao import OpenBao


@pytest.fixture(scope="session")
def servers(openbao: OpenBao) -> Iterator[Servers]:
    """A real Nomad, where there is one on PATH."""
    if nomad_program() is None:
        pytest.skip("no nomad on PATH: not tried on a real one")
    with Servers(openbao) as found:
        yield found


@pytest.fixture(params=["embedded", "embedded with templates", "nomad (fake)", "nomad (real)"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """An engine of each kind."""
    kind, home = request.param, tmp_path / "home"
    async with AsyncExitStack() as stack:
        if kind == "nomad (real)":
            place = await stack.enter_async_context(request.getfixturevalue("servers").environment())
            yield await stack.enter_async_context(nomad_engine(place, home))
        elif kind == "nomad (fake)":
            place = await stack.enter_async_context(fake_place(request.getfixturevalue("openbao"), tmp_path))
            yield await stack.enter_async_context(nomad_engine(place, home))
        else:
            yield await stack.enter_async_context(embedded(home, warm="templates" in kind))


@pytest.fixture(params=["nomad (fake)", "nomad (real)"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """An environment of each kind of cluster."""
    openbao = request.getfixturevalue("openbao")
    real = request.param == "nomad (real)"
    places = request.getfixturevalue("servers").environment() if real else fake_place(openbao, tmp_path)
    async with places as found:
        yield found
