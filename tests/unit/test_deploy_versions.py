"""Which version comes next, which one a rollback means, and when a deploy has nothing to do."""

from __future__ import annotations

import pytest

from modalnomad.deploy.changing import LOCK_NAME_LIMIT, lock_name
from modalnomad.deploy.revising import scaling_in_force, served_revision
from modalnomad.deploy.versions import (
    check_scaling,
    check_tag,
    earlier_version,
    is_unchanged,
    merged,
    next_number,
    overridden,
    stopped,
    taken_hosts,
    with_version,
)
from modalnomad.model.errors import NotFound, UserError
from modalnomad.model.ids import NAME
from modalnomad.model.manifest import Endpoint, Scaling
from modalnomad.model.routes import ScalingOverride
from modalnomad.scaling.decide import KEPT
from tests.support.stages import record, revision, version

F1, F2 = revision("f", "1"), revision("f", "2")
THREE = record(version(3, F1), version(4, F2), version(5, F1), serial=9)


def test_the_first_version() -> None:
    made = with_version(None, version(next_number(None), F1), "main", "shop", keep=3)
    assert (made.version, made.serial) == (1, 1)


def test_the_newest_are_kept_and_numbers_go_on() -> None:
    made = with_version(THREE, version(next_number(THREE), F2), "main", "shop", keep=2)
    assert [kept.number for kept in made.versions] == [5, 6]
    assert made.serial == 10


def test_a_new_version_ends_overrides_and_brings_a_stopped_app_back() -> None:
    before = THREE.model_copy(update={"overrides": {"f": ScalingOverride(min_containers=1)}, "stopped_at": 1.0})
    made = with_version(before, version(6, F2), "main", "shop", keep=9)
    assert made.overrides == {}
    assert made.current is not None


@pytest.mark.parametrize(("text", "number"), [("v3", 3), ("4", 4), (None, 4), ("v5", 5)])
def test_the_version_that_is_meant(text: str | None, number: int) -> None:
    assert earlier_version(THREE, text).number == number


def test_of_a_stopped_app_the_last_one_is_meant() -> None:
    assert earlier_version(stopped(THREE, 1.0), None).number == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v2", "v2 of App shop is not kept any more: v3, v4 and v5 are kept"),
        ("6", "v6 of App shop does not exist: v3, v4 and v5 are kept"),
        ("last", "'last' is no version"),
        ("v0", "'v0' is no version"),
        ("-1", "'-1' is no version"),
        ("v٣", "is no version"),
    ],
)
def test_no_such_version_is_told_with_those_there_are(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        earlier_version(THREE, text)
    assert says in caught.value.message
    assert caught.value.hint


def test_nothing_before_the_only_version() -> None:
    with pytest.raises(NotFound, match="no version before v1: only v1 is kept"):
        earlier_version(record(version(1, F1)), None)


def test_the_version_before_was_pruned() -> None:
    with pytest.raises(NotFound, match="no version before v7: only v7 is kept"):
        earlier_version(record(version(7, F1)), None)


def test_the_same_again_changes_nothing() -> None:
    assert is_unchanged(THREE, version(6, F1), tag=None)


@pytest.mark.parametrize(
    "before",
    [
        None,
        record(version(1, F2)),
        record(version(1, F1, revision("g"))),
        stopped(THREE, 1.0),
        THREE.model_copy(update={"overrides": {"f": ScalingOverride(max_containers=2)}}),
    ],
    ids=["first", "code", "function", "stopped", "overrides"],
)
def test_what_is_a_change(before: object) -> None:
    assert not is_unchanged(before, version(6, F1), tag=None)  # type: ignore[arg-type]


def test_another_host_is_a_change() -> None:
    moved = version(2, F1).routes[0].model_copy(update={"hosts": ("elsewhere.localhost",)})
    assert not is_unchanged(THREE, version(6, F1).model_copy(update={"routes": (moved,)}), tag=None)


@pytest.mark.parametrize(("tag", "unchanged"), [(None, True), ("a", True), ("b", False)])
def test_only_a_tag_that_is_given_and_another_one_is_a_change(tag: str | None, unchanged: bool) -> None:
    assert is_unchanged(record(version(1, F1, tag="a")), version(2, F1), tag=tag) is unchanged


@pytest.mark.parametrize("tag", ["", "a b", "x" * 51, "ü"])
def test_bad_tags(tag: str) -> None:
    with pytest.raises(UserError, match="--tag"):
        check_tag(tag)


def test_stopping_keeps_all_and_twice_is_an_error() -> None:
    made = stopped(THREE, 5.0)
    assert (made.current, made.serial, len(made.versions)) == (None, 10, 3)
    with pytest.raises(UserError, match="stopped already") as caught:
        stopped(made, 6.0)
    assert "app rollback shop v5" in str(caught.value.hint)


def test_an_override_is_set_changed_and_taken_back() -> None:
    first = overridden(THREE, "f", merged(ScalingOverride(), ScalingOverride(min_containers=1)))
    second = overridden(first, "f", merged(first.overrides["f"], ScalingOverride(max_containers=4)))
    assert second.overrides == {"f": ScalingOverride(min_containers=1, max_containers=4)}
    assert scaling_in_force(second.revisions[0], second.overrides["f"]) == {
        "min_containers": 1,
        "max_containers": 4,
        "buffer_containers": 0,
        "scaledown_window": 60.0,
    }
    assert overridden(second, "f", ScalingOverride()).overrides == {}
    assert second.serial == THREE.serial + 2


@pytest.mark.parametrize(
    ("declared", "present", "given", "says"),
    [
        (
            {"max_containers": 2},
            {},
            {"min_containers": 3},
            "3 replicas (as given) is more than at most 2 (as the program",
        ),
        ({}, {"max_containers": 1}, {"min_containers": 5}, "at most 1 (as set by hand before)"),
        ({"min_containers": 4}, {}, {"max_containers": 3}, "4 replicas (as the program says) is more than at most 3"),
    ],
)
def test_a_minimum_above_the_maximum_is_refused(
    declared: dict[str, int], present: dict[str, int], given: dict[str, int], says: str
) -> None:
    function = revision("f", scaling=Scaling.model_validate(declared)).function
    asked = ScalingOverride.model_validate(given)
    with pytest.raises(UserError) as caught:
        check_scaling(function, merged(ScalingOverride.model_validate(present), asked), given=asked)
    assert says in caught.value.message


@pytest.mark.parametrize("name", ["min_containers", "buffer_containers"])
def test_more_replicas_than_can_be_kept_are_refused(name: str) -> None:
    program = revision("f", scaling=Scaling.model_validate({name: KEPT + 1})).function
    most, above = (ScalingOverride.model_validate({name: count}) for count in (KEPT, KEPT + 1))
    check_scaling(program, most, given=most)
    with pytest.raises(UserError, match=f"f: {name}={KEPT + 1} is more replicas than can be kept: {KEPT} at most"):
        check_scaling(program, above, given=above)
    # What an older version of the platform took can be taken back, and does not stand in the way of the rest.
    check_scaling(program, ScalingOverride(), given=ScalingOverride())
    other = ScalingOverride(scaledown_window=30.0)
    check_scaling(program, merged(above, other), given=other)


def test_a_function_is_named_by_its_tag_or_an_endpoint() -> None:
    server = revision("Server", endpoints=(Endpoint(name="Server.files", kind="asgi_app"),))
    app = record(version(1, server))
    assert served_revision(app, "Server") == served_revision(app, "Server.files") == server
    with pytest.raises(NotFound, match=r"no Function x \(it has: Server\)"):
        served_revision(app, "x")
    with pytest.raises(UserError, match="is stopped"):
        served_revision(stopped(app, 1.0), "Server")


def test_a_host_of_another_app_is_told_with_both() -> None:
    endpoint = Endpoint(name="g", kind="asgi_app", where="other.py:7")
    wanted = [(endpoint, ("shop-f.localhost", "free.localhost"))]
    (problem,) = taken_hosts("other", "main", wanted, [THREE])
    assert problem.path == "other.py:7"
    assert "other/g would take shop-f.localhost, which shop/f in environment main has" in problem.message
    assert problem.message.endswith("modalnomad app stop shop")
    (elsewhere,) = taken_hosts("other", "staging", wanted, [THREE])
    assert elsewhere.message.endswith("modalnomad app stop shop --env main")
    assert taken_hosts("shop", "main", wanted, [THREE]) == []
    assert taken_hosts("other", "main", wanted, [stopped(THREE, 1.0)]) == []


def test_names_of_locks_are_names_and_differ() -> None:
    long = [lock_name("a" * 63 + end, "e" * 63) for end in "xy"]
    assert len({*long, lock_name("shop", "main")}) == 3
    assert all(NAME.fullmatch(name) and len(name) <= LOCK_NAME_LIMIT for name in long)
