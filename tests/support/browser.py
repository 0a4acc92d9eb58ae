"""Headless Chromium, driven over its own debugging protocol. It can reach this machine and nothing else."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import websockets.sync.client

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE *.localhost",
    "--remote-debugging-port=0",
    "--window-size=900,600",
)


class Page:
    """One open page."""

    def __init__(self, connection: websockets.sync.client.ClientConnection, session: str) -> None:
        self._connection = connection
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        return _call(self._connection, method, parameters, self._session)

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, value: Any, timeout: float = 60) -> None:
        """Until the expression has the value; else the page's text is in the error."""
        deadline = time.monotonic() + timeout
        while (found := self.evaluate(expression)) != value:
            assert time.monotonic() < deadline, f"{expression} is {found!r}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """What the page looks like, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


_numbers = iter(range(1, 1 << 30))


def _call(
    connection: websockets.sync.client.ClientConnection,
    method: str,
    parameters: dict[str, Any],
    session: str | None = None,
) -> dict[str, Any]:
    number = next(_numbers)
    message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
    if session is not None:
        message["sessionId"] = session
    connection.send(json.dumps(message))
    while (answer := json.loads(connection.recv(timeout=60))).get("id") != number:
        pass
    assert "error" not in answer, f"{method}: {answer['error']}"
    result: dict[str, Any] = answer["result"]
    return result


@contextmanager
def opened(url: str, folder: Path) -> Iterator[Page]:
    """The page at `url` in a browser of its own, whose profile lies in `folder` (empty)."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is not on PATH"
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port, path = _debugging_address(folder / "DevToolsActivePort", process)
        with websockets.sync.client.connect(f"ws://127.0.0.1:{port}{path}", proxy=None, max_size=None) as connection:
            target = _call(connection, "Target.createTarget", {"url": url})["targetId"]
            attached = _call(connection, "Target.attachToTarget", {"targetId": target, "flatten": True})
            yield Page(connection, attached["sessionId"])
            with suppress(Exception):  # it may close the connection before it answers
                _call(connection, "Browser.close", {})
    finally:
        _end(process)


def _debugging_address(file: Path, process: subprocess.Popen[bytes]) -> tuple[int, str]:
    deadline = time.monotonic() + 60
    while not (file.exists() and len(lines := file.read_text().splitlines()) >= 2):
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "chromium did not open its debugging port"
        time.sleep(0.05)
    return int(lines[0]), lines[1]


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)
    # Helpers of the browser share its process group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
