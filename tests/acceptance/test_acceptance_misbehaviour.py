"""Replicas that misbehave: what the caller is told, that `serve` goes on, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.doors import direct_door, replicas, replicas_told, web_socket
from tests.support.leftovers import family, wait_gone
from tests.support.repository import ROOT, persona
from tests.support.serve import Serve, run_command, serve

QUICK = {"MODALNOMAD_EMBEDDED__GRACE_PERIOD": "2", "MODALNOMAD_ROUTER__DRAIN_TIMEOUT": "2"}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    """The router's own answer, checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["modalnomad-error"] == code, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["request_id"]
    return body


def until_ok(client: httpx.Client, path: str = "/", timeout: float = 60) -> httpx.Response:
    """Ask again until it is answered with 200."""
    deadline = time.monotonic() + timeout
    while (answer := client.get(path)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    return answer


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("exits_at_once", "leaving already"),
        ("raises_in_import", "only wrong in the replica"),
        ("raises_in_enter", "the weights are gone"),
        ("lifespan_fails", "no database here"),
        ("never_opens_port", "8000"),
    ],
)
def test_a_start_that_fails_is_told_at_once_with_its_reason(name: str, told: str) -> None:
    with serve(persona(name), env=QUICK) as s, direct_door(s) as client:
        begun = time.monotonic()
        body = problem(client.get("/"), 503, "start_failed")
        assert time.monotonic() - begun < 30, "at once, not after the start's whole time"
        assert told in json.dumps(body), body
        family_now = family(s.pid)
    assert s.exit_code == 0
    wait_gone(family_now)


def test_an_import_that_hangs_ends_at_the_start_limit() -> None:
    with serve(persona("hangs_in_import"), env=QUICK) as s, direct_door(s) as client:
        begun = time.monotonic()
        problem(client.get("/"), 504, "startup_timeout")
        assert 1.5 < time.monotonic() - begun < 60
    assert s.exit_code == 0


def test_repeated_failures_open_the_breaker_and_success_closes_it(tmp_path: Path) -> None:
    counter = tmp_path / "starts"
    created = run_command("secret", "create", "fails-first", f"COUNT_FILE={counter}", "--force")
    assert created.returncode == 0, created.stderr
    with serve(persona("fails_first"), env=QUICK) as s, direct_door(s) as client:
        problem(client.get("/"), 503, "start_failed")
        assert until_ok(client).json() == 3
    assert counter.read_text() == "3"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/noise", "bad_answer"),
        ("/two-lengths", "bad_answer"),
        ("/length-and-chunked", "bad_answer"),
        ("/folded", "bad_answer"),
        ("/huge-head", "bad_answer"),
        ("/switches", "bad_answer"),
        ("/silent", "replica_gone"),
    ],
)
def test_an_answer_that_is_no_http_is_a_bad_gateway(garbage: Serve, path: str, code: str) -> None:
    with direct_door(garbage) as client:
        problem(client.get(path), 502, code)
        assert until_ok(client).text == "ok", "the replica's other answers still come through"


@pytest.mark.parametrize("path", ["/short", "/bad-chunk"])
def test_an_answer_that_breaks_off_never_ends_cleanly(garbage: Serve, path: str) -> None:
    with direct_door(garbage) as client:
        try:
            answer = client.get(path)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            pass  # the connection was aborted
        else:
            problem(answer, 502, answer.headers["modalnomad-error"])
        assert until_ok(client).text == "ok"


@pytest.fixture(scope="module")
def garbage() -> Iterator[Serve]:
    with serve(persona("answers_garbage"), env=QUICK) as s:
        yield s
    assert s.exit_code == 0


def test_a_replica_that_dies_in_mid_answer() -> None:
    with serve(persona("dies_mid_answer"), env=QUICK) as s, direct_door(s) as client:
        assert client.get("/").text == "half of it and the rest"
        with client.stream("GET", "/stream") as answer:
            assert answer.status_code == 200
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                answer.read()
        assert client.get("/").text == "half of it and the rest", "another replica takes over"
        problem(client.get("/at-once"), 502, "replica_gone")
        assert client.get("/").text == "half of it and the rest"


def test_a_server_of_the_users_that_dies_is_replaced() -> None:
    with serve(persona("server_dies"), env=QUICK) as s, direct_door(s) as client:
        assert client.get("/").text == "ok"
        problem(client.get("/die"), 502, "replica_gone")
        assert until_ok(client).text == "ok"


def test_a_handler_that_raises_is_the_apps_own_answer() -> None:
    with serve(persona("raises_in_handler"), env=QUICK) as s, direct_door(s) as client:
        answer = client.get("/")
        assert answer.status_code == 500
        assert "modalnomad-error" not in answer.headers
        assert "must not read" not in answer.text
        assert client.get("/?wrong=false").json() == "fine"
        s.wait_log("something the caller must not read")
        assert len(replicas_told(s, 1)) == 1


def test_an_app_that_knows_no_lifespan() -> None:
    with serve(persona("lifespan_unsupported"), env=QUICK) as s, direct_door(s) as client:
        assert client.get("/").text == "fine"


def test_an_answer_that_takes_too_long() -> None:
    with serve(persona("slow_answer"), env=QUICK) as s, direct_door(s) as client:
        # The others may take long too, on a machine that stands still for two seconds.
        assert until_ok(client).json() == 0
        begun = time.monotonic()
        problem(client.get("/?seconds=60"), 504, "execution_timeout")
        assert 1.9 < time.monotonic() - begun < 50
        assert until_ok(client, "/?seconds=0.1").json() == 0.1


async def test_many_at_once_wake_one_replica() -> None:
    s = await asyncio.to_thread(serve(persona("slow_start"), env=QUICK).start)
    try:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=s.url(), trust_env=False, timeout=60, limits=limits) as client:
            answers = await asyncio.gather(*(client.get("/") for _ in range(64)))
    finally:
        await asyncio.to_thread(s.stop)

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json() for answer in answers}) == 1
    assert len(replicas(s)) == 1


def test_a_flood_of_log_lines_neither_stops_nor_swells_anything() -> None:
    with serve(persona("floods_log"), env=QUICK) as s, direct_door(s) as client:
        assert client.get("/?lines=50000").json() == 50000
        s.wait_log("the last line", timeout=60)
        assert not s.bad_lines, "bytes that are no text do not break the JSON"
        assert client.get("/?lines=1").json() == 1


def test_user_code_that_is_deaf_to_signals_ends_all_the_same() -> None:
    with serve(persona("ignores_sigterm"), env=QUICK) as s, direct_door(s) as client:
        assert len(client.get("/").text.split()) == 2
        everyone = family(s.pid)
        begun = time.monotonic()
    assert time.monotonic() - begun < 35
    assert s.exit_code == 0
    wait_gone(everyone)


def test_an_exit_method_that_never_ends_is_cut_off() -> None:
    # Long enough for it to begin on a machine that stands still for a while.
    grace = {"MODALNOMAD_EMBEDDED__GRACE_PERIOD": "5"}
    with serve(persona("slow_exit"), env=QUICK | grace) as s, direct_door(s) as client:
        assert client.get("/").json() == "fine"
        everyone = family(s.pid)
        begun = time.monotonic()
    assert time.monotonic() - begun < 35
    assert s.exit_code == 0
    assert "leaving slowly" in [log["line"] for log in s.logs()]
    wait_gone(everyone)


@pytest.mark.parametrize("how", ["ctrl-c", "kill -9"])
def test_grandchildren_go_with_their_replica(how: str) -> None:
    s = serve(persona("forks_grandchildren"), env=QUICK).start()
    try:
        with direct_door(s) as client:
            born = client.get("/").json()
        everyone = family(s.pid)
        assert len(everyone) > 3, "the family is really there"
    finally:
        s.stop() if how == "ctrl-c" else s.kill()
    wait_gone(everyone)
    assert set(born) == {"replica", "sleeper", "grandchild"}


def test_a_client_that_leaves_is_noticed() -> None:
    with serve(persona("notices_hangup"), env=QUICK) as s, direct_door(s) as client:
        for path in ("/silent", "/talking"):
            with direct_door(s) as leaving, leaving.stream("GET", path) as answer:
                next(answer.iter_bytes())
        deadline = time.monotonic() + 60
        while client.get("/gone").text != "2":
            assert time.monotonic() < deadline, client.get("/gone").text
            time.sleep(0.1)


def test_sockets_that_stay_open_are_counted_and_freed() -> None:
    with serve(persona("holds_socket"), env=QUICK) as s, direct_door(s) as client:
        with web_socket(s, "/") as first, web_socket(s, "/", by_host=True) as second:
            first.send("one")
            second.send("two")
            assert (first.recv(timeout=60), second.recv(timeout=60)) == ("one", "two")
            assert json.loads(client.get("/ends").text)["open"] == 2
            first.close(4000)
        deadline = time.monotonic() + 60
        while (seen := client.get("/ends").json())["open"]:
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        assert sorted(seen["codes"]) == [1000, 4000]


def test_a_flood_of_parameter_values_evicts_idle_pools() -> None:
    few = {**QUICK, "MODALNOMAD_ROUTER__MAX_POOLS": "3"}
    with serve(ROOT / "examples" / "dictionary_class.py", env=few) as s, direct_door(s) as client:

        def staying() -> set[tuple[str, str, str]]:
            # Without those that leave: how long that takes is the machine's affair.
            return replicas(s) - replicas(s, "draining", "gone", "failed")

        for number in range(8):
            answer = client.get("/", params={"word": "tree", "language": f"invented-{number}"})
            assert answer.status_code == 200, answer.text
            assert len(replicas_told(s, number + 1)) == number + 1
            s.wait_for(lambda _: len(staying()) <= 3, 30, what="an idle pool that makes room")
