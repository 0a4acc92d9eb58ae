"""What only the engine of a cluster does: several of it, lost streams, repeated dispatches, lost machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk import contract

from modalnomad.hashicorp.nomad import dispatching, engine, events
from modalnomad.hashicorp.nomad.engine import NomadEngine
from modalnomad.model.errors import BackendRefused, BackendUnreachable, NotFound, SecretMissing
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Resources
from modalnomad.model.replica import Address, LogLine, PoolKey, Replica, ReplicaKey, ReplicaState, TcpAddress
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.render.cluster import META_KEY
from tests.support.cluster_servers import Place, fake_place
from tests.support.engines import HELLO, PATIENCE, Harness, eventually, program, within
from tests.support.fakes.faults import DISPATCH, Faults
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.proxy import FaultyProxy
from tests.support.nomad_calls import Calls
from tests.support.nomad_engine import nomad_engine
from tests.support.openbao import OpenBao

FAILED, GONE, STARTING = ReplicaState.FAILED, ReplicaState.GONE, ReplicaState.STARTING
LARGE = Resources(memory=(3000, None))
"""Two of it fit on the node, three do not."""


@dataclass
class Lab:
    """A fake Nomad behind a proxy that spoils it."""

    place: Place
    home: Path
    proxy: FaultyProxy
    faults: Faults
    calls: Calls

    @property
    def nomad(self) -> FakeNomad:
        assert self.place.fake is not None
        return self.place.fake

    @asynccontextmanager
    async def engine(self, **options: Any) -> AsyncIterator[Harness]:
        """One that speaks to the proxy."""
        async with nomad_engine(self.place, self.home, **options) as h:
            yield h

    def dispatches(self) -> int:
        """That were asked for."""
        return sum("/dispatch" in request for request in self.proxy.requests)

    def children(self) -> list[dict[str, Any]]:
        """That Nomad made."""
        return [job for job in self.nomad.state.jobs.values() if job.get("ParentID")]


@pytest.fixture
async def lab(openbao: OpenBao, tmp_path: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(fake_place(openbao, tmp_path))
        proxy = await stack.enter_async_context(FaultyProxy(place.nomad))
        assert place.fake is not None
        calls = await stack.enter_async_context(Calls(place.nomad, place.fake.management))
        faults = Faults(nomad=proxy, calls=calls)
        yield Lab(replace(place, nomad=proxy.address), tmp_path / "home", proxy, faults, calls)


def engine_of(h: Harness) -> NomadEngine:
    assert isinstance(h.engine, NomadEngine)
    return h.engine


def key_of(revision: Revision, number: int = 0, epoch: int = 1) -> ReplicaKey:
    return ReplicaKey(PoolKey(revision.id), number, epoch)


# --- several routers -----------------------------------------------------------------------------------------------


async def test_two_engines_start_one_replica_and_both_see_it(lab: Lab) -> None:
    async with lab.engine() as one, lab.engine() as two:
        revision = await one.revision(HELLO)
        key = key_of(revision)

        await asyncio.gather(one.engine.start(key, "one"), two.engine.start(key, "two"))
        answers = [await h.ask(key) for h in (one, two)]

        assert len(lab.children()) == 1
        assert [answer.status for answer in answers] == [200, 200]
        assert await one.address(key) == await two.address(key)


async def test_of_two_that_nomad_started_for_one_token_the_first_is_meant_and_the_other_ends(lab: Lab) -> None:
    """A real server looks for a token and writes the child without a lock between."""
    lab.nomad.jobs.together = asyncio.Barrier(2)
    async with lab.engine() as one, lab.engine() as two:
        key = key_of(await one.revision(program("import os; return str(os.getpid()).encode()")))
        seen: list[set[Address]] = []

        async def watch(h: Harness) -> None:
            mine: set[Address] = set()
            seen.append(mine)
            async for replicas in h.engine.watch():
                mine |= {replica.address for replica in replicas if replica.address is not None}

        watching = [asyncio.ensure_future(watch(h)) for h in (one, two)]
        await asyncio.gather(one.engine.start(key, "one"), two.engine.start(key, "two"))
        lab.nomad.jobs.together = None
        answers = {(await h.ask(key)).text for h in (one, two)}
        assert len(lab.children()) == 2
        await lab.nomad.until(lambda state: len(lab.nomad.running_allocations()) == 1)

        assert [r.state for r in await one.snapshot()] == [r.state for r in await two.snapshot()] == [STARTING]
        assert len(answers) == 1
        assert (await one.ask(key)).text in answers
        assert seen[0] == seen[1]
        assert len(seen[0]) == 1, "nobody was ever told of the other's address"
        for each in watching:
            each.cancel()


async def test_a_late_engine_sees_what_runs_and_what_epochs_were(lab: Lab) -> None:
    async with lab.engine() as one:
        revision = await one.revision(HELLO)
        ended, key = await one.start(revision), await one.start(revision, 1)
        await one.engine.kill(ended)
        async with lab.engine() as two:
            seen = {replica.key: replica.state for replica in await two.snapshot()}

            assert seen == {ended: GONE, key: STARTING}
            assert (await two.ask(key, contract.READY_PATH)).status == 200


async def test_killed_by_one_engine_is_no_failure_to_another(lab: Lab) -> None:
    async with lab.engine() as one, lab.engine() as two:
        key = await one.started(await one.revision(HELLO))

        await one.engine.kill(key)

        assert (await two.until(key, GONE, FAILED)).state is GONE


# --- dispatches that go wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fails", "times out"])
async def test_a_dispatch_that_took_effect_unseen_starts_once(
    lab: Lab, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "times out":
        monkeypatch.setattr(dispatching, "DISPATCH_LIMIT", 1.0)
    async with lab.engine() as h:
        revision = await h.revision(HELLO)
        fault = lab.faults.dispatch_fails_after_effect if how == "fails" else lab.faults.dispatch_times_out_after_effect
        with fault():
            key = await h.start(revision)

            assert (await h.ask(key)).status == 200
            assert lab.dispatches() >= 2
            assert len(lab.children()) == 1


async def test_a_dispatch_that_is_refused_for_good_fails_the_start(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(dispatching, "ELECTION", 0.0)
    async with lab.engine() as h:
        revision = await h.revision(HELLO)
        with lab.faults.dispatch_refused():
            failure = (await h.until(await h.start(revision), FAILED)).failure
        again = await h.start(revision, epoch=2)

        assert failure is not None
        assert failure.code == "start_failed"
        assert "No cluster leader" in failure.reason
        assert failure.away
        assert lab.dispatches() == 4
        assert (await h.ask(again)).status == 200
        assert (await h.replica(key_of(revision))).state is FAILED, "and its epoch is still seen"


async def test_a_dispatch_is_repeated_until_the_servers_have_a_leader(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(dispatching, "ELECTION", PATIENCE)
    async with lab.engine() as h:
        with lab.faults.dispatch_refused(times=20):
            key = await h.started(await h.revision(HELLO))

        assert lab.dispatches() == 21
        assert (await h.ask(key)).status == 200


async def test_a_token_that_may_not_dispatch_is_told_at_once(lab: Lab) -> None:
    async with lab.engine() as h:
        revision = await h.revision(HELLO)
        with lab.faults.nomad_denies(DISPATCH):
            failure = (await h.until(await h.start(revision), FAILED)).failure

        assert failure is not None
        assert "403: Permission denied" in failure.reason
        assert not failure.away
        assert lab.dispatches() == 1
        assert lab.place.token not in repr(failure)


async def test_a_purged_or_stopped_job_is_not_found(lab: Lab) -> None:
    async with lab.engine() as h:
        stopped, purged = await h.revision(HELLO), await h.revision(HELLO + "\n# other")
        for revision, purge in ((stopped, False), (purged, True)):
            (job,) = [j for j in lab.nomad.state.jobs.values() if (j["Meta"] or {}).get("revision") == revision.id]
            path = f"/v1/job/{job['ID']}"
            await lab.calls.call("DELETE", path, namespace=lab.place.namespace, purge=purge)

        with pytest.raises(NotFound, match="was stopped"):
            await h.start(stopped)
        with pytest.raises(NotFound, match="has no job"):
            await h.start(purged)


async def test_secrets_that_cannot_be_asked_fail_the_start_without_a_dispatch(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "SECRETS_LIMIT", 0.1)
    problems: list[Exception | None] = [
        SecretMissing("there is no secret db"),
        BackendUnreachable("Vault at x does not answer"),
        None,
    ]

    async def versions(revision: RevisionId) -> str:
        if (problem := problems.pop(0)) is not None:
            raise problem
        await asyncio.sleep(60)
        return ""

    async with lab.engine(secret_versions=versions) as h:
        revision = await h.revision(HELLO)
        found = [(await h.until(await h.start(revision, epoch=n), FAILED)).failure for n in (1, 2, 3)]

    assert [failure.reason for failure in found if failure is not None] == [
        "its secrets: there is no secret db",
        "its secrets: Vault at x does not answer",
        "its secrets: Vault did not answer within 0.1 s",
    ]
    assert [failure.away for failure in found if failure is not None] == [False, True, True]
    assert lab.dispatches() == 0


async def test_what_a_replica_was_started_with_is_known_and_it_can_be_told_to_leave(lab: Lab) -> None:
    async def versions(revision: RevisionId) -> str:
        return "api=1,db=3"

    async with lab.engine(secret_versions=versions) as h:
        key = await h.started(await h.revision(HELLO))
        watching = engine_of(h)

        assert watching.started_with() == {key: "api=1,db=3"}
        watching.replace({key: "secret db has version 4, it was started with 3"})
        assert (await h.replica(key)).leaving == "secret db has version 4, it was started with 3"
        watching.replace({})
        assert (await h.replica(key)).leaving == ""


@pytest.mark.parametrize(
    ("mark", "said"), [("a1", "earlier platform key"), (None, "does not say with which"), ("b2", "")]
)
async def test_a_replica_whose_ticket_is_or_may_be_of_another_key_is_known(
    lab: Lab, mark: str | None, said: str
) -> None:
    async with lab.engine() as h:
        key = await h.started(await h.revision(HELLO))
        for job in lab.nomad.state.jobs.values():
            job["Meta"] |= {META_KEY: mark if job.get("ParentID") else "b2"}
            if job["Meta"][META_KEY] is None:
                del job["Meta"][META_KEY]
        async with lab.engine() as watching:
            await watching.until(key, STARTING)
            found = engine_of(watching).started_otherwise()

    assert set(found) == ({key} if said else set())
    assert said in found.get(key, "")


# --- Nomad out of reach --------------------------------------------------------------------------------------------


async def test_while_nomad_is_gone_nothing_ends_and_what_ended_is_noticed_after(lab: Lab) -> None:
    async with lab.engine() as h:
        revision = await h.revision(HELLO)
        stays, ends = await h.started(revision), await h.started(revision, 1)
        watching = engine_of(h)
        async with lab.proxy.gone():
            await eventually(lambda: watching.stale_since is not None)
            await h.ask(ends, f"{contract.DRAIN_PATH}?idle_for=0", "POST")
            await lab.nomad.until(lambda state: len(lab.nomad.running_allocations()) == 1)

            assert {replica.state for replica in await h.snapshot()} == {STARTING}
            assert (await h.ask(stays)).status == 200

        assert (await h.until(ends, GONE, FAILED)).state is GONE
        await eventually(lambda: watching.stale_since is None)
        assert (await h.replica(stays)).state is STARTING


async def test_a_start_while_nomad_is_gone_fails_and_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "PAUSES", (0.01,))
    monkeypatch.setattr(dispatching, "ELECTION", 0.0)
    async with lab.engine() as h:
        revision = await h.revision(HELLO)
        await h.started(revision)
        async with lab.proxy.gone():
            failure = (await h.until(await h.start(revision, 1), FAILED)).failure

    assert failure is not None
    assert failure.code == "start_failed"
    assert "Nomad at http://127.0.0.1:" in failure.reason
    assert "does not answer" in failure.reason
    assert failure.away


@dataclass
class Registered:
    key: ReplicaKey
    address: Address


async def test_an_engine_that_finds_no_nomad_takes_what_consul_has(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FIRST_LOOK", 0.5)
    address = TcpAddress("127.0.0.1", 1)
    told = asyncio.Event()

    async def registrations() -> AsyncIterator[list[Registered]]:
        yield [Registered(key, address)]
        told.set()
        await asyncio.Event().wait()

    async with lab.engine() as one:
        revision = await one.revision(HELLO)
        key = key_of(revision, 7)
        async with lab.proxy.gone(), lab.engine(registrations=registrations) as two:
            await within(told.wait())
            stale = engine_of(two).stale_since
            seen = await two.snapshot()

            assert seen == (Replica(key, STARTING, address),)
            assert stale is not None
            await lab.proxy.come_back()
            await eventually(lambda: engine_of(two).stale_since is None)
            assert await two.snapshot() == (), "Nomad knows better"


async def test_a_cut_stream_is_opened_again_and_everything_listed(lab: Lab) -> None:
    async with lab.engine() as one, lab.engine() as two:
        revision = await one.revision(HELLO)

        await eventually(lambda: lab.faults.streams() == 4)
        assert lab.faults.stream_cut() == 4
        key = await one.started(revision)
        await one.engine.kill(key)

        assert (await two.until(key, GONE, FAILED)).state is GONE


async def test_a_stream_that_falls_silent_is_replaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SILENCE", 0.3)
    async with lab.engine() as h:
        revision = await h.revision(HELLO)
        with lab.faults.stream_silent():
            key = await h.start(revision)
            await h.address(key)

        assert (await h.ask(key)).status == 200


async def test_what_a_silent_stream_hides_is_listed_after_a_while(lab: Lab) -> None:
    async with lab.engine() as one:
        revision = await one.revision(HELLO)
        async with lab.engine(relist=0.2) as two:
            with lab.faults.stream_silent():
                key = await one.start(revision)
                await two.address(key)
                await lab.nomad.until(
                    lambda state: any(a["ClientStatus"] == "running" for a in state.allocations.values())
                )
                await lab.calls.put(
                    f"/v1/client/allocation/{lab.nomad.running_allocations()[0]['ID']}/signal",
                    {"Task": "app", "Signal": "SIGKILL"},
                )

                assert (await two.until(key, GONE, FAILED)).state is GONE


async def test_a_stream_that_may_not_be_read_is_told_and_lists_still_serve(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "FIRST_LINE", 0.2)
    with lab.faults.stream_never_opens():
        async with lab.engine() as h:
            revision = await h.revision(HELLO)
            key = await h.start(revision)

            assert (await h.ask(key)).status == 200
            assert engine_of(h).stale_since is None
    assert "stays silent: Nomad hangs, or the token may not read it" in caplog.text


# --- room ----------------------------------------------------------------------------------------------------------


async def test_retiring_takes_back_what_waits_for_a_place(lab: Lab) -> None:
    async with lab.engine() as h:
        revision = await h.revision(HELLO, resources=LARGE)
        for number in (0, 1):
            await h.started(revision, number)
        await h.until(await h.start(revision, 2), FAILED)

        assert await engine_of(h).alive(revision.id) == 3
        await within(h.engine.retire(revision.id))

        assert await engine_of(h).alive(revision.id) == 0
        assert not lab.nomad.running_allocations()


# --- machines ------------------------------------------------------------------------------------------------------


async def test_a_drained_machines_replicas_leave_and_a_lost_ones_have_ended(lab: Lab) -> None:
    (node,) = lab.nomad.state.nodes
    async with lab.engine() as h:
        key = await h.started(await h.revision(HELLO))

        lab.nomad.drain(node)
        await eventually_leaving(h, key)
        await lab.nomad.lose(node)
        failure = (await h.until(key, FAILED, GONE)).failure

        assert failure is not None
        assert failure.code == "replica_gone"


async def test_to_kill_one_on_a_lost_machine_ends_none_that_nomad_started_elsewhere(lab: Lab) -> None:
    """Nobody told of the machine's absence: the next list has the new one at once, and a router sends it requests."""
    (node,) = lab.nomad.state.nodes
    async with lab.engine(relist=0.3) as h:
        key = await h.started(await h.revision(HELLO))
        old = await h.address(key)
        with lab.faults.stream_silent():
            unheard = lab.nomad.faults.refuse("POST /v1/client/allocation/.*/signal", times=1_000)
            killing = asyncio.create_task(h.engine.kill(key))
            await eventually(lambda: unheard.seen)
            with lab.faults.nomad_errors("GET /v1/(jobs|nodes|allocations)"):
                lab.nomad.add_node("two")
                await lab.nomad.lose(node)
                await lab.nomad.until(lambda state: len(state.allocations) == 2)
                lab.nomad.nodes.back(node)
            await eventually_elsewhere(h, key, old)
            unheard.left = 0
            await within(killing)

            await lab.nomad.until(lambda _: len(lab.nomad.running_allocations(["running"])) == 1)
            assert (await h.ask(key)).status == 200


async def eventually_elsewhere(h: Harness, key: ReplicaKey, old: Address) -> None:
    async with asyncio.timeout(PATIENCE), aclosing(h.engine.watch()) as watch:  # type: ignore[type-var]
        async for replicas in watch:
            if any(replica.key == key and replica.address not in {old, None} for replica in replicas):
                return


async def eventually_leaving(h: Harness, key: ReplicaKey) -> None:
    async with asyncio.timeout(PATIENCE), aclosing(h.engine.watch()) as watch:  # type: ignore[type-var]
        async for replicas in watch:
            if any(replica.key == key and "is being drained" in replica.leaving for replica in replicas):
                return


# --- output, environments ------------------------------------------------------------------------------------------


async def test_following_all_logs_takes_in_who_comes_later(lab: Lab) -> None:
    async with lab.engine() as h:
        revision = await h.revision(HELLO.replace("import modal", "import modal\nprint('imported')", 1))
        seen: list[LogLine] = []

        async def follow() -> None:
            async for line in h.engine.logs(None, follow=True):
                seen.append(line)  # noqa: PERF401 - it has no end

        following = asyncio.ensure_future(follow())
        keys = [await h.started(revision, number) for number in (0, 1)]
        await eventually(lambda: sum(line.text == "imported" for line in seen) == 2)
        following.cancel()

    assert {line.replica for line in seen} == set(map(str, keys))


async def test_an_environment_is_made_ahead_on_every_node_or_the_failing_one_is_named(lab: Lab) -> None:
    lab.nomad.add_node("second", attributes={"consul.version": "1.20.0", "vault.version": "2.7.2"})
    told: list[tuple[int, int]] = []
    async with lab.engine() as h:
        revision = await h.revision(HELLO)
        missing = await h.revision(HELLO, image=BuiltImage(digest=Digest("2" * 64), python="3.11"), prepare=False)

        assert await within(engine_of(h).prewarm(revision, lambda *progress: told.append(progress))) == 2
        with pytest.raises(BackendRefused, match="on 2 of 2 nodes") as refused:
            await within(engine_of(h).prewarm(missing))

    assert told[-1] == (2, 2)
    assert "second: " in refused.value.message
    assert not [job for job in lab.nomad.state.jobs.values() if job["Type"] == "sysbatch"], "nothing is left of it"
