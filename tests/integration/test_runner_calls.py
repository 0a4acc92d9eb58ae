"""Calls of a replica that is no web endpoint, or has methods beside them: contract.CALL_PATH over its socket."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import (
    Answer,
    Asking,
    Runner,
    parameters,
    running,
    wait_until,
    wait_until_draining,
    wait_until_running,
)

FUNCTIONS = """
    import asyncio, pathlib, sys, time
    import modal

    app = modal.App("app")

    @app.function()
    def f(what, *rest, **named):
        print("at", what, modal.current_input_id())
        if what == "raise":
            raise LookupError("nothing of the kind")
        if what == "exit":
            sys.exit(3)
        if what == "lambda":
            return lambda: None
        if what == "spin":
            end = time.monotonic() + 60
            while time.monotonic() < end:
                pass
        if what == "block":
            time.sleep(120)
        if what == "own loop":
            return asyncio.run(asyncio.sleep(0, "ran"))
        return what, rest, named

    @app.function()
    async def g(seconds):
        try:
            await asyncio.sleep(seconds)
        finally:
            print("left g")
        return seconds

    @app.function()
    async def until(path):
        while not pathlib.Path(path).exists():
            await asyncio.sleep(0.01)
        return path

    @app.function()
    @modal.batched(max_batch_size=4, wait_ms=10)
    def many(numbers):
        return [number * 2 for number in numbers]
"""


def call(runner: Runner, *args: Any, method: str = "", tell: bool = False, **kwargs: Any) -> Answer:
    return runner.ask(c.CALL_PATH, "POST", body=pickle.dumps((args, kwargs)), headers=headers(method, tell))


def headers(method: str = "", tell: bool = False) -> dict[str, str]:
    return {c.HEADER_METHOD: method, c.HEADER_REQUEST_ID: "call-1", c.HEADER_TELL: "1" if tell else "0"}


def result(answer: Answer) -> Any:
    assert (answer.status, answer.headers[c.HEADER_OUTCOME]) == (200, "result"), answer
    return pickle.loads(answer.body)


def problem(answer: Answer, outcome: str = "raised") -> Any:
    assert (answer.status, answer.headers[c.HEADER_OUTCOME]) == (200, outcome), answer
    return json.loads(answer.body)


def test_results_errors_and_what_cannot_be_passed_on(tmp_path: Path) -> None:
    with running(tmp_path, FUNCTIONS, extra={c.ENV_LOG_TAGS: "1"}) as runner:
        runner.ready()

        assert result(call(runner, 1, 2, x=3)) == (1, (2,), {"x": 3})
        assert result(call(runner, "own loop")) == "ran"

        raised = problem(call(runner, "raise"))
        assert (raised["type"], raised["message"]) == ("LookupError", "nothing of the kind")
        assert isinstance(pickle.loads(base64.b64decode(raised["exception"])), LookupError)
        first, frame, *_ = raised["traceback"].splitlines()
        assert first.startswith("Traceback")
        assert "prog.py" in frame, "it begins with the user's own line"

        exited = problem(call(runner, "exit"))
        assert (exited["type"], exited["exception"]) == ("SystemExit", None)

        refused = problem(call(runner, "lambda"))
        assert refused["type"] == "SerializationError"
        assert "the result of `f` is a function, which cannot be pickled" in refused["message"]

        wait_until(lambda: "\x1ecall-1\x1fat raise call-1\n" in runner.out, "output carries the id of the call")
        assert "LookupError" not in runner.err, "who waits for the answer is told there"
        problem(call(runner, "raise", tell=True))
        wait_until(lambda: "LookupError: nothing of the kind" in runner.err, "nobody waits: told in the log")

        missing = runner.ask(c.CALL_PATH, "POST", headers=headers())
        assert problem(missing)["type"] == "TypeError", "an empty body is no arguments"
        assert call(runner, 1, method="other").status == 404
        assert runner.ask(c.CALL_PATH, "POST", ticket="b" * 64).status == 403
        assert runner.ask(c.CALL_PATH).status == 404, "GET"


def test_batched_functions_get_lists_of_one(tmp_path: Path) -> None:
    with running(tmp_path, FUNCTIONS, "many") as runner:
        runner.ready()
        assert result(call(runner, 21)) == 42


def test_methods_of_a_class_with_parameters_and_an_endpoint_of_its_own(tmp_path: Path) -> None:
    program = """
        import modal

        app = modal.App("app")

        @app.cls()
        class Counter:
            start: int = modal.parameter()

            @modal.enter()
            def enter(self):
                self.value = self.start

            @modal.method()
            def add(self, n):
                self.value += n
                return self.value

            @modal.asgi_app()
            def page(self):
                async def app(scope, receive, send):
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send({"type": "http.response.body", "body": str(self.value).encode()})
                return app

            @modal.exit()
            def exit(self):
                print("bye at", self.value)
    """
    with running(tmp_path, program, "Counter", extra={c.ENV_PARAMETERS: parameters(start=40)}) as runner:
        runner.ready()
        assert result(call(runner, 2, method="add")) == 42
        assert runner.ask(headers={c.HEADER_ENDPOINT: "Counter.page"}).text == "42"
        assert call(runner, method="enter").status == 404, "only what is a modal.method"
        assert call(runner).status == 404
        runner.terminate()
        assert runner.wait() == c.Exit.OK
        assert "bye at 42" in runner.out


def test_a_class_with_a_server_answers_calls_too(tmp_path: Path) -> None:
    program = """
        import http.server, threading
        import modal

        app = modal.App("app")

        @app.cls()
        class Both:
            @modal.web_server(8971)
            def files(self):
                server = http.server.ThreadingHTTPServer(("127.0.0.1", 8971), http.server.SimpleHTTPRequestHandler)
                threading.Thread(target=server.serve_forever, daemon=True).start()

            @modal.method()
            def double(self, n):
                return 2 * n
    """
    extra = {c.ENV_WEB_PORTS: "8971"}
    with running(tmp_path, program, "Both", extra=extra) as runner:
        runner.ready()
        assert result(call(runner, 4, method="double")) == 8
        assert runner.ask(headers={c.HEADER_ENDPOINT: "Both.files"}).status == 200


@pytest.mark.parametrize(("tag", "argument"), [("f", "spin"), ("g", 60)])
def test_a_call_past_its_timeout_is_ended_and_the_next_one_runs(tmp_path: Path, tag: str, argument: Any) -> None:
    with running(tmp_path, FUNCTIONS, tag, extra={c.ENV_TIMEOUT: "0.5"}) as runner:
        runner.ready()
        expired = problem(call(runner, argument), "timeout")
        assert expired["type"] == "FunctionTimeoutError"
        assert "0.5 s" in expired["message"]
        again: Answer = wait_until(lambda: _let_in(call(runner, 0)), "its place is free again")
        assert result(again) in ((0, (), {}), 0)


def _let_in(answer: Answer) -> Answer | None:
    """None: the place of the call before is still taken, or a slow machine took longer for this one than it may."""
    return None if answer.status == 503 or answer.headers[c.HEADER_OUTCOME] == "timeout" else answer


def test_who_hangs_up_has_cancelled_the_call(tmp_path: Path) -> None:
    with running(tmp_path, FUNCTIONS, "g") as runner:
        runner.ready()
        body = pickle.dumps(((60,), {}))
        with runner.connect() as sock:
            sock.sendall(
                f"POST {c.CALL_PATH} HTTP/1.1\r\nhost: x\r\n{c.HEADER_TICKET}: {'a' * 64}\r\n"
                f"content-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            wait_until_running(runner, 1)
        wait_until(lambda: "left g" in runner.out, "it was cancelled")
        wait_until_running(runner, 0)


def test_a_drained_replica_finishes_its_call_and_takes_no_other(tmp_path: Path) -> None:
    with running(tmp_path, FUNCTIONS, "until", extra={c.ENV_MAX_INPUTS: "2"}) as runner:
        runner.ready()
        body = pickle.dumps((("go",), {}))
        asking = Asking(runner, path=c.CALL_PATH, method="POST", body=body, headers=headers())
        wait_until_running(runner, 1)
        runner.terminate()
        wait_until_draining(runner)
        busy = call(runner, "prog.py")
        assert (busy.status, busy.headers[c.HEADER_BUSY]) == (503, "1")
        (tmp_path / "go").touch()
        assert result(asking.result()) == "go"
        assert runner.wait() == c.Exit.OK


def test_a_call_that_cannot_be_ended_takes_its_replica_with_it(tmp_path: Path) -> None:
    """Not only when the grace period is over: whoever waits for the place would wait so long."""
    extra = {c.ENV_TIMEOUT: "0.5", c.ENV_GRACE_PERIOD: "300"}
    with running(tmp_path, FUNCTIONS, "f", extra=extra) as runner:
        runner.ready()
        assert problem(call(runner, "block"), "timeout")["type"] == "FunctionTimeoutError"
        assert runner.wait() == c.Exit.GRACE_EXPIRED
        assert "takes no more" in runner.err
