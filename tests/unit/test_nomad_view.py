"""From what a real Nomad said to snapshots of replicas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from modalnomad.hashicorp.nomad.api import Listing
from modalnomad.hashicorp.nomad.events import Event
from modalnomad.hashicorp.nomad.view import View, blocked, with_registrations
from modalnomad.hashicorp.nomad.world import World
from modalnomad.model.replica import Failure, Replica, ReplicaState, TcpAddress
from tests.support.nomad_recorded import NAMESPACE, key, parent, recorded, world_of

FAILED, GONE, STARTING = ReplicaState.FAILED, ReplicaState.GONE, ReplicaState.STARTING
WALL = 1_795_342_520.0
"""Unix time of the recording's end."""


def placed(events: list[Event]) -> list[Event]:
    """Up to the event that shows the port."""
    at = next(n for n, event in enumerate(events) if (event.topic, event.kind) == ("Allocation", "PlanResult"))
    return events[: at + 1]


def changed(event: Event, by: int = 1, **fields: Any) -> Event:
    """A later word about the same object."""
    index = event.index + by
    return replace(event, index=index, object={**event.object, **fields, "ModifyIndex": index})


def only(replicas: tuple[Replica, ...]) -> Replica:
    (found,) = replicas
    return found


def test_a_child_is_starting_with_its_address_before_nomad_calls_it_running() -> None:
    events = placed(recorded("ok"))

    before = only(View().look(world_of(events[:1]), 0, WALL))
    after = only(View().look(world_of(events), 0, WALL))

    assert (before.key, before.state, before.address) == (key("ok"), STARTING, None)
    assert after.state is STARTING
    assert isinstance(after.address, TcpAddress)
    assert after.address.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "state", "code", "said"),
    [
        ("exit", FAILED, "start_failed", "the program failed while it was starting"),
        ("ok", GONE, None, None),
        ("kill", GONE, None, None),
        ("stop", GONE, None, None),
        ("missing", FAILED, "start_failed", "e-node has no program /no/such/bin (the setting nomad.python)"),
        ("art", FAILED, "start_failed", "could not fetch its code"),
        ("mem", FAILED, "no_capacity", "no node has enough left of what it asks for: memory"),
        ("con", FAILED, "unplaceable", "no node meets ${attr.kernel.name} = plan9"),
        ("gpu", FAILED, "unplaceable", "no node has the GPU it asks for"),
        ("pool", FAILED, "unplaceable", "none in node pool gpu is ready to take work"),
        ("docker", FAILED, "unplaceable", "no node has the driver it needs"),
        ("vault", FAILED, "start_failed", "e-node could not read the secret db: it is not there, or"),
        ("tmpl", FAILED, "start_failed", "its secrets could not be read"),
    ],
)
def test_ends_are_told_in_words(name: str, state: ReplicaState, code: str | None, said: str | None) -> None:
    view, world = View(), world_of(recorded(name))
    view.look(world, 0, WALL)
    for allocation in view.wanted:
        view.tell(allocation.id, "the last line")
    found = only(view.look(world, 0, WALL))

    assert found.state is state
    assert found.address is None
    if found.failure is None:
        assert (code, said) == (None, None)
    else:
        assert found.failure.code == code
        assert said is not None
        assert said in found.failure.reason
        assert (found.failure.exit_code, found.failure.detail) == (
            (70, "the last line") if name == "exit" else (None, "")
        )


def test_the_last_lines_are_waited_for_a_second_and_no_longer() -> None:
    view, world = View(), world_of(recorded("exit"))

    waiting = only(view.look(world, 100.0, WALL))
    due, wanted = view.due, list(view.wanted)
    still = only(view.look(world, 100.9, WALL))
    asked_twice = bool(view.wanted)
    given_up = only(view.look(world, 101.0, WALL))

    assert (waiting.state, still.state, due, len(wanted)) == (STARTING, STARTING, 101.0, 1)
    assert not asked_twice
    assert given_up.failure is not None
    assert (given_up.failure.exit_code, given_up.failure.detail) == (70, "")


def test_who_was_told_to_kill_it_calls_it_gone() -> None:
    view = View()
    view.killed.add(key("exit"))

    assert only(view.look(world_of(recorded("exit")), 0, WALL)).state is GONE


def test_an_ended_one_stays_a_while_and_its_epoch_as_long_as_nomad_lists_it() -> None:
    view, world = View(ended_kept=75), world_of(recorded("ok"), asleep="ok")
    bare = world_of(recorded("ok"))

    assert only(view.look(world, 0, WALL)).state is GONE
    assert view.due is not None
    assert 60 < view.due <= 75
    assert only(view.look(world, 80, WALL)).key == key("ok")
    assert view.due is None

    other = View(ended_kept=75)
    other.look(bare, 0, WALL)
    assert other.look(bare, 80, WALL) == (), "its revision is served no more"


def test_one_that_ended_long_before_anybody_looked_is_not_news() -> None:
    view = View(ended_kept=75)

    assert view.look(world_of(recorded("exit")), 0, WALL + 1000) == ()
    assert not view.wanted, "and nobody asks for its last lines"


def test_what_was_collected_is_not_listed_and_does_not_come_back() -> None:
    view = View(ended_kept=75)
    world = world_of([*recorded("exit"), *recorded("collected")], asleep="exit")
    for event in recorded("exit"):  # the stream repeats itself after a reconnect
        world.hear(event)

    assert view.look(world, 0, WALL) == ()


def test_a_live_one_that_vanishes_is_gone() -> None:
    view = View()
    world = world_of(placed(recorded("ok")))
    view.look(world, 0, WALL)
    job = world.child(key("ok"))
    assert job is not None

    world.forget_job(job, 99)

    assert only(view.look(world, 1, WALL)).state is GONE
    assert view.look(world, 77, WALL) == ()


def test_a_child_of_somebody_who_pressed_dispatch_is_nobodys() -> None:
    for meta in ({}, {"number": "0", "epoch": "1", "pool": "other", "revision": "rev-x.ok"}):
        events = [changed(event, 0, Meta=meta) if event.topic == "Job" else event for event in recorded("ok")]

        assert View().look(world_of(events), 0, WALL) == ()


def test_a_draining_machines_replicas_are_leaving_until_they_are_gone() -> None:
    view, world, states = View(), World(), []
    for event in recorded("drain"):
        world.hear(event)
        states += [(r.state, r.leaving) for r in view.look(world, 0, WALL)]

    seen = list(dict.fromkeys(states))
    assert seen == [
        (STARTING, ""),
        (STARTING, "its machine e-node is being drained"),
        (STARTING, "Nomad ends it"),
    ]


@pytest.mark.parametrize("how", ["node down", "node disconnected", "allocation lost", "allocation unknown"])
def test_a_lost_machines_replicas_have_ended_at_once(how: str) -> None:
    events = placed(recorded("ok"))
    node = next(event for event in recorded("drain") if event.topic == "Node")
    node = replace(node, index=60, object={**node.object, "ModifyIndex": 60})
    what, status = how.split()
    if what == "node":
        events.append(changed(node, Status=status))
    else:
        events.append(changed(events[-1], ClientStatus=status))

    found = only(View().look(world_of([node, *events]), 0, WALL))

    assert found.state is FAILED
    assert found.failure is not None
    assert found.failure.code == "replica_gone"
    assert "e-node is lost" in found.failure.reason


def test_a_replacement_of_a_lost_one_is_starting_under_the_same_key() -> None:
    events = placed(recorded("ok"))
    lost = changed(events[-1], ClientStatus="lost")
    again = changed(lost, ID="another", ClientStatus="pending", CreateIndex=lost.index + 1)
    view = View()
    world = world_of([*events, lost])
    view.look(world, 0, WALL)

    world.hear(again)

    assert only(view.look(world, 1, WALL)).state is STARTING


def test_a_child_without_a_place_blocks_its_number_and_starts_when_it_gets_one() -> None:
    view, world = View(), world_of(recorded("mem"))
    view.look(world, 0, WALL)
    full = blocked(world, key("mem", epoch=2))
    other = blocked(world, key("mem", number=1, epoch=1))
    itself = blocked(world, key("mem"))
    placing = placed(recorded("ok"))[-1]
    job = world.child(key("mem"))
    assert job is not None

    world.hear(changed(placing, 50, JobID=job.id))

    assert full is not None
    assert full.code == "no_capacity"
    assert (other, itself) == (None, None)
    assert only(view.look(world, 200, WALL)).state is STARTING
    assert blocked(world, key("mem", epoch=2)) is None


def test_who_asked_for_a_gpu_blocks_its_number_until_a_node_with_one_changes() -> None:
    """Nomad would not look at it again by itself. Each child more would wait, too, and nobody can cancel it: nodes
    without GPUs come and go, and those whose GPUs are ill have none."""
    world = world_of(recorded("gpu"))
    before = blocked(world, key("gpu", epoch=2))
    job = world.child(key("gpu"))
    assert job is not None
    last = max(each.index for each in world.evaluations(job))

    def after(index: int, **devices: Any) -> Failure | None:
        """What blocks once a node has these."""
        had = {"Devices": [devices]} if devices else {}
        world.take_node({"ID": "n", "Status": "ready", "ModifyIndex": index, "NodeResources": had}, index)
        return blocked(world, key("gpu", epoch=2))

    assert before is not None
    assert before.code == "unplaceable"
    assert after(last, Type="gpu", Instances=[{"Healthy": True}]) == before
    assert after(last + 1) == before
    assert after(last + 2, Type="fpga", Instances=[{"Healthy": True}]) == before
    assert after(last + 3, Type="gpu", Instances=[{"Healthy": False}]) == before
    assert after(last + 4, Type="gpu", Instances=[{"Healthy": False}, {"Healthy": True}]) is None


def test_what_nomad_never_looks_at_is_given_up() -> None:
    view, world = View(), world_of(recorded("ok")[:1])

    assert only(view.look(world, 0, WALL)).state is STARTING
    assert view.due == 2.0
    unsure = only(view.look(world, 2, WALL))
    (doubted,) = view.doubted
    still = only(view.look(world, 3, WALL))
    asked_twice = bool(view.doubted)
    view.read(doubted.name, done=True)
    given_up = only(view.look(world, 4, WALL))
    for event in placed(recorded("ok")):
        world.hear(event)

    assert (unsure.state, still.state, asked_twice) == (STARTING, STARTING, False)
    assert given_up.failure is not None
    assert given_up.failure.reason == "Nomad took the dispatch and did nothing about it"
    assert only(view.look(world, 5, WALL)).state is STARTING


def test_what_cannot_be_asked_is_asked_again_and_not_given_up() -> None:
    view, world = View(), world_of(recorded("ok")[:1])
    view.look(world, 0, WALL)
    view.look(world, 2, WALL)
    (doubted,) = view.doubted

    view.read(doubted.name, done=False)

    assert only(view.look(world, 3, WALL)).state is STARTING
    assert view.doubted == [doubted]


def test_secrets_that_do_not_come_fail_the_start_which_may_still_happen() -> None:
    view = View(secrets_limit=10)
    events = recorded("vault")
    events[0] = changed(events[0], 0, Meta={**events[0].object["Meta"], "secrets": "db=1"})
    events = [event for event in events if event.topic != "Job" or event is events[0]]
    setup = next(n for n, event in enumerate(events) if event.kind == "AllocationUpdated")
    world = world_of(events[: setup + 1])
    view.look(world, 5, WALL)
    due = view.due
    view.look(world, 15, WALL)
    for doubted in view.doubted:
        view.read(doubted.name, done=True)
    slow = only(view.look(world, 15, WALL))

    world.hear(changed(events[setup], ClientStatus="running"))
    at_last = only(view.look(world, 16, WALL))

    assert due == 15
    assert slow.failure is not None
    assert slow.failure.reason == "e-node has waited for its secrets for 10 s"
    assert at_last.state is STARTING


def test_a_slow_machine_is_no_failure_of_secrets_that_nobody_asked_for() -> None:
    view, events = View(secrets_limit=10), recorded("vault")
    setup = next(n for n, event in enumerate(events) if event.kind == "AllocationUpdated")
    world = world_of(events[: setup + 1])
    view.look(world, 5, WALL)

    assert only(view.look(world, 500, WALL)).state is STARTING
    assert (view.doubted, view.due) == ([], None)


def test_of_two_children_of_one_key_only_the_first_is_shown() -> None:
    events = placed(recorded("ok"))
    jobs = {"ID": "x.ok/dispatch-second", "CreateIndex": 100}
    second = [
        changed(event, 50, **(jobs if event.topic == "Job" else {"JobID": jobs["ID"], "ID": f"second {event.topic}"}))
        for event in events
    ]
    first = [changed(event, 0, CreateIndex=44) if event.topic == "Job" else event for event in events]
    address = only(View().look(world_of(first), 0, WALL)).address

    for told in ([*first, *second], [*second, *first]):
        view, world = View(), World()
        for event in told:
            world.hear(event)
        assert only(view.look(world, 0, WALL)).address == address
        assert view.twins == {key("ok")}
        assert [job.id for job in world.twins(key("ok"))][1] == "x.ok/dispatch-second"


def test_a_dead_job_whose_allocation_was_collected_is_no_start() -> None:
    job = replace(recorded("ok")[0], object={**recorded("ok")[0].object, "Status": "dead"})

    assert only(View().look(world_of([job]), 0, WALL)).state is GONE


def test_refused_starts_and_reasons_to_leave_are_shown() -> None:
    view, world = View(), world_of(placed(recorded("ok")))
    refused = Replica(key("ok", epoch=2), FAILED)
    view.refuse(refused, 0)
    view.leaving = {key("ok"): "newer secret"}

    found = {replica.key: replica for replica in view.look(world, 1, WALL)}

    assert found[refused.key] == refused
    assert found[key("ok")].leaving == "newer secret"
    assert [replica.key for replica in view.look(world, 76, WALL)] == [key("ok")]


def test_a_refused_start_that_was_done_after_all_is_what_nomad_says() -> None:
    view = View()
    view.refuse(Replica(key("ok"), FAILED), 0)

    assert only(view.look(world_of(placed(recorded("ok"))), 1, WALL)).state is STARTING


def test_an_ended_one_is_shown_again_to_who_asks_for_it() -> None:
    view, world = View(), world_of(recorded("ok"), asleep="ok")
    view.look(world, 0, WALL)
    view.look(world, 100, WALL)

    view.recall(key("ok"), 100)
    again = only(view.look(world, 100, WALL))

    assert (again.key, again.state) == (key("ok"), GONE)
    assert view.due == 175


def test_consul_adds_what_nomad_cannot_tell_and_takes_nothing_away() -> None:
    known = View().look(world_of(placed(recorded("ok"))), 0, WALL)
    address = TcpAddress("10.0.0.1", 20_000)

    found = with_registrations(known, {key("kill"): address, key("ok"): TcpAddress("10.0.0.2", 1)})

    assert found == (*known, Replica(key("kill"), STARTING, address))


# --- lists ---------------------------------------------------------------------------------------------------------


def listing(world: World, index: int, *, without: Callable[[dict[str, Any]], bool] = lambda shape: False) -> Listing:
    shapes: list[dict[str, Any]] = [parent("ok"), *(dict(e.object) for e in recorded("ok")[:1])]
    return Listing(tuple(shape for shape in shapes if not without(shape)), index)


def test_what_a_list_lacks_is_missing_only_when_it_is_older_than_the_list() -> None:
    world = world_of(recorded("ok")[:1], asleep="ok")
    empty = Listing((), 43)

    assert world.merge_jobs(NAMESPACE, empty) == [world.parents("rev-x.ok")[0]]
    assert world.merge_jobs("modalnomad-other", Listing((), 99)) == []
    assert len(world.merge_jobs(NAMESPACE, Listing((), 44))) == 2


def test_a_name_that_another_revision_took_is_no_job_of_the_first() -> None:
    world = World()
    world.take_job(parent("ok"), 20)

    world.take_job(parent("ok", Meta={"revision": "rev-other"}, ModifyIndex=30), 30)

    assert world.parents("rev-x.ok") == []
    assert len(world.parents("rev-other")) == 1


def test_nodes_that_are_listed_no_more_are_forgotten() -> None:
    world = world_of([event for event in recorded("drain") if event.topic == "Node"])
    known = len(list(world.nodes()))
    world.merge_nodes(Listing((), 5))
    before = len(list(world.nodes()))
    world.merge_nodes(Listing((), 500))

    assert (known, before, len(list(world.nodes()))) == (1, 1, 0)
