"""What the fake's nodes need of whoever really runs a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

Tell = Callable[[dict[str, Any]], None]
"""Takes what a node knows of an allocation now: `TaskStates` (whole, as of the API: `{task: {State, Failed, Restarts,
StartedAt, FinishedAt, Events}}`), and, where the runner decides it, `ClientStatus` and `ClientDescription` (else they
follow from the task states as Nomad's client derives them). The fake batches it as a node would; calls after the task
is dead are ignored."""


class Running(Protocol):
    """Runs allocations of one fake Nomad, of all its nodes.

    `alloc`: as the API gives it, `AllocatedResources` (ports, devices) and `Job` included; `job`: the child's job, with
    `Payload` and merged `Meta`; `node`: as `GET /v1/node/:id` gives it. All three are the fake's own: read only.
    """

    async def start(self, alloc: dict[str, Any], job: dict[str, Any], node: dict[str, Any], tell: Tell) -> None:
        """Begin; returns when the task runs or has failed to. All that happens to it is told, the end too; nothing is
        raised. Restarts are the runner's own (`RestartPolicy`)."""

    async def signal(self, alloc_id: str, signal: str) -> None:
        """`SIGTERM`, `SIGKILL` … to its main process. Raises KeyError: no such task runs."""

    async def stop(self, alloc_id: str, kill_timeout: float) -> None:
        """Services away, ShutdownDelay, KillSignal, after `kill_timeout` seconds KILL; returns when it has ended and
        was told. None of it for one that has ended already."""

    def logs(self, alloc_id: str, stream: str) -> Path:
        """The file all of the task's `stdout` or `stderr` goes to; it may not exist yet. Raises KeyError: unknown."""

    def log_files(self, alloc_id: str, stream: str) -> list[Path]:
        """What is kept of it, oldest first: `<task>.<stream>.<number>`. Raises KeyError: unknown."""

    async def lose(self, alloc_id: str) -> None:
        """Its machine is gone: end it at once, and tell nothing more."""

    async def forget(self, alloc_id: str) -> None:
        """Its folder and logs go (it has ended, or is killed)."""

    async def close(self) -> None:
        """Kill what runs, remove all folders."""
