"""A real browser opens a served page by its `*.localhost` name and follows its WebSocket and its events."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.browser import opened
from tests.support.repository import ROOT
from tests.support.serve import serve

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


def test_a_page_with_a_websocket_and_events(tmp_path: Path) -> None:
    with serve(ROOT / "examples" / "live_page.py") as s:
        url = s.endpoints["site"]["url"]
        assert ".localhost:" in url
        with opened(url, tmp_path / "profile") as page:
            page.wait_for("document.title", "Live page")
            page.wait_for("document.getElementById('socket')?.textContent", "HELLO FROM THE PAGE")
            page.wait_for("document.getElementById('events')?.textContent", "1, 2, 3, done")
            assert page.evaluate("location.hostname").endswith(".localhost")
            page.screenshot(Path(os.environ.get("SCREENSHOT", tmp_path / "page.png")))
        s.wait_log("socket closed with 1000")


def test_streamlits_page_is_drawn(tmp_path: Path) -> None:
    with (
        serve(ROOT / "examples" / "dashboard_streamlit.py", ready_timeout=250) as s,
        opened(s.endpoints["dashboard"]["url"], tmp_path / "profile") as page,
    ):
        # The title comes over Streamlit's WebSocket, long after the empty page.
        page.wait_for("document.querySelector('h1')?.innerText", "Dashboard", timeout=60)
        page.wait_for("document.querySelectorAll('[data-testid=stSlider]').length", 1)
