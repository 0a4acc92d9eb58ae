"""A call's way to a replica: which failures are tried elsewhere, which again, and which are the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from modalnomad.deploy.call_plan import plan_calls
from modalnomad.model.errors import ManifestInvalid
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Description, Function, Manifest, Notice, Refusal, Retries, Scaling, Source
from modalnomad.model.replica import PoolKey, ReplicaKey, UnixAddress
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.router import calls
from modalnomad.router.calls import Call, Caller, Outcome
from modalnomad.router.http1 import parse_response
from modalnomad.router.replies import Reply

SOURCE = Source(mode="script", entry="app.py", root="/x", module="app")
Script = Callable[["World"], Any]


def revision(**fields: Any) -> Revision:
    return Revision.make(
        app="app",
        environment="main",
        function=Function(tag="f", **fields),
        source=SOURCE,
        bundle=Digest("b" * 64),
        image=BuiltImage(digest=Digest("i" * 64), python="3.11"),
    )


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


RESULT = http(200, b"pickle", modalnomad_outcome="result")
BUSY = http(503, b"", modalnomad_busy="1")
ERROR = json.dumps({"type": "ValueError", "message": "no", "traceback": "", "exception": None}).encode()
RAISED = http(200, ERROR, modalnomad_outcome="raised")


class World:
    """Leases, connections and replicas at once. `script`: what the next attempts meet: an answer, a Reply of the
    activator, or an error of the connection (a class: when connecting, an instance: while the call runs)."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.asked: list[bytes] = []
        self.avoided: list[frozenset[ReplicaKey]] = []
        self.said: list[str] = []
        self.paused: list[float] = []
        self.caller = Caller(self, self.connect)  # type: ignore[arg-type]
        self.ticket = b"t"
        self.address = UnixAddress("/s")
        self.key = ReplicaKey(PoolKey(revision().id), 0, 1)

    @asynccontextmanager
    async def lease(self, match: Any, key: PoolKey, avoid: frozenset[ReplicaKey], *, request_id: bytes) -> Any:
        self.avoided.append(avoid)
        self.key = ReplicaKey(key, len(self.avoided), 1)
        if isinstance(self.script[0], Reply):
            raise self.script.pop(0)
        yield self

    def refused(self) -> None:
        self.said.append("refused")

    def gone(self, *, timed_out: bool = False) -> None:
        self.said.append("gone")

    async def connect(self, address: Any) -> Any:
        if isinstance(self.script[0], type):
            raise self.script.pop(0)
        return Channel(self)


class Channel:
    """Answers once it is flushed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sink: Any = None
        self.sent = b""

    def request(self, sink: Any, method: bytes, head: bytes) -> None:
        self.sink, self.sent = sink, head

    def send(self, data: bytes) -> None:
        self.sent += data

    def flush(self) -> None:
        self.world.asked.append(self.sent)
        answer = self.world.script.pop(0)
        if isinstance(answer, Exception):
            self.sink.on_failed(answer)
        elif answer is not None:
            head, _, body = answer.partition(b"\r\n\r\n")
            self.sink.on_head(parse_response(head + b"\r\n\r\n", b"POST"))
            self.sink.on_data(body)
            self.sink.on_end([])

    def close(self) -> None:
        self.world.said.append("closed")


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses take no time."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


async def call(world: World, **fields: Any) -> Outcome:
    return await world.caller.call(Call(revision(**fields), '{"a":1}', "method", b"arguments", id="c-1"))


async def test_what_is_sent_and_what_comes_back() -> None:
    world = World(RESULT)
    outcome = await call(world)

    assert (outcome.kind, outcome.body) == ("result", b"pickle")
    (sent,) = world.asked
    head, _, body = sent.partition(b"\r\n\r\n")
    assert body == b"arguments"
    assert head.startswith(b"POST /.modalnomad/call HTTP/1.1\r\n")
    for line in (b"modalnomad-ticket: t", b"modalnomad-method: method", b"x-request-id: c-1", b"content-length: 9"):
        assert line in head.split(b"\r\n")
    assert world.caller.outcomes == {"result": 1}


async def test_replicas_that_do_not_take_it_are_avoided() -> None:
    world = World(BUSY, ConnectionRefusedError, RESULT)

    assert (await call(world)).kind == "result"
    assert [len(avoid) for avoid in world.avoided] == [0, 1, 2]
    assert [word for word in world.said if word != "closed"] == ["refused", "gone"]


async def test_a_place_is_waited_for_as_long_as_it_takes(paused: list[float]) -> None:
    full = [Reply(503, code, "full", retry_after=after) for code, after in (("queue_timeout", 2), ("no_capacity", 60))]
    world = World(*full, Reply(429, "queue_full", "full"), RESULT)

    assert (await call(world)).kind == "result"
    assert paused == [2, 5, 1]


async def test_no_replica_to_be_had_is_the_answer() -> None:
    words = "app/f: the program failed while it was starting"
    world = World(Reply(503, "start_failed", "It did not start.", private=f"{words}\nTraceback …"))
    outcome = await call(world, retries=Retries(max_retries=3))

    assert outcome.kind == "failed"
    assert (outcome.error["type"], outcome.error["message"]) == ("start_failed", words)
    assert outcome.error["traceback"] == "Traceback …"


async def test_a_replica_that_dies_is_not_asked_twice_unless_there_are_retries(paused: list[float]) -> None:
    lost = ConnectionResetError("gone")
    assert (await call(World(lost))).error["type"] == "replica_gone"
    assert (await call(World(lost, RESULT), retries=Retries(max_retries=1))).kind == "result"
    assert paused == [1]


async def test_retries_with_growing_pauses(paused: list[float]) -> None:
    told: list[tuple[str, float]] = []
    world = World(RAISED, RAISED, RAISED, RAISED)
    retries = Retries(max_retries=3, backoff_coefficient=4.0, initial_delay=0.1, max_delay=3.0)
    outcome = await world.caller.call(
        Call(revision(retries=retries)), lambda outcome, delay: told.append((outcome.kind, delay))
    )

    assert outcome.kind == "raised"
    assert paused == [1.0, 1.0, pytest.approx(1.6)]
    assert told == [("raised", pause) for pause in paused]
    assert world.caller.outcomes == {"raised": 1}


def test_pauses_have_a_lower_and_an_upper_end() -> None:
    assert Retries(max_retries=9, initial_delay=0).delay(0) == 1
    assert Retries(max_retries=9, backoff_coefficient=10, initial_delay=60).delay(10**6) == 60
    assert Retries(max_retries=9, backoff_coefficient=1, initial_delay=7).delay(10**6) == 7


async def test_a_replica_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MARGIN", 0.0)
    world = World(None)
    outcome = await call(world, timeout=0.01)

    assert outcome.kind == "timeout"
    assert "gone" in world.said


async def test_draining_waits_for_what_runs_and_refuses_the_rest() -> None:
    world = World(None)
    running = asyncio.ensure_future(call(world, timeout=60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not await world.caller.drain(0.01)
    assert (await call(world)).error["type"] == "draining"
    running.cancel()
    await asyncio.wait({running})
    assert await world.caller.drain(1)
    assert "closed" in world.said, "the replica learns that the call is cancelled"


# --- what `run` builds -------------------------------------------------------------------------------------------


def description(*functions: Function, **fields: Any) -> Description:
    app = Manifest(name="app", source=SOURCE, functions=functions)
    return Description(contract=1, sdk_version="1", python="3.11", app=app, **fields)


def test_functions_without_a_limit_get_one() -> None:
    capped = Function(tag="capped", scaling=Scaling(max_containers=50))
    plan = plan_calls(
        description(Function(tag="f"), capped, Function(tag="other")), {"f", "capped"}, "main", name=None, most=4
    )

    assert {one.tag: one.scaling.max_containers for one in plan.functions} == {"f": 4, "capped": 50}


def test_what_is_wrong_is_told_and_what_does_not_matter_is_not() -> None:
    refused = description(Function(tag="f"), refusals=(Refusal(code="volume", message="no volumes", where="app.py:1"),))
    with pytest.raises(ManifestInvalid, match=r"app\.py:1: no volumes"):
        plan_calls(refused, {"f"}, "main", name="bad name", most=4)
    notices = (Notice(code="not_web", message="no endpoint"), Notice(code="other", message="kept"))
    plan = plan_calls(description(Function(tag="f"), notices=notices), {"f"}, "main", name=None, most=4)
    assert [notice.message for notice in plan.notices] == ["kept"]
