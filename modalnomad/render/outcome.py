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
    Exit.ENVIRONMENT_FAILED: ("start_failed", "its environment could not be made on the node"),
}

SIGNALLED: Final = 128


def outcome(
    code: int, *, killed: bool, output: str, exceeded: str | None = None
) -> tuple[ReplicaState, Failure | None]:
    """`killed`: we were asked to end it. `exceeded`: the limit it died of, if it did. A failure's code is
    `start_failed` where readiness decides: whoever saw the replica ready knows better."""
    if killed or code == Exit.OK:
        return ReplicaState.GONE, None
    failure, reason = REASONS.get(code, ("start_failed", _other(code)))
    if exceeded is not None and (code < 0 or code > SIGNALLED or failure == "start_failed"):
        reason = exceeded
    return ReplicaState.FAILED, Failure(failure, reason, output, code)


def _other(code: int) -> str:
    # A negative code is the supervisor's own end; it tells the program's by 128 + signal, as a shell does.
    number = -code if code < 0 else code - SIGNALLED
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"the process ended with code {code}"
    hint = " (often: out of memory)" if number == signal.SIGKILL else ""
    return f"the process was ended by {name}{hint}"
