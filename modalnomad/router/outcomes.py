"""Why a request got no place, as the answer its sender sees (design §5)."""

from __future__ import annotations

from modalnomad.model.errors import BackendError
from modalnomad.model.replica import Failure, FailureCode
from modalnomad.model.revision import Revision
from modalnomad.router.places import Deny
from modalnomad.router.replies import Reply


class StartFailed(BackendError):
    """A replica asked for by `warm` did not become ready."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


_STATUS: dict[FailureCode, int] = {
    "start_failed": 503,
    "replica_gone": 503,
    "startup_timeout": 504,
    "no_capacity": 503,
    "unplaceable": 503,
}
_WORDS: dict[FailureCode, str] = {
    "start_failed": "The function did not start.",
    "replica_gone": "The function did not start.",
    "startup_timeout": "The function was not ready within its startup_timeout.",
    "no_capacity": "There is no room to run the function now.",
    "unplaceable": "Nothing here can run the function.",
}


def reply_for(answer: Deny, revision: Revision) -> Reply:
    """The user's output goes into the private part only."""
    if answer.why == "draining":
        return draining()
    if answer.why == "queue_full":
        detail = "Too many requests wait for this endpoint."
        return Reply(429, "queue_full", detail, retry_after=answer.retry_after)
    if answer.why == "queue_timeout" or answer.failure is None:
        return queue_timeout(answer.retry_after or 1.0)
    return failed(answer.failure, revision, answer.retry_after)


def failed(failure: Failure, revision: Revision, retry_after: float | None) -> Reply:
    """`retry_after`: seconds until another start is tried; None: the next request tries."""
    code: FailureCode = "start_failed" if failure.code == "replica_gone" else failure.code
    if code == "no_capacity" and retry_after is None:
        retry_after = 1.0
    private = f"{revision.app}/{revision.function.tag}: {failure.reason}"
    if failure.detail:
        private += f"\n{failure.detail}"
    status = 503 if retry_after is not None else _STATUS[code]
    if code == "startup_timeout" and status == 503:
        code = "start_failed"
    return Reply(status, code, _WORDS[code], private=private, retry_after=retry_after)


def queue_timeout(retry_after: float = 1.0) -> Reply:
    """Replicas are alive, but stayed full."""
    return Reply(503, "queue_timeout", "No replica became free in time.", retry_after=retry_after)


def too_many_pools(limit: int) -> Reply:
    """More sets of class-parameter values at once than allowed, none of them idle."""
    detail = f"More than {limit} different sets of class parameters are in use."
    return Reply(429, "too_many_pools", detail, retry_after=1.0)


def no_socket(error: OSError) -> Reply:
    """The router itself is at a limit: no replica is to blame."""
    detail = "This router has as many connections as it can."
    return Reply(503, "too_many_connections", detail, private=str(error), retry_after=1.0)


def draining() -> Reply:
    """The router is shutting down."""
    return Reply(503, "draining", "The router is shutting down.", retry_after=1.0, close=True)


def other_parameters() -> Reply:
    """The route moved, while the request waited, to a revision that declares other class parameters."""
    return Reply(422, "bad_parameter", "A new version of this endpoint takes other class parameters.")
