"""Replicas that stop answering without ending: what they cost the requests that come after."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.leftovers import family, wait_gone
from tests.support.repository import persona
from tests.support.serve import Serve, serve

pytestmark = pytest.mark.timeout(120)

LONG = 25.0
"""Seconds: shorter than the grace period."""
QUICK = {"MODALNOMAD_EMBEDDED__GRACE_PERIOD": "30", "MODALNOMAD_ROUTER__DRAIN_TIMEOUT": "2"}


@pytest.fixture(scope="module")
def platform() -> Iterator[Serve]:
    """With a grace period so long that nothing here may wait for it."""
    with serve(persona("hangs_in_requests"), env=QUICK) as running:
        yield running
        everybody = family(running.pid)
    assert running.exit_code == 0
    wait_gone(everybody)


@pytest.mark.parametrize(
    ("function", "path", "codes", "patience"),
    [
        ("many", "/hang", {"execution_timeout"}, 8),
        ("many", "/close", {"execution_timeout", "replica_gone"}, 8),
        ("many", "/become-another", {"replica_gone"}, 8),
        ("one", "/hang", {"execution_timeout"}, LONG),
        ("one", "/stubborn", {"execution_timeout"}, LONG),
        ("one", "/begun/hang", {"cut"}, LONG),
        ("one", "/begun/stubborn", {"cut"}, LONG),
        ("sync", "/?seconds=600", {"execution_timeout"}, LONG),
    ],
)
def test_the_next_request_is_answered_by_another(
    platform: Serve, function: str, path: str, codes: set[str], patience: float
) -> None:
    with httpx.Client(base_url=platform.url(function), timeout=60) as client:
        assert "ok" in client.get("/").text
        begun = time.monotonic()
        try:
            outcome = client.get(path).headers["modalnomad-error"]
        except httpx.RemoteProtocolError:
            outcome = "cut"
        assert outcome in codes
        assert time.monotonic() - begun < LONG, "the function's timeout is 2 s"
        begun = time.monotonic()
        assert "ok" in client.get("/").text
        assert time.monotonic() - begun < patience
        assert "ok" in client.get("/").text
