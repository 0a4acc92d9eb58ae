"""A replica and its states.

STARTING ─ready─▶ READY ─drain─▶ DRAINING ─exit─▶ GONE
    └─exit / timeout─▶ FAILED        READY ─exit─▶ FAILED
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from modalnomad.model.ids import RevisionId


class ReplicaState(StrEnum):
    """READY and DRAINING are what the router learns by talking to the replica; an engine reports STARTING while the
    process lives, and FAILED or GONE when it ended."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class PoolKey:
    """All replicas of one revision for one set of class-parameter values."""

    revision: RevisionId
    parameters: str = ""
    """Canonical JSON of all values after defaults; empty: the Function has no parameters."""

    def __str__(self) -> str:
        if not self.parameters:
            return str(self.revision)
        import hashlib

        return f"{self.revision}-{hashlib.sha256(self.parameters.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class ReplicaKey:
    """`number` is its place in the pool (0, 1, …), `epoch` how often that number was started (1, 2, …)."""

    pool: PoolKey
    number: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.pool}.{self.number}.{self.epoch}"

    @property
    def name(self) -> str:
        """`<number>.<epoch>`, as the replica says of itself."""
        return f"{self.number}.{self.epoch}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix stream socket."""

    path: str


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port."""

    host: str
    port: int


Address = UnixAddress | TcpAddress

FailureCode = Literal["start_failed", "startup_timeout", "no_capacity", "unplaceable", "replica_gone"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a replica ended badly or never came to be. `detail` may hold user output: shown on -dev routes only."""

    code: FailureCode
    reason: str
    detail: str = ""
    exit_code: int | None = None
    away: bool = False
    """A server that starts need did not answer, or failed by itself: this tells nothing about the program."""

    @property
    def lost(self) -> bool:
        """It went with its machine: nobody knows how its process ended. The engine may start it elsewhere by itself."""
        return self.code == "replica_gone" and self.exit_code is None


@dataclass(frozen=True, slots=True)
class Replica:
    """One running copy as an engine sees it. `address` may be known before anything listens there."""

    key: ReplicaKey
    state: ReplicaState
    address: Address | None = None
    failure: Failure | None = None
    started_at: float = 0.0
    """Unix time."""
    reason: str = ""
    """Why it was started."""
    leaving: str = ""
    """Why it should be replaced by another one of its pool before it goes (its machine is drained, a secret it was
    started with has a newer version); empty: it may stay."""
    staged: bool = False
    """Started by a deploy ahead of a version that is not served yet: left alone until it is, or until it ends by itself
    because nobody asks it."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a replica wrote; `text` has no newline."""

    time: float
    app: str
    function: str
    replica: str
    stream: Literal["stdout", "stderr", "system"]
    text: str
    request_id: str | None = None
    environment: str = ""
    """Of the App."""

    @property
    def replica_name(self) -> str:
        """`<number>.<epoch>` of the replica, as `ReplicaKey.name`."""
        return ".".join(self.replica.rsplit(".", 2)[-2:])
