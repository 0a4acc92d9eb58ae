"""From a description to a plan: what is refused, what is named, what makes a new revision."""

from __future__ import annotations

from typing import Any

import pytest

from modalnomad.deploy.call_plan import plan_calls
from modalnomad.deploy.hosts import Naming
from modalnomad.deploy.plan import Plan, check_together, make_plan
from modalnomad.model.errors import ManifestInvalid, UserError
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Description, Endpoint, Function, Manifest, Refusal, Scaling, SecretRef, Source
from modalnomad.model.revision import BuiltImage
from modalnomad.scaling.decide import KEPT

IMAGE = BuiltImage(digest=Digest("i" * 64), python="3.11")
BUNDLE = Digest("b" * 64)


def function(tag: str = "f", line: int = 1, **fields: Any) -> Function:
    endpoint = Endpoint(name=tag, kind="asgi_app", where=f"app.py:{line}")
    return Function(**{"tag": tag, "where": f"app.py:{line}", "endpoints": (endpoint,), **fields})


def description(*functions: Function, name: str | None = "shop", refusals: tuple[Refusal, ...] = ()) -> Description:
    source = Source(mode="script", entry="my_app.py", root="/here", module="my_app")
    return Description(
        contract=1,
        sdk_version="1",
        python="3.11",
        app=Manifest(name=name, source=source, functions=functions),
        refusals=refusals,
    )


def plan(*functions: Function, **fields: Any) -> Plan:
    return make_plan(description(*functions, **fields), Naming(), ephemeral=True)


def ids(made: Plan) -> list[str]:
    tags = [each.tag for each in made.functions]
    return [revision.id for revision in made.revisions(BUNDLE, dict.fromkeys(tags, IMAGE))]


def test_every_problem_is_told_at_once_with_its_place() -> None:
    refusals = (Refusal(code="volume", message="Volumes are not there yet", where="app.py:3"),)
    bad = function(secrets=(SecretRef(name="Bad Name"), SecretRef(name="good", environment="No")))

    with pytest.raises(ManifestInvalid) as caught:
        plan(bad, name="no spaces", refusals=refusals)

    text = caught.value.message
    assert len(caught.value.problems) == 4
    assert "app.py:3: Volumes are not there yet" in text
    assert "'no spaces'" in text
    assert "'Bad Name'" in text
    assert "'No'" in text


def test_more_replicas_than_can_be_kept_are_a_problem_of_the_program_and_a_large_maximum_is_none() -> None:
    plan(function(scaling=Scaling(min_containers=KEPT, buffer_containers=KEPT, max_containers=10**9)))
    for name in ("min_containers", "buffer_containers"):
        asked = description(function(scaling=Scaling.model_validate({name: KEPT + 1}), line=7))
        with pytest.raises(ManifestInvalid, match=f"app.py:7: `f`: {name}={KEPT + 1} is more replicas than can be"):
            make_plan(asked, Naming(), ephemeral=True)
        with pytest.raises(ManifestInvalid, match=f"app.py:7: `f`: {name}={KEPT + 1} is more replicas than can be"):
            plan_calls(asked, {"f"}, "main", name=None, most=4)


def test_an_app_without_a_name_takes_the_file_s_stem_and_says_so() -> None:
    made = plan(function(), name=None)

    assert made.app == "my_app"
    assert any("my_app" in notice.message for notice in made.notices)
    assert made.named[0].label == "my-app-f-dev"


def test_a_given_name_wins() -> None:
    assert make_plan(description(function()), Naming(), ephemeral=True, name="other").app == "other"


@pytest.mark.parametrize("functions", [(), (Function(tag="job"),)])
def test_nothing_to_serve_is_an_error_with_the_way_out(functions: tuple[Function, ...]) -> None:
    with pytest.raises(UserError, match="nothing to serve") as caught:
        plan(*functions)

    assert "fastapi_endpoint" in str(caught.value.hint)


def test_functions_without_endpoints_make_no_revision() -> None:
    made = plan(function(), Function(tag="job"))

    assert len(ids(made)) == 1


def test_a_function_that_only_moved_keeps_its_revision() -> None:
    assert ids(plan(function(line=1))) == ids(plan(function(line=9)))


def test_a_changed_declaration_makes_a_new_revision() -> None:
    assert ids(plan(function())) != ids(plan(function(timeout=7)))


def test_routes_point_at_the_revisions_of_their_functions() -> None:
    made = plan(function("f"), function("g"))
    revisions = made.revisions(BUNDLE, {"f": IMAGE, "g": IMAGE})

    made_version = made.version(revisions, 3)

    assert made_version.number == 3
    assert [route.revision for route in made_version.routes] == [revision.id for revision in revisions]
    assert all(route.ephemeral for route in made_version.routes)


def test_two_programs_may_not_define_one_app() -> None:
    with pytest.raises(ManifestInvalid, match="two programs define the App 'shop'"):
        check_together((plan(function()), plan(function("g"))))


def test_two_programs_may_not_share_a_host() -> None:
    endpoint = Endpoint(name="f", kind="asgi_app", label="same")
    first = plan(function(endpoints=(endpoint,)), name="one")
    second = plan(function(endpoints=(endpoint,)), name="two")

    with pytest.raises(ManifestInvalid, match=r"one/f and two/f would share same-dev\.localhost"):
        check_together((first, second))
