"""Calls from a local entrypoint, over a line of the test's own."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import modalnomad_sdk as modal
import pytest
from modalnomad_sdk import calling
from modalnomad_sdk.calling import Answer, PlatformError, RemoteTraceback, Target
from modalnomad_sdk.exception import (
    DeserializationError,
    FunctionTimeoutError,
    InputCancellation,
    InvalidError,
    RemoteError,
    SerializationError,
)

app = modal.App("calling")


@app.function()
def double(x: int, times: int = 1) -> int:
    return 2 * x * times


@app.function()
def gen() -> Iterator[int]:
    yield 1


@app.function()
@modal.fastapi_endpoint()
def web() -> int:
    return 1


@app.cls()
class Server:
    size: int = modal.parameter()
    raw: bytes = modal.parameter(default=b"\x00")

    @modal.method()
    def grow(self, n: int) -> int:
        return self.size + n


class Picky(Exception):
    """Cannot be made again from what pickle keeps of it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two


class LineOfTheTest:
    """Answers with `answer(args, kwargs)`; while `hold` is on, nothing is answered."""

    def __init__(self) -> None:
        self.answer: Callable[..., Answer] = lambda args, kwargs: result(double.local(*args, **kwargs))
        self.hold = False
        self.sent: list[Target] = []
        self.open: list[Future[Answer]] = []
        self.most = 0
        self._lock = threading.Lock()

    def send(self, target: Target, payload: bytes) -> Future[Answer]:
        future: Future[Answer] = Future()
        target.parameters()
        with self._lock:
            # Before the test can see it in `open`: what comes after that may be as late as the thread likes.
            held = self.hold
            self.most = max(self.most, 1 + sum(not one.done() for one in self.open))
            self.sent.append(target)
            self.open.append(future)
        if not held:
            args, kwargs = pickle.loads(payload)
            future.set_result(self.answer(args, kwargs))
        return future


def result(value: Any) -> Answer:
    return Answer("result", pickle.dumps(value))


def raised(
    error: Exception | None, kind: str = "ValueError", trace: str = "Traceback\n  there\nValueError: no\n"
) -> Answer:
    pickled = None if error is None else base64.b64encode(pickle.dumps(error)).decode()
    record = {"type": kind, "message": "no", "traceback": trace, "exception": pickled}
    return Answer("raised", json.dumps(record).encode())


@pytest.fixture
def line() -> Iterator[LineOfTheTest]:
    made = LineOfTheTest()
    calling.connect(made)
    yield made
    calling.connect(None)


def test_remote_returns_what_the_replica_returned(line: LineOfTheTest) -> None:
    assert double.remote(4, times=3) == 24
    assert asyncio.run(double.remote.aio(5)) == 10
    assert [(target.tag, target.method, target.parameters()) for target in line.sent] == [("double", "", "")] * 2


def test_methods_carry_the_parameters_of_their_instance(line: LineOfTheTest) -> None:
    line.answer = lambda args, kwargs: result(args)
    unfit: Any = Server
    made = unfit(size=3)

    assert made.grow.remote(4) == (4,)
    (target,) = line.sent
    assert (target.tag, target.method, target.name) == ("Server", "grow", "Server.grow")
    assert target.parameters() == '{"raw":{"bytes":"AA=="},"size":3}', "sorted, with defaults"


def test_parameters_that_do_not_fit_are_refused_at_the_call(line: LineOfTheTest) -> None:
    unfit: Any = Server
    for made in (unfit(), unfit(size="3"), unfit(size=3, other=1), unfit(size=3, raw=b"x" * 20_000)):
        with pytest.raises(InvalidError):
            made.grow.remote(1)
    assert unfit(1).grow is not None
    with pytest.raises(InvalidError, match="by name"):
        unfit(1).grow.remote(1)


def test_what_the_replica_raised_is_raised_with_its_traceback(line: LineOfTheTest) -> None:
    line.answer = lambda args, kwargs: raised(ValueError("no"))
    with pytest.raises(ValueError, match="no") as caught:
        double.remote(1)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "there" in str(caught.value.__cause__)


def test_errors_without_a_class_here(line: LineOfTheTest) -> None:
    line.answer = lambda args, kwargs: raised(None, "Elsewhere")
    with pytest.raises(RemoteError, match="Elsewhere: no"):
        double.remote(1)
    line.answer = lambda args, kwargs: raised(Picky(1, 2), "Picky")
    with pytest.raises(RemoteError, match="Picky: no"):
        double.remote(1)
    line.answer = lambda args, kwargs: Answer("result", b"not pickle")
    with pytest.raises(DeserializationError, match="the result of `double` cannot be read here"):
        double.remote(1)


def test_errors_of_the_call_itself(line: LineOfTheTest) -> None:
    line.answer = lambda args, kwargs: raised(None, "FunctionTimeoutError", "FunctionTimeoutError: no")
    with pytest.raises(FunctionTimeoutError, match="no"):
        double.remote(1)
    line.answer = lambda args, kwargs: Answer("failed", raised(None, "start_failed", "its last words").body)
    with pytest.raises(PlatformError) as caught:
        double.remote(1)
    assert caught.value.output == "its last words"


def test_arguments_that_cannot_be_pickled_are_named(line: LineOfTheTest) -> None:
    unfit: Any = double.remote
    with pytest.raises(SerializationError, match="argument 1 of `double` is a function, which cannot be pickled"):
        unfit(lambda: 1)
    with pytest.raises(SerializationError, match=r"argument `times` of `double` is a _thread\.lock"):
        unfit(1, times=threading.Lock())
    assert line.sent == []


def test_what_cannot_be_called_says_why(line: LineOfTheTest) -> None:
    with pytest.raises(InvalidError, match="webhook"):
        web.remote()
    with pytest.raises(InvalidError, match=r"test_sdk_calling\.py:\d+: `gen` is a generator"):
        gen.remote()
    assert line.sent == []


def test_map_keeps_the_order_and_starmap_and_for_each(line: LineOfTheTest) -> None:
    assert list(double.map(range(50))) == [2 * n for n in range(50)]
    assert sorted(double.map([3, 1, 2], order_outputs=False)) == [2, 4, 6]
    assert list(double.map([1, 2, 3], [10, 20], kwargs={})) == [20, 80]
    assert list(double.starmap([(1, 2), (3, 4)])) == [4, 24]
    double.for_each([1, 2])
    assert list(double.map([])) == []


def test_map_reads_its_inputs_as_far_as_its_window(line: LineOfTheTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "WINDOW", 5)
    taken: list[int] = []
    line.hold = True

    def inputs() -> Iterator[int]:
        for n in range(40):
            taken.append(n)
            yield n

    results = double.map(inputs())
    first = threading.Thread(target=lambda: next(results, None), daemon=True)
    first.start()
    _until(lambda: len(line.open) >= 5)
    assert line.most == 5
    assert len(taken) <= 6, "one more is read, and waits for room"
    line.hold = False
    for future in list(line.open):
        future.set_result(result(0))
    first.join(30)
    assert len(list(results)) == 39
    assert line.most <= 5


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def test_the_first_error_of_a_map_ends_it(line: LineOfTheTest) -> None:
    line.answer = lambda args, kwargs: raised(ValueError("no")) if args[0] == 2 else result(args[0])
    results = double.map([1, 2, 3])
    assert next(results) == 1
    with pytest.raises(ValueError, match="no"):
        next(results)
    found = list(double.map([1, 2, 3], return_exceptions=True))
    assert (found[0], found[2]) == (1, 3)
    assert isinstance(found[1], ValueError)
    with pytest.raises(ValueError, match="no"):
        double.for_each([2])
    double.for_each([2], ignore_exceptions=True)


def test_a_map_that_is_left_early_cancels_its_calls(line: LineOfTheTest) -> None:
    line.hold = True
    feed = calling._Feed(Target("double", "double"), ((n,) for n in range(3)), {}, True)
    _until(lambda: len(line.open) == 3)
    feed.close()
    assert all(future.cancelled() for future in line.open)


def test_an_input_that_raises_is_raised_where_results_are_read(line: LineOfTheTest) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(double.map(inputs()))


async def test_map_in_async_code_takes_async_inputs(line: LineOfTheTest) -> None:
    async def inputs() -> AsyncIterator[int]:
        for n in range(3):
            await asyncio.sleep(0)
            yield n

    numbers: Any = inputs()
    assert [n async for n in double.map.aio(numbers)] == [0, 2, 4]
    assert [n async for n in double.starmap.aio([(1, 2)])] == [4]
    await double.for_each.aio([1, 2])


def test_spawned_calls_are_waited_for_polled_and_cancelled(line: LineOfTheTest) -> None:
    line.hold = True
    call = double.spawn(4)
    assert call.object_id.startswith("fc-")
    with pytest.raises(TimeoutError, match="within 0 s"):
        call.get(timeout=0)
    line.open[0].set_result(result(8))
    assert call.get() == 8
    assert asyncio.run(call.get.aio()) == 8

    other = double.spawn(5)
    other.cancel()
    assert line.open[1].cancelled()
    with pytest.raises(InputCancellation):
        other.get()
    assert modal.FunctionCall.gather(call, call) == [8, 8]
