"""What this process is: a user's machine, or a replica. Set once by the runner, before user code is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Replica:
    """What a replica knows about itself."""

    image_digest: str | None
    web_urls: Mapping[str, str] = field(default_factory=dict)
    """Endpoint name (`f`, `Server.files`) → public URL."""


_replica: Replica | None = None

current_input: ContextVar[str | None] = ContextVar("modalnomad_current_input", default=None)
"""Id of the request that runs; the runner sets it, `modal.current_input_id()` reads it."""


def enter_replica(image_digest: str | None, web_urls: Mapping[str, str]) -> None:
    """From here on `modal.is_local()` is False and `Function.get_web_url()` has answers. Called once, by the runner."""
    global _replica  # noqa: PLW0603 - a process is one replica
    _replica = Replica(image_digest, dict(web_urls))


_loading = False


def set_loading(now: bool) -> None:
    """Is the user's module being imported?"""
    global _loading  # noqa: PLW0603 - one program is loaded per process
    _loading = now


def loading() -> bool:
    """Is the user's module being imported?"""
    return _loading


def replica() -> Replica | None:
    """None on a user's machine."""
    return _replica


stop_inputs: Callable[[], None] | None = None
"""Set by the runner: what `modal.experimental.stop_fetching_inputs()` calls. None: not in a replica that can."""
