"""What a replica writes: line by line, whole lines, with the id of the request (design §6, ENV_LOG_TAGS)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import Asking, drain_when_idle, running, wait_until

PROGRAM = """
    import asyncio, logging, os, pathlib, sys, threading, time
    import modal
    app = modal.App("app")
    print("importing")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def wsgi(environ, start_response):
        print("in wsgi", "thread", file=environ["wsgi.errors"])
        start_response("200 OK", [])
        return [b""]

    @app.cls()
    class S:
        @modal.fastapi_endpoint()
        async def a(self, n: str):
            print("one", n, end=" ")
            await asyncio.sleep(0.05)
            print("two", n)
            logging.info("logged %s", n)
            return n

        @modal.fastapi_endpoint()
        def b(self, n: str):
            for i in range(200):
                print("line", n, i, "x" * 100, end="")
                print("end")
            return n

        @modal.fastapi_endpoint()
        def fail(self):
            raise ValueError("handler broke")

        @modal.fastapi_endpoint()
        def raw(self):
            sys.stdout.buffer.write(b"raw bytes\\n")
            os.system("echo from a child")
            print("ünïcode \\ud800")
            print("unfinished", end="", flush=True)
            return [sys.stdout.encoding, sys.stdout.isatty(), sys.stdout.fileno(), sys.stdout.writable()]

        @modal.wsgi_app()
        def w(self):
            return wsgi
"""


def tagged(text: str) -> list[tuple[str, str]]:
    """(request id, line); an empty id for untagged lines."""
    found = []
    for line in text.split("\n")[:-1]:
        match = re.fullmatch(f"(?s){c.LOG_TAG_OPEN}([^{c.LOG_TAG_CLOSE}]*){c.LOG_TAG_CLOSE}(.*)", line)
        found.append((match[1], match[2]) if match else ("", line))
    return found


def of(endpoint: str, request: str) -> dict[str, str]:
    return {c.HEADER_ENDPOINT: f"S.{endpoint}", c.HEADER_REQUEST_ID: request}


def test_lines_carry_their_request(tmp_path: Path) -> None:
    extra = {c.ENV_LOG_TAGS: "1", c.ENV_MAX_INPUTS: "10"}
    with running(tmp_path, PROGRAM, "S", extra=extra) as runner:
        runner.ready()
        asking = [Asking(runner, path=f"/?n={n}", headers=of("a", f"r{n}")) for n in range(5)]
        assert all(one.result().status == 200 for one in asking)
        out, err = tagged(runner.out), tagged(runner.err)
        assert out[0] == ("", "importing")
        assert sorted(out[1:]) == [(f"r{n}", f"one {n} two {n}") for n in range(5)]
        assert sorted(err) == [(f"r{n}", f"logged {n}") for n in range(5)]


def test_lines_of_threads_stay_whole(tmp_path: Path) -> None:
    extra = {c.ENV_LOG_TAGS: "1", c.ENV_MAX_INPUTS: "10"}
    with running(tmp_path, PROGRAM, "S", extra=extra) as runner:
        runner.ready()
        asking = [Asking(runner, path=f"/?n={n}", headers=of("b", f"r{n}")) for n in range(5)]
        assert all(one.result().status == 200 for one in asking)
        lines = tagged(runner.out)[1:]
        assert sorted(lines) == sorted((f"r{n}", f"line {n} {i} {'x' * 100}end") for n in range(5) for i in range(200))


def test_wsgi_threads_are_tagged_too(tmp_path: Path) -> None:
    with running(tmp_path, PROGRAM, "S", extra={c.ENV_LOG_TAGS: "1"}) as runner:
        runner.ready()
        assert runner.ask("/", headers=of("w", "r1")).status == 200
        assert tagged(runner.err) == [("r1", "in wsgi thread")]


def test_a_handlers_traceback_is_whole_and_tagged(tmp_path: Path) -> None:
    with running(tmp_path, PROGRAM, "S", extra={c.ENV_LOG_TAGS: "1"}) as runner:
        runner.ready()
        assert runner.ask("/", headers=of("fail", "r1")).status == 500
        wait_until(lambda: "ValueError: handler broke\n" in runner.err)  # logged after it was answered
        lines = tagged(runner.err)
        assert {request for request, _ in lines} == {"r1"}


@pytest.mark.parametrize("tags", ["0", "1"])
def test_the_streams_are_ordinary_files_to_programs(tmp_path: Path, tags: str) -> None:
    with running(tmp_path, PROGRAM, "S", extra={c.ENV_LOG_TAGS: tags}) as runner:
        runner.ready()
        assert runner.ask("/", headers=of("raw", "r1")).json() == ["utf-8", False, 1, True]
        drain_when_idle(runner)
        assert runner.wait() == 0
        texts = [line for _, line in tagged(runner.out)]
        assert texts == ["importing", "raw bytes", "from a child", "ünïcode \\ud800", "unfinished"]
        if tags == "0":
            assert c.LOG_TAG_OPEN not in runner.out


def test_an_unfinished_line_is_passed_on_when_its_request_ends(tmp_path: Path) -> None:
    with running(tmp_path, PROGRAM, "S", extra={c.ENV_LOG_TAGS: "1"}) as runner:
        runner.ready()
        assert runner.ask("/", headers=of("raw", "r1")).status == 200
        wait_until(lambda: ("r1", "unfinished") in tagged(runner.out), "the line of the first request")
        assert runner.ask("/", headers=of("raw", "r2")).status == 200
        wait_until(lambda: ("r2", "unfinished") in tagged(runner.out), "the line of the second request")


def test_lines_arrive_at_once(tmp_path: Path) -> None:
    program = "import time\nprint('soon')\ntime.sleep(600)\n"
    with running(tmp_path, program) as runner:
        wait_until(lambda: runner.out == "soon\n")
