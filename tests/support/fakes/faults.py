"""Faults by name, so that a test reads as what happens to a cluster.

faults = Faults(nomad=proxy, calls=calls, consul=consul, vault=bao)
async with faults.nomad_gone():
    ...                                    # requests meanwhile
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import quote

from modalnomad.model.replica import ReplicaKey
from modalnomad.render.cluster import key_of
from tests.support.fakes.consul import FakeConsul, Fault
from tests.support.fakes.consul_state import Store
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.proxy import FaultyProxy, Rule
from tests.support.nomad_calls import Calls
from tests.support.openbao import OpenBao

ALWAYS: Final = float("inf")
STREAM: Final = "GET /v1/event/stream"
DISPATCH: Final = "(PUT|POST) /v1/job/[^/]+/dispatch"
LONG: Final = 10**12
"""Nanoseconds a drain may take."""


class Faults:
    """Only what is given can be spoilt.

    `nomad`: in front of the Nomad that is under test; `calls`: to that Nomad itself, with all rights. `fake`: that
    Nomad, for what cannot be done to a real one. `vault`: to be
    stopped and started it must be `kept`.
    """

    def __init__(
        self,
        *,
        nomad: FaultyProxy | None = None,
        calls: Calls | None = None,
        fake: FakeNomad | None = None,
        consul: FakeConsul | None = None,
        vault: OpenBao | None = None,
    ) -> None:
        self._nomad, self._calls, self._fake = nomad, calls, fake
        self._consul, self._vault = consul, vault

    @property
    def nomad(self) -> FaultyProxy:
        """In front of Nomad: for faults without a name here."""
        assert self._nomad is not None, "these faults were given no Nomad"
        return self._nomad

    @property
    def calls(self) -> Calls:
        """Of Nomad itself."""
        assert self._calls is not None, "these faults were given no calls"
        return self._calls

    @property
    def consul(self) -> FakeConsul:
        """The Consul."""
        assert self._consul is not None, "these faults were given no Consul"
        return self._consul

    @property
    def vault(self) -> OpenBao:
        """The Vault."""
        assert self._vault is not None, "these faults were given no Vault"
        return self._vault

    # --- Nomad's API ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def nomad_gone(self, seconds: float = 0) -> AsyncIterator[None]:
        """Connections are cut and refused within the block, which takes at least so long. Replicas run on."""
        async with self.nomad.gone(), _at_least(seconds):
            yield

    def nomad_hangs(self) -> AbstractContextManager[None]:
        """It takes requests and answers nothing."""
        return self.nomad.hanging()

    def nomad_errors(self, pattern: str = "", text: str = "No cluster leader") -> AbstractContextManager[Rule]:
        """500 for what matches; nothing of it is done."""
        return self.nomad.rule(pattern, text=text)

    def nomad_denies(self, pattern: str = "") -> AbstractContextManager[Rule]:
        """403: as if the token had been revoked."""
        return self.nomad.rule(pattern, status=403, text="Permission denied")

    def stream_cut(self) -> int:
        """Event streams break off, once → how many."""
        return self.nomad.cut(STREAM)

    def streams(self) -> int:
        """Event streams that are under way."""
        return self.nomad.under_way(STREAM)

    def stream_silent(self) -> AbstractContextManager[None]:
        """Event streams stay open and say nothing, not even heartbeats; what happens meanwhile is never told."""
        return self.nomad.silent(STREAM)

    def stream_never_opens(self) -> AbstractContextManager[Rule]:
        """A stream that is asked for is not answered."""
        return self.nomad.rule(STREAM, lose=True)

    def dispatch_refused(self, times: float = ALWAYS, text: str = "No cluster leader") -> AbstractContextManager[Rule]:
        """500, and nothing was started."""
        return self.nomad.rule(DISPATCH, times=times, text=text)

    def dispatch_fails_after_effect(self, times: float = 1) -> AbstractContextManager[Rule]:
        """500, and yet the child was started."""
        return self.nomad.rule(DISPATCH, times=times, after=True, text="rpc error: EOF")

    def dispatch_times_out_after_effect(self, times: float = 1) -> AbstractContextManager[Rule]:
        """No answer, and yet the child was started."""
        return self.nomad.rule(DISPATCH, times=times, after=True, lose=True)

    # --- Nomad's nodes -------------------------------------------------------------------------------------------

    async def allocation_of(self, key: ReplicaKey) -> dict[str, Any]:
        """The stub of the latest of a replica. Raises LookupError."""
        found: list[dict[str, Any]] = await self.calls.get("/v1/allocations", namespace="*")
        for alloc in sorted(found, key=lambda each: -each["CreateIndex"]):
            job = await self.calls.get(f"/v1/job/{quote(alloc['JobID'], safe='')}", namespace=alloc["Namespace"])
            if key_of(job["Meta"] or {}) == key:
                return alloc
        raise LookupError(f"no allocation of {key}")

    async def alloc_lost(self, key: ReplicaKey) -> None:
        """A replica's process is gone and its allocation reported lost; nothing takes its place. Only on a fake."""
        assert self._fake is not None, "these faults were given no fake Nomad"
        await self._fake.lose_allocation((await self.allocation_of(key))["ID"])

    async def node_drained(self, node: str) -> None:
        """Nothing is placed there any more, and what runs there has to go (Nomad's API: nodes, drain)."""
        spec = {"Deadline": LONG, "IgnoreSystemJobs": True}
        await self.calls.put(f"/v1/node/{node}/drain", {"DrainSpec": spec, "MarkEligible": False})

    async def node_back(self, node: str) -> None:
        """Ends a drain."""
        await self.calls.put(f"/v1/node/{node}/drain", {"DrainSpec": None, "MarkEligible": True})

    @asynccontextmanager
    async def placed_late(self) -> AsyncIterator[None]:
        """No node takes anything within the block: what is dispatched waits, and gets its place at the end."""
        nodes = [each["ID"] for each in await self.calls.get("/v1/nodes")]
        await self._eligible(nodes, "ineligible")
        try:
            yield
        finally:
            await self._eligible(nodes, "eligible")

    async def _eligible(self, nodes: list[str], what: str) -> None:
        for node in nodes:
            await self.calls.put(f"/v1/node/{node}/eligibility", {"Eligibility": what})

    # --- Consul --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def consul_gone(self, seconds: float = 0) -> AsyncIterator[None]:
        """As `nomad_gone`; sessions go on expiring."""
        async with self.consul.gone(), _at_least(seconds):
            yield

    def consul_hangs(self) -> AbstractContextManager[None]:
        """It takes requests and answers nothing."""
        return self.consul.hanging()

    def consul_empty(self, path: str = "/v1/") -> AbstractContextManager[None]:
        """200 with an empty list, also for queries that wait now."""
        return self._spoilt(lambda: self.consul.empty(ALWAYS, path=path))

    def consul_errors(self, path: str = "/v1/") -> AbstractContextManager[None]:
        """500, also for queries that wait now."""
        return self._spoilt(lambda: self.consul.fail(ALWAYS, path=path))

    def consul_older_index(self, past: Store, times: float = 1) -> AbstractContextManager[None]:
        """KV answers as it was in the `past` (`consul.snapshot()` of an earlier moment), with that time's index, as
        after a restored snapshot; also to queries that wait now."""
        return self._spoilt(lambda: self.consul.older(past, times))

    @contextmanager
    def _spoilt(self, make: Callable[[], Fault]) -> Iterator[None]:
        fault = make()
        self.consul.store.wake()
        try:
            yield
        finally:
            fault.times = 0

    # --- Vault ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def vault_sealed(self) -> AsyncIterator[None]:
        """503 to everything within the block."""
        await asyncio.to_thread(self.vault.seal)
        try:
            yield
        finally:
            await asyncio.to_thread(self.vault.unseal)

    @contextmanager
    def vault_hangs(self) -> Iterator[None]:
        """It takes connections and answers nothing within the block."""
        self.vault.hang()
        try:
            yield
        finally:
            self.vault.resume()

    @asynccontextmanager
    async def vault_down(self) -> AsyncIterator[None]:
        """Connections are refused within the block."""
        assert self.vault.kept, "what is in memory would be lost"
        await asyncio.to_thread(self.vault.kill)
        try:
            yield
        finally:
            await asyncio.to_thread(self.vault.start)


@asynccontextmanager
async def _at_least(seconds: float) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    yield
    await asyncio.sleep(max(0.0, end - loop.time()))
