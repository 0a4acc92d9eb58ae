"""The images that the guides' programs share are built once, before the first of those tests waits for them."""

from __future__ import annotations

import pytest

from tests.support.images import prewarm
from tests.support.serve import shared_home


@pytest.fixture(scope="session")
def guides_images() -> None:
    """Built in the home that all tests share; other workers wait for the first."""
    prewarm(shared_home())


@pytest.fixture(autouse=True)
def _warm(request: pytest.FixtureRequest) -> None:
    """Tests of the guides' programs are not the place to time out over a download."""
    if request.node.get_closest_marker("guides") is not None:
        request.getfixturevalue("guides_images")
