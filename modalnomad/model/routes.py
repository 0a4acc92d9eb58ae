"""What routers serve: host name → endpoint of a revision, and who may come in."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import Field

from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Endpoint, Model
from modalnomad.model.revision import Revision


class Route(Model):
    """One endpoint's public names. `hosts[0]` is the one shown; the others are custom domains."""

    hosts: tuple[str, ...]
    """Lower-case host names without port."""
    environment: str
    app: str
    endpoint: Endpoint
    revision: RevisionId
    ephemeral: bool = False
    """A `serve` route (-dev): the router shows details of crashes."""

    @property
    def name(self) -> str:
        """`<app>/<endpoint>`, for people."""
        return f"{self.app}/{self.endpoint.name}"


class Token(Model):
    """A proxy-auth token. The secret itself is shown once, at creation, and never stored."""

    id: str
    """`wk-…`, what callers send as Modal-Key."""
    secret_sha256: str
    """Lower-case hex."""
    environment: str
    name: str = ""
    created_at: float = 0.0
    rate: float | None = None
    """Requests/s this token may make; None: the environment's."""


class ScalingOverride(Model):
    """What somebody set by hand on a function that is served. None: as the program declares it."""

    min_containers: int | None = Field(default=None, ge=0)
    max_containers: int | None = Field(default=None, ge=1)
    buffer_containers: int | None = Field(default=None, ge=0)
    scaledown_window: float | None = Field(default=None, gt=0)
    """Seconds."""


@dataclass(frozen=True, slots=True)
class RouteSnapshot:
    """Everything a router serves at one moment. Immutable: a change is a new snapshot."""

    routes: tuple[Route, ...] = ()
    revisions: dict[RevisionId, Revision] = field(default_factory=dict)
    """Of the versions that are served; some have no route, only a schedule."""
    tokens: tuple[Token, ...] = ()
    overrides: dict[RevisionId, ScalingOverride] = field(default_factory=dict)
    deployed_at: dict[RevisionId, float] = field(default_factory=dict)
    """Unix time at which the revision's App version was deployed."""
    serials: dict[tuple[str, str], int] = field(default_factory=dict)
    """(environment, App) → `AppRecord.serial` this snapshot was made of."""
    index: int = 0
    """Rises with every change."""
