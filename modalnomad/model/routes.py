"""What routers serve: host name → endpoint of a revision, and who may come in."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class RouteSnapshot:
    """Everything a router serves at one moment. Immutable: a change is a new snapshot."""

    routes: tuple[Route, ...] = ()
    revisions: dict[RevisionId, Revision] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()
    index: int = 0
    """Rises with every change."""
