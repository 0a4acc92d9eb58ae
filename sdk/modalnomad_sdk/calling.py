"""Calls from a local entrypoint (`modalnomad run`): what `.remote()`, `.map()` and `.spawn()` do there.

Everywhere else no line is connected, and the handles say so. Arguments and results are pickled; what the remote side
raised is raised here, with its traceback as the cause. Every replica imports this module and hardly any makes a call:
what only calls need is imported when one is made.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from . import exception
from .contract import CALL_LIMIT, CALL_PICKLE
from .exception import DeserializationError, ExecutionError, RemoteError, SerializationError

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

WINDOW = 1000
"""Calls that one `map` has under way at most."""
_END: Any = object()


@dataclass(frozen=True)
class Target:
    """What is called: a Function, or a method of an instance of a Cls."""

    tag: str
    name: str
    """For people: `f`, `Server.method`."""
    method: str = ""
    parameters: Callable[[], str] = str
    """Canonical JSON of the class parameters; empty: none. Raises InvalidError."""


@dataclass(frozen=True)
class Answer:
    """How a call ended: `result` with a pickle; `raised`, `timeout` or `failed` with JSON (contract.CALL_PATH)."""

    outcome: str
    body: bytes


class Line(Protocol):
    """The way to the platform."""

    def send(self, target: Target, payload: bytes) -> Future[Answer]:
        """Start a call. Cancelling the future cancels the call."""


_line: Line | None = None


def connect(line: Line | None) -> None:
    """From here on calls go this way."""
    global _line  # noqa: PLW0603 - a process has one platform
    _line = line


def connected() -> bool:
    """Can anything be called from here?"""
    return _line is not None


class RemoteTraceback(Exception):
    """The cause of an exception that was raised in a replica: its traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class PlatformError(ExecutionError):
    """No replica could be had, or it went away. `output`: what it wrote last."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def start(target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Future[Answer]:
    """Begin a call. Raises SerializationError."""
    import pickle

    assert _line is not None
    try:
        payload = pickle.dumps((args, dict(kwargs)), CALL_PICKLE)
    except Exception as error:
        for number, value in enumerate(args, 1):
            _check_pickle(f"argument {number}", value, target)
        for name, value in kwargs.items():
            _check_pickle(f"argument `{name}`", value, target)
        raise SerializationError(f"the arguments of `{target.name}` cannot be pickled: {error}") from None
    if len(payload) > CALL_LIMIT:
        raise SerializationError(
            f"the arguments of `{target.name}` have {len(payload)} bytes; at most {CALL_LIMIT} can be passed"
        )
    return _line.send(target, payload)


def _check_pickle(shown: str, value: Any, target: Target) -> None:
    import pickle

    try:
        pickle.dumps(value, CALL_PICKLE)
    except Exception as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise SerializationError(
            f"{shown} of `{target.name}` is a {kind}, which cannot be pickled ({error}): pass plain values, or objects "
            "of classes at the top level of a module"
        ) from None


def value_of(answer: Answer, name: str) -> Any:
    """What the call returned; what it raised is raised."""
    import json
    import pickle

    if answer.outcome != "result":
        raise _error_of(json.loads(answer.body), answer.outcome)
    try:
        return pickle.loads(answer.body)
    except Exception as error:
        raise DeserializationError(
            f"the result of `{name}` cannot be read here: {type(error).__name__}: {error} (what it is made of must be "
            "installed beside modalnomad too)"
        ) from error


def _error_of(record: Mapping[str, Any], outcome: str) -> Exception:
    import base64
    import pickle

    trace = str(record["traceback"])
    if outcome == "failed":
        return PlatformError(str(record["message"]), trace)
    error: Exception | None = None
    if record["exception"] is not None:
        try:
            found = pickle.loads(base64.b64decode(record["exception"]))
            error = found if isinstance(found, Exception) else None
        except Exception:
            error = None  # its class is not here, or cannot be made again
    if error is None:
        ours = getattr(exception, str(record["type"]), None)
        if trace.startswith("Traceback") or not (isinstance(ours, type) and issubclass(ours, Exception)):
            error = RemoteError(f"{record['type']}: {record['message']}")
        else:
            return ours(str(record["message"]))
    error.__cause__ = RemoteTraceback(trace)
    return error


# --- map -----------------------------------------------------------------------------------------------------------


def run_map(
    target: Target,
    inputs: Iterable[tuple[Any, ...]],
    kwargs: Mapping[str, Any],
    *,
    in_order: bool,
    return_exceptions: bool,
) -> Iterator[Any]:
    """Results of a call for every tuple of arguments, at most WINDOW of them under way. `inputs` is read in a thread
    of its own, as far ahead as that. The first error ends it all, unless exceptions are returned."""
    feed = _Feed(target, inputs, kwargs, in_order)
    try:
        while (future := feed.next()) is not None:
            try:
                result = value_of(future.result(), target.name)
            except Exception as error:
                if not return_exceptions:
                    raise
                result = error
            feed.taken(future)
            yield result
    finally:
        feed.close()


class _Feed:
    """Starts calls from a thread and hands their futures to whoever reads the results."""

    def __init__(
        self, target: Target, inputs: Iterable[tuple[Any, ...]], kwargs: Mapping[str, Any], in_order: bool
    ) -> None:
        import queue

        self._target, self._inputs, self._kwargs, self._in_order = target, inputs, kwargs, in_order
        self._room = threading.Semaphore(WINDOW)
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._open: set[Future[Answer]] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._left: int | None = None
        """Results still to come, once all inputs are read."""
        self._given = 0
        threading.Thread(target=self._run, name="map", daemon=True).start()

    def _run(self) -> None:
        count = 0
        try:
            for args in self._inputs:
                self._room.acquire()
                with self._lock:
                    if self._closed:
                        return
                    future = start(self._target, args, self._kwargs)
                    self._open.add(future)
                count += 1
                if self._in_order:
                    self._ready.put(future)
                else:
                    future.add_done_callback(self._ready.put)
        except BaseException as error:
            self._ready.put(error)
        else:
            self._ready.put(count)

    def next(self) -> Future[Answer] | None:
        """The next one whose result is due; None: there is no other. Raises what reading the inputs raised."""
        while self._left is None or self._given < self._left:
            found = self._ready.get()
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, int):
                self._left = found
                continue
            self._given += 1
            due: Future[Answer] = found
            return due
        return None

    def taken(self, future: Future[Answer]) -> None:
        """Its result was read: there is room for another."""
        with self._lock:
            self._open.discard(future)
        self._room.release()

    def close(self) -> None:
        """Cancel what is under way."""
        with self._lock:
            self._closed = True
            left = list(self._open)
        self._room.release()
        for future in left:
            future.cancel()


def zipped(iterators: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """`f.map(a, b)`: the first items, the second items …"""
    return zip(*iterators, strict=False)


def readable(source: Iterable[Any] | AsyncIterable[Any], loop: asyncio.AbstractEventLoop) -> Iterable[Any]:
    """Something a thread can read, also of an async iterable, which goes on running on its loop."""
    import asyncio

    if not isinstance(source, AsyncIterable):
        return iter(source)

    def read() -> Iterator[Any]:
        items = source.__aiter__()

        async def step() -> Any:
            try:
                return await items.__anext__()
            except StopAsyncIteration:
                return _END

        while (item := asyncio.run_coroutine_threadsafe(step(), loop).result()) is not _END:
            yield item

    return read()


async def read_async(results: Iterator[Any]) -> AsyncIterator[Any]:
    """The same results, without holding up the loop."""
    import asyncio

    try:
        while (result := await asyncio.to_thread(next, results, _END)) is not _END:
            yield result
    finally:
        if (close := getattr(results, "close", None)) is not None:
            close()
