"""Standard output and error of a replica: line by line, whole lines, with the id of the request that wrote them."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import Any

from modalnomad_sdk import state
from modalnomad_sdk.contract import LOG_TAG_CLOSE, LOG_TAG_OPEN

LONGEST = 64 * 1024
"""Characters a line may have before it is passed on in pieces."""


class Lines(io.TextIOWrapper):
    """A text stream that passes on whole lines. Unfinished ones wait, one per request or thread, so that lines which
    are written at the same time do not run into each other."""

    def __init__(self, fd: int, tagged: bool) -> None:
        super().__init__(os.fdopen(fd, "wb", 0, closefd=False), "utf-8", "backslashreplace", write_through=True)
        self._fd = fd
        self._tagged = tagged
        self._unfinished: dict[object, str] = {}
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._unfinished = {}

    def write(self, text: str) -> int:
        request = state.current_input.get()
        key = request or threading.get_ident()
        with self._lock:
            waiting = self._unfinished.pop(key, "") + text
            whole, newline, rest = waiting.rpartition("\n")
            if len(rest) > LONGEST:
                whole, newline, rest = waiting, "", ""
            if rest:
                self._unfinished[key] = rest
            if whole or newline:
                self._pass_on(whole + newline, request)
        return len(text)

    def _pass_on(self, lines: str, request: str | None) -> None:
        if self._tagged and request:
            tag = f"{LOG_TAG_OPEN}{request}{LOG_TAG_CLOSE}"
            lines = tag + lines[:-1].replace("\n", "\n" + tag) + lines[-1:]
        data = memoryview(lines.encode("utf-8", "backslashreplace"))
        while data:
            data = data[os.write(self._fd, data) :]

    def flush(self) -> None:
        """Outside of a request an unfinished line (a prompt, a progress bar) is passed on as it is."""
        if not hasattr(self, "_lock") or state.current_input.get():
            return
        with self._lock:
            waiting = self._unfinished.pop(threading.get_ident(), "")
            if waiting:
                self._pass_on(waiting, None)

    def finish_request(self, request: str) -> None:
        """Pass on what this request left unfinished: it has ended, and nobody else will."""
        if request not in self._unfinished:
            return
        with self._lock:
            if waiting := self._unfinished.pop(request, ""):
                self._pass_on(waiting + "\n", request)

    def finish(self) -> None:
        """Pass on all that is unfinished: the process ends."""
        with self._lock:
            for key, waiting in self._unfinished.items():
                self._pass_on(waiting + "\n", key if isinstance(key, str) else None)
            self._unfinished = {}


def install(tagged: bool) -> None:
    """From here on sys.stdout and sys.stderr are such streams."""
    out: Any = Lines(1, tagged)
    err: Any = Lines(2, tagged)
    for name, stream in (("stdout", out), ("stderr", err)):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def finish_request(request: str) -> None:
    """A request has ended."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Lines):
            stream.finish_request(request)


def finish() -> None:
    """Pass on what is unfinished."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Lines):
            stream.finish()
