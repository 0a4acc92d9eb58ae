"""Host name → route: an immutable table, swapped whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from modalnomad.model.revision import Revision
from modalnomad.model.routes import Route, RouteSnapshot
from modalnomad.router.replies import Reply
from modalnomad.router.telemetry import Meter

logger = logging.getLogger("modalnomad.router.table")


@dataclass(frozen=True, slots=True)
class Match:
    """What a request's host name leads to."""

    route: Route
    revision: Revision
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)
    """Where its requests are counted."""


class RouteTable:
    """All hosts of one snapshot. Never changes: a new snapshot makes a new table."""

    __slots__ = ("_matches", "index")

    def __init__(self, matches: Mapping[str, Match], index: int = 0) -> None:
        self._matches = dict(matches)
        self.index = index

    @classmethod
    def build(cls, snapshot: RouteSnapshot) -> Self:
        """A bad entry is left out and logged, the others stay: a route without its revision, or a host that an
        earlier route already has."""
        matches: dict[str, Match] = {}
        for route in snapshot.routes:
            revision = snapshot.revisions.get(route.revision)
            if revision is None:
                logger.error("route %s names revision %s, which is not known: left out", route.name, route.revision)
                continue
            match = Match(route, revision)
            for host in route.hosts:
                taken = matches.setdefault(host.lower().rstrip("."), match)
                if taken is not match:
                    logger.error("%s and %s both want %s: the first keeps it", taken.route.name, route.name, host)
        return cls(matches, snapshot.index)

    def measured(self, meter: Callable[[Match], Meter]) -> Self:
        """The same table, its requests counted by what `meter` returns for each route."""
        found = {id(match): replace(match, meter=meter(match)) for match in self.matches()}
        return type(self)({host: found[id(match)] for host, match in self._matches.items()}, self.index)

    def match(self, host: str) -> Match:
        """`host` in lower case, without port or trailing dot. Raises Reply 404."""
        found = self._matches.get(host)
        if found is None:
            raise Reply(404, "unknown_endpoint", "No endpoint has this host name.")
        return found

    def hosts(self) -> tuple[str, ...]:
        """Every host name, in the order of the routes."""
        return tuple(self._matches)

    def matches(self) -> tuple[Match, ...]:
        """Every route once, in order."""
        return tuple({id(match): match for match in self._matches.values()}.values())
