"""Which event loop a test runs on, and a router's inner half to test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import uvloop

from tests.support.activator import Opener, Platform, platform_at
from tests.support.describe import Describe
from tests.support.steady import SteadyLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A module that says `BOTH_LOOPS = True` runs on the standard loop and on uvloop, one that says
    `STEADY_LOOP = True` on a SteadyLoop, others on the standard one."""
    module = getattr(item, "module", None)
    steady = getattr(module, "STEADY_LOOP", False)
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": SteadyLoop if steady else asyncio.new_event_loop
    }
    if getattr(module, "BOTH_LOOPS", False):
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture
async def open_platform(tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens a `Platform`, which is closed with the test."""
    async with AsyncExitStack() as stack:

        async def opener(**arguments: object) -> Platform:
            return await stack.enter_async_context(platform_at(tmp_path, **arguments))  # type: ignore[arg-type]

        yield opener


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Of programs in a folder of the test's own."""
    folder = tmp_path / "program"
    folder.mkdir()
    return Describe(folder)
