"""Ctrl-C at awkward moments."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import cast

import pytest
from modalnomad_sdk.store import ImageStore

from modalnomad.cli.interrupts import Interrupts
from modalnomad.deploy import images
from modalnomad.model.errors import ImageBuildFailed
from tests.support.runner import LONG, wait_until
from tests.support.serve import command_environment, serve, shared_home


async def test_a_signal_that_comes_as_the_work_ends_is_not_lost() -> None:
    with Interrupts() as interrupts:

        async def interrupted_at_the_end() -> None:
            interrupts.take()

        assert await interrupts.race(interrupted_at_the_end()), "it was done"
        async with asyncio.timeout(LONG):
            assert not await interrupts.race(asyncio.sleep(60)), "so the next work is given up"
            assert await interrupts.race(asyncio.sleep(0)), "and only that"
            interrupts.take()
            interrupts.take()
            assert not await interrupts.race(asyncio.sleep(60))
            assert not await interrupts.race(asyncio.sleep(60)), "each further one gives up what is waited for"


async def test_a_build_cancelled_twice_is_over_when_its_caller_is(monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = threading.Event(), threading.Event()

    def build(image: object, store: object, report: object, cancelled: threading.Event, *others: object) -> None:
        began.set()
        assert cancelled.wait(LONG)
        threading.Event().wait(0.2)  # its processes take a while to end
        ended.set()
        raise ImageBuildFailed("cancelled", "")

    monkeypatch.setattr(images, "resolve_and_build_here", build)
    store = cast("ImageStore", None)
    task = asyncio.ensure_future(images.resolve_and_build(None, store=store, report=print))
    assert await asyncio.to_thread(began.wait, LONG)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@pytest.mark.parametrize("how", [["-m", "modalnomad"], [str(Path(sys.executable).with_name("modalnomad"))]])
def test_ctrl_c_while_the_command_is_still_being_loaded_is_no_traceback(tmp_path: Path, how: list[str]) -> None:
    """At the moment a module early in the import says so."""
    trap = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "typer.py").write_text(trap)
    ended = subprocess.run(
        [sys.executable, *how, "serve", "x.py"],
        env=command_environment(shared_home(), {"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


def test_a_second_ctrl_c_after_everything_ended_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(
        "import modal\napp = modal.App('late')\n@app.function()\n@modal.fastapi_endpoint()\ndef f():\n    return 1\n"
    )
    s = serve(file).start()
    try:
        s.interrupt()
        status = Path(f"/proc/{s.pid}/status")
        wait_until(lambda: s.exit_code is not None or _ignores_interrupts(status), "the end")
        s.interrupt()
    finally:
        assert s.stop() == 0


def _ignores_interrupts(status: Path) -> bool:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return True
    ignored = next((int(line.split()[1], 16) for line in lines if line.startswith("SigIgn")), -1)
    return bool(ignored & 1 << (signal.SIGINT - 1))
