"""What is known of Nomad does not depend on how it was told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modalnomad.hashicorp.nomad.api import Listing
from modalnomad.hashicorp.nomad.events import Event
from modalnomad.hashicorp.nomad.view import View
from modalnomad.hashicorp.nomad.world import World
from modalnomad.model.replica import Replica
from tests.support.nomad_recorded import NAMESPACE, names, recorded

WALL = 1_795_342_520.0
STORIES = sorted(set(names()) - {"collected", "drain"})


def seen(world: World) -> list[Replica]:
    """Without last lines, which nobody has."""
    view = View()
    view.look(world, 0, WALL)
    return list(view.look(world, 2, WALL))


def state_at(events: list[Event], index: int) -> tuple[Listing, list[Event]]:
    """Jobs as a list would show them at an index, and all else that was told by then."""
    jobs = {event.key: event.object for event in events if event.topic == "Job" and event.index <= index}
    rest = [event for event in events if event.topic != "Job" and event.index <= index]
    return Listing(tuple(jobs.values()), index), rest


@given(st.sampled_from(STORIES), st.data())
def test_events_twice_or_out_of_order_change_nothing(name: str, data: st.DataObject) -> None:
    events = recorded(name)
    usual, shuffled = World(), World()
    for event in events:
        usual.hear(event)
    for event in data.draw(st.permutations([*events, *data.draw(st.lists(st.sampled_from(events)))])):
        shuffled.hear(event)

    assert seen(shuffled) == seen(usual)


@given(st.sampled_from(STORIES), st.data())
def test_a_list_at_any_time_and_the_events_around_it_make_the_same(name: str, data: st.DataObject) -> None:
    """The stream was lost for a while; what it tells of before the list is old, what comes after is news."""
    events = recorded(name)
    usual, world = World(), World()
    for event in events:
        usual.hear(event)
    heard = data.draw(st.integers(0, len(events)))
    listed_at = data.draw(st.sampled_from([event.index for event in events]))
    listing, rest = state_at(events, listed_at)

    for event in events[:heard]:
        world.hear(event)
    for job in world.merge_jobs(NAMESPACE, listing):
        world.forget_job(job, listing.index)
    for event in rest:
        world.hear(event)
    for event in events:
        if event.index > listed_at or data.draw(st.booleans()):
            world.hear(event)

    assert seen(world) == seen(usual)


@given(st.sampled_from(STORIES), st.data())
def test_what_was_removed_stays_removed(name: str, data: st.DataObject) -> None:
    events = recorded(name)
    world = World()
    for event in events:
        world.hear(event)
    (job,) = list(world.jobs())
    world.forget_job(job, events[-1].index + 1)

    for event in data.draw(st.lists(st.sampled_from(events))):
        world.hear(event)

    assert list(world.jobs()) == []
