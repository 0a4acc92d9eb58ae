"""The engine's side of a warm template process, for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modalnomad_sdk import contract as c

from tests.support.runner import LONG, PYTHON, RUNNER, Asking, Runner, environment, remove_socket


@dataclass
class Template:
    """A started template process and our end of its socket."""

    process: subprocess.Popen[bytes]
    engine: socket.socket


class Forked(Runner):
    """A replica forked from a template: not our child, so its end is told by the result pipe."""

    pidfd: int
    result: int

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, timeout: float = LONG) -> int:
        """Exit code; -1 when it was killed."""
        os.set_blocking(self.result, True)
        text = b""
        while piece := os.read(self.result, 100):
            text += piece
        return int(text) if text.strip(b"+") else -1


class Refused(Exception):
    """The template wants this replica to be started the ordinary way."""


@contextmanager
def template() -> Iterator[Template]:
    """A warm template."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(LONG)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MODALNOMAD_") and k != "PYTHONDONTWRITEBYTECODE"}
    with theirs:
        process = subprocess.Popen(
            [PYTHON, str(RUNNER), "template", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=kept,
            stdin=subprocess.DEVNULL,
        )
    with ours:
        try:
            assert json.loads(ours.recv(4096)) == {"ready": True, "contract": c.VERSION}
            yield Template(process, ours)
        finally:
            ours.close()
            assert process.wait(LONG) in (0, -signal.SIGKILL)


def start(
    warm: Template, folder: Path, program: str, tag: str = "f", *, extra: Mapping[str, str] | None = None
) -> Forked:
    """Ask for a replica. Raises Refused."""
    (folder / "prog.py").write_text(textwrap.dedent(program))
    address = f"{tempfile.mkdtemp(prefix='mn-', dir='/tmp')}/s"
    memory = os.memfd_create("environment")
    os.write(memory, json.dumps(environment(folder, "script:prog.py", tag, extra or {})).encode())
    out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    err = os.open(folder / "err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lifeline, ours = os.pipe()
    result, theirs = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        fds = [memory, out, err, listener.fileno(), lifeline, theirs]
        socket.send_fds(warm.engine, [json.dumps({"start": "r1"}).encode()], fds)
        for fd in (memory, out, err, lifeline, theirs):
            os.close(fd)
    packet, received, _, _ = socket.recv_fds(warm.engine, 4096, 1)
    answer = json.loads(packet)
    if "refused" in answer:
        Path(address).unlink()
        Path(address).parent.rmdir()
        os.close(ours)
        os.close(result)
        raise Refused(answer["reason"])
    replica = Forked(warm.process, address, ours, folder)
    replica.pidfd, replica.result = received[0], result
    return replica


@contextmanager
def forked(
    warm: Template, folder: Path, program: str, tag: str = "f", **options: Mapping[str, str]
) -> Iterator[Forked]:
    """A forked replica for the length of a block."""
    replica = start(warm, folder, program, tag, **options)
    try:
        yield replica
    finally:
        replica.cut_lifeline()
        replica.wait()
        os.close(replica.result)
        os.close(replica.pidfd)
        remove_socket(replica)


__all__ = ["Asking", "Forked", "Refused", "Template", "forked", "start", "template"]
