"""The access log: one line for each request that is over, whatever became of it, and no request waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from modalnomad.model.errors import BackendRefused
from modalnomad.router.access_log import AccessLog
from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.handshake import handshake, switch
from tests.support.router import Served, served, until
from tests.support.watching import Watched, watched

BOTH_LOOPS = True


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Once there are that many."""
    await until(lambda: len(read(path)) >= count)
    found = read(path)
    assert len(found) == count
    return found


async def ask(watch: Watched, path: str = "/", *headers: str) -> int:
    async with raw.client(watch.router.port) as client:
        return (await client.request(raw.get(path, "a.localhost", *headers))).status


@contextlib.asynccontextmanager
async def logging_to(path: Path, script: raw.Script, **settings: object) -> AsyncIterator[Served]:
    """The data plane in front of one scripted replica."""
    async with raw.replica(script) as backend:
        router_settings = RouterSettings.model_validate(settings)
        async with served(backend.address, settings=router_settings) as router:
            log = router.router.gate.access_log = AccessLog(str(path))
            log.open()
            try:
                yield router
            finally:
                await asyncio.to_thread(log.close)


async def test_a_request_and_one_that_leads_nowhere(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    async with watched(tmp_path, access_log=str(log)) as watch:
        assert await ask(watch, "/orders/7?token=hush", "User-Agent: tester/1", "X-Request-Id: mine-1") == 200
        async with raw.client(watch.router.port) as client:
            assert (await client.request(b"GET  / HTTP/1.1\r\n\r\n")).status == 400
        (key,) = watch.engine.started
        answered, refused = await lines(log, 2)

    assert "hush" not in log.read_text()
    wanted = {"request_id": "mine-1", "path": "/orders/7", "status": 200, "code": None, "complete": True, "app": "app"}
    assert wanted.items() <= answered.items()
    assert answered["replica"] == str(key)
    assert (answered["bytes_in"], answered["bytes_out"], answered["user_agent"]) == (0, 3, "tester/1")
    assert 0 <= answered["waited"] <= answered["first_byte"] <= answered["duration"]
    assert {"method": "", "status": 400, "code": "bad_request", "endpoint": None}.items() <= refused.items()
    assert log.stat().st_mode & 0o007 == 0


async def test_bodies_are_counted_both_ways(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    async with logging_to(log, raw.polite) as router, raw.client(router.port) as client:
        body = b"x" * 200_000
        await client.request(raw.post(body))
        (line,) = await lines(log, 1)

    assert line["bytes_in"] == len(body)
    assert line["bytes_out"] > 0


async def test_answers_that_break_off_and_clients_that_leave(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    async with logging_to(log, raw.dies_mid_answer) as router, raw.client(router.port) as client:
        with contextlib.suppress(raw.Truncated, ConnectionError):
            await client.request(raw.get())
        (broken,) = await lines(log, 1)
    assert (broken["status"], broken["complete"]) == (200, False)

    log.unlink()
    async with logging_to(log, raw.never_answers) as router:
        async with raw.client(router.port) as client:
            await client.send(raw.get())
            await until(lambda: router.activator.running == 1)
            client.abort()
        (left,) = await lines(log, 1)
        await router.quiet()
    assert (left["status"], left["complete"], left["first_byte"]) == (0, False, None)


async def echoes(backend: raw.Replica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts a WebSocket, and sends back what comes, frames or not."""
    await backend.read_head(reader)
    writer.write(switch())
    while data := await reader.read(100):
        writer.write(data)


async def test_a_websocket_is_logged_when_it_ends(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    async with logging_to(log, echoes) as router:
        async with raw.client(router.port) as client:
            await client.send(handshake())
            assert (await client.response()).status == 101
            await client.send(b"hello")
            assert await client.reader.readexactly(5) == b"hello"
            assert read(log) == []
        (line,) = await lines(log, 1)
        await router.quiet()

    assert (line["status"], line["bytes_in"], line["bytes_out"]) == (101, 5, 5)


async def test_a_file_that_is_moved_away_is_made_anew_and_no_line_is_lost(tmp_path: Path) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"

    async with watched(tmp_path, access_log=str(log)) as watch:
        await ask(watch, "/1")
        await lines(log, 1)
        log.rename(old)
        await ask(watch, "/2")
        await lines(log, 1)
        log.unlink()
        await ask(watch, "/3")
        await lines(log, 1)
        os.truncate(log, 0)  # logrotate's copytruncate
        await ask(watch, "/4")
        await lines(log, 1)

    assert [line["path"] for line in (*read(old), *read(log))] == ["/1", "/4"]


async def test_the_last_lines_are_written_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    async with watched(tmp_path, access_log=str(log)) as watch:
        for number in range(20):
            await ask(watch, f"/{number}")
        await watch.until(lambda m: m.get("modalnomad_requests_total", function="a") == 20)

    assert [line["path"] for line in read(log)] == [f"/{number}" for number in range(20)]


async def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "access.log"
    log.symlink_to("/dev/full")
    said = [("ERROR", "No space left"), ("WARNING", "goes on; 2 lines are missing")]

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "modalnomad.router.access_log"]

    async with watched(tmp_path, access_log=str(log)) as watch:
        for count in (1, 2):
            assert await ask(watch, f"/{count}") == 200
            await watch.until(dropped(count))
        log.unlink()  # there is room again
        assert await ask(watch, "/3") == 200
        (line,) = await lines(log, 1)
        metrics = await watch.until(lambda m: m.get("modalnomad_access_log_lines_total") == 1)

    assert line["path"] == "/3"
    assert metrics.get("modalnomad_access_log_dropped_total") == 2
    for record, (level, text) in zip(told(), said, strict=True):
        assert record.levelname == level
        assert text in record.getMessage()


def dropped(count: int) -> Callable[[Any], bool]:
    return lambda metrics: metrics.get("modalnomad_access_log_dropped_total") == count


@pytest.mark.parametrize("kind", ["folder", "missing", "pipe"])
async def test_a_log_that_cannot_be_written_is_told_at_the_start(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    if kind == "folder":
        log.mkdir()
    elif kind == "pipe":
        os.mkfifo(log)  # nobody reads it
    else:
        log = tmp_path / "none" / "log"

    with pytest.raises(BackendRefused, match="access log") as refused:
        async with watched(tmp_path, access_log=str(log)):
            pass
    assert "router.access_log" in (refused.value.hint or "")


async def test_half_a_line_does_not_spoil_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "access.log"
    real, steps = os.write, ["half", "none"]

    async with watched(tmp_path, access_log=str(log)) as watch:

        def breaks_off(descriptor: int, data: bytes) -> int:
            if not steps or os.fstat(descriptor).st_ino != log.stat().st_ino:
                return real(descriptor, data)
            if steps.pop(0) == "half":
                return real(descriptor, bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", breaks_off)
        await ask(watch, "/1")
        await watch.until(dropped(1))
        await ask(watch, "/2")
        await until(lambda: log.read_text().endswith("}\n"))

    torn, whole = log.read_text().splitlines()
    assert (torn, json.loads(whole)["path"]) == ('{"event":"', "/2")
