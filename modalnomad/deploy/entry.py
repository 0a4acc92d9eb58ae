"""The child process in which a program's local entrypoint runs (`modalnomad_sdk.entry`), and our end of its line.

What comes over the line is never unpickled here: arguments and results are the user's own, and pass through.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from modalnomad_sdk import contract

from modalnomad.deploy.collect import Reference, describe_environment, error_of, read_answer
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError
from modalnomad.model.manifest import Description

_LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of one message without what follows it: a traceback may be long."""
LAST_OUTPUT = 0.5
"""Seconds its output is read after its end: a process it left behind may still hold the pipes."""


@dataclass(frozen=True, slots=True)
class Described:
    """What the program declares, and the tags of the Functions that must be startable."""

    description: Description
    needs: frozenset[str]
    name: str
    """Of what is run."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the child."""

    record: Mapping[str, Any]
    payload: bytes = b""


class EntryProcess:
    """Owns the child and the line to it. Close it."""

    def __init__(
        self,
        reference: Reference,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._reference = reference
        self._process = process
        self._reader = reader
        self._writer = writer
        self._writing = asyncio.Lock()
        self._tasks = Tasks("entry")
        self._pumps: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        reference: Reference,
        arguments: Sequence[str],
        *,
        write_result: Path | None = None,
        on_line: Callable[[str, str], None] | None = None,
    ) -> Self:
        """`on_line` gets its standard output and error (`stdout`, `stderr`) line by line; None: they are ours, as is
        standard input."""
        ours, theirs = socket.socketpair()
        pipe = asyncio.subprocess.PIPE if on_line is not None else None
        written = ["--write-result", str(write_result)] if write_result is not None else []
        command = (str(theirs.fileno()), *written, *reference.arguments, "--", *arguments)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "modalnomad_sdk.entry", *command),
                    stdout=pipe,
                    stderr=pipe,
                    env=describe_environment(os.environ),
                    pass_fds=(theirs.fileno(),),
                )
            reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT)
        except BaseException:
            ours.close()
            raise
        made = cls(reference, process, reader, writer)
        if on_line is not None:
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
                assert stream is not None
                made._pumps.append(made._tasks.spawn(made._pump(name, stream, on_line), name))
        return made

    async def _pump(self, name: str, stream: asyncio.StreamReader, on_line: Callable[[str, str], None]) -> None:
        rest = b""
        while chunk := await stream.read(65536):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                on_line(name, line.decode("utf-8", "replace"))
        if rest:
            on_line(name, rest.decode("utf-8", "replace"))

    async def described(self) -> Described | None:
        """The first thing it says; None: it has ended, and said why (wrong usage, `--help`). Raises UserError."""
        message = await self._read()
        if message is None:
            return None
        if (error := message.record.get("error")) is not None:
            raise error_of(self._reference, error, "")
        about = message.record["described"]
        description = read_answer(self._reference, json.loads(message.payload), "")
        return Described(description, frozenset(about["needs"]), str(about["name"]))

    async def tell(self, record: Mapping[str, Any], payload: bytes = b"") -> None:
        """Write one message. A child that has ended gets none."""
        data = json.dumps({**record, "size": len(payload)} if payload else record).encode() + b"\n"
        with suppress(ConnectionError):
            async with self._writing:
                self._writer.write(data)
                if payload:
                    self._writer.write(payload)
                await self._writer.drain()

    async def messages(self) -> AsyncIterator[Message]:
        """Until it ends."""
        while (message := await self._read()) is not None:
            if "returned" in message.record:
                await self.tell({"heard": True})
            yield message

    async def _read(self) -> Message | None:
        try:
            line = await self._reader.readline()
            if not line:
                return None
            record = json.loads(line)
            size = int(record.get("size", 0))
            if size > 2 * contract.CALL_LIMIT:
                raise ValueError(f"{size} bytes")
            payload = await self._reader.readexactly(size) if size else b""
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        except (ValueError, TypeError, AttributeError) as error:
            raise BackendError(f"{self._reference}: its process does not keep to the protocol: {error}") from error
        return Message(record, payload)

    async def ended(self) -> int:
        """Its exit code, once all it wrote was passed on; negative: the signal that ended it."""
        code = await self._process.wait()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=LAST_OUTPUT)
        return code

    async def interrupt(self, within: float) -> None:
        """As Ctrl-C does, once, whoever sent it; killed when it has not ended by then."""
        await self.tell({"interrupt": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._process.wait()

    async def close(self) -> None:
        """Kill it if it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._tasks.close()
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
