"""How a replica's end is told: return code → state and reason in words."""

from __future__ import annotations

import signal
from typing import Final

from modalnomad_sdk.contract import Exit

from modalnomad.model.replica import Failure, FailureCode, ReplicaState

REASONS: Final[dict[int, tuple[FailureCode, str]]] = {
    Exit.USER_CODE_FAILED: ("start_failed", "the program failed while it was starting"),
    Exit.BAD_CONFIGURATION: ("start_failed", "the runner refused its configuration"),
    Exit.PORT_NEVER_OPENED: ("start_failed", "the web server never accepted a connection on its port"),
    Exit.FUNCTION_NOT_FOUND: ("start_failed", "the program no longer has this function"),
    Exit.PORT_TAKEN: ("start_failed", "the web server's port is taken"),
    Exit.GPU_MISSING: ("start_failed", "fewer GPUs are visible than were asked for"),
    Exit.STARTUP_TIMEOUT: ("startup_timeout", "it was not ready within its startup_timeout"),
    Exit.GRACE_EXPIRED: ("replica_gone", "requests were still running at the end of the grace period"),
    Exit.EXIT_FAILED: ("replica_gone", "its exit method or lifespan shutdown failed"),
    Exit.PARENT_GONE: ("replica_gone", "its starter went away"),
}


def outcome(code: int, *, killed: bool, output: str) -> tuple[ReplicaState, Failure | None]:
    """`killed`: we were asked to end it. A failure's code is `start_failed` where readiness decides: whoever saw the
    replica ready knows better."""
    if killed or code == Exit.OK:
        return ReplicaState.GONE, None
    failure, reason = REASONS.get(code, ("start_failed", _other(code)))
    return ReplicaState.FAILED, Failure(failure, reason, output, code)


def _other(code: int) -> str:
    if code >= 0:
        return f"the process ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (often: out of memory)" if -code == signal.SIGKILL else ""
    return f"the process was ended by {name}{hint}"
