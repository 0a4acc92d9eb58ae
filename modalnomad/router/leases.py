"""A lease: one request's place in one replica, from the grant to the last byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from modalnomad.model.replica import Address, PoolKey, ReplicaKey
from modalnomad.router.places import Place
from modalnomad.router.pool import Pool
from modalnomad.router.table import Match


class Lease(Protocol):
    """What whoever forwards a request gets to know of its replica."""

    key: ReplicaKey
    address: Address
    ticket: bytes
    match: Match

    def refused(self) -> None:
        """The runner said Busy: not offered for a moment."""

    def gone(self, *, timed_out: bool = False, hung: bool = False) -> None:
        """Connection refused, reset before any byte of an answer: a strike. `timed_out`: the connect did; `hung`: no
        whole answer within the function's timeout."""


class Keeper(Protocol):
    """The activator, as a lease sees it."""

    def take(self, match: Match, key: PoolKey, avoid: frozenset[ReplicaKey]) -> PlaceLease | None:
        """A free place at once, or None."""

    async def wait(
        self, match: Match, key: PoolKey, avoid: frozenset[ReplicaKey], until: float | None, request_id: bytes
    ) -> PlaceLease:
        """A place once there is one, `until` then at the latest. Raises Reply."""

    def release(self, lease: PlaceLease) -> None:
        """The place is free again."""

    def missed(self, lease: PlaceLease, *, busy: bool = False, timed_out: bool = False, hung: bool = False) -> None:
        """The replica did not take the request."""


@dataclass(slots=True, eq=False)
class PlaceLease:
    """The Lease of a place in a pool."""

    keeper: Keeper
    pool: Pool
    place: Place
    key: ReplicaKey
    address: Address
    ticket: bytes = field(repr=False)
    match: Match
    taken: bool = True
    """The replica took the request, as far as is known."""

    def refused(self) -> None:
        """See Lease."""
        self.keeper.missed(self, busy=True)

    def gone(self, *, timed_out: bool = False, hung: bool = False) -> None:
        """See Lease."""
        self.keeper.missed(self, timed_out=timed_out, hung=hung)


class Leasing:
    """`async with` around the use of a place: taken at once when one is free, always given back."""

    __slots__ = ("_avoid", "_keeper", "_key", "_lease", "_match", "_request_id", "_until")

    def __init__(
        self,
        keeper: Keeper,
        match: Match,
        key: PoolKey,
        avoid: frozenset[ReplicaKey],
        until: float | None,
        request_id: bytes,
    ) -> None:
        self._keeper = keeper
        self._match = match
        self._key = key
        self._avoid = avoid
        self._until = until
        self._request_id = request_id
        self._lease: PlaceLease | None = None

    async def __aenter__(self) -> Lease:
        lease = self._keeper.take(self._match, self._key, self._avoid)
        if lease is None:
            lease = await self._keeper.wait(self._match, self._key, self._avoid, self._until, self._request_id)
        self._lease = lease
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            self._keeper.release(lease)
