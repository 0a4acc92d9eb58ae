"""What a deploy would change, in words."""

from __future__ import annotations

from typing import Any

import pytest

from modalnomad.deploy.compare import CodeChange, compare
from modalnomad.deploy.hosts import Naming
from modalnomad.deploy.plan import Plan, make_plan
from modalnomad.deploy.versions import stopped
from modalnomad.model.apps import AppRecord
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import (
    Description,
    Endpoint,
    Function,
    Image,
    ImageStep,
    Manifest,
    Mount,
    Resources,
    Scaling,
    Schedule,
    SecretRef,
)
from modalnomad.model.revision import BuiltImage
from modalnomad.model.routes import ScalingOverride
from tests.support.stages import SOURCE, record

NOTHING = CodeChange()


def function(tag: str = "f", **fields: Any) -> Function:
    endpoint = Endpoint(name=tag, kind="asgi_app", **fields.pop("endpoint", {}))
    return Function.model_validate({"tag": tag, "endpoints": (endpoint,), **fields})


def plan(*functions: Function) -> Plan:
    manifest = Manifest(name="shop", source=SOURCE, functions=functions)
    description = Description(contract=1, sdk_version="1", python="3.11", app=manifest)
    return make_plan(description, Naming(), ephemeral=False)


def deployed(*functions: Function) -> AppRecord:
    made = plan(*functions)
    image = BuiltImage(digest=Digest("a" * 64), python="3.11")
    revisions = made.revisions(Digest("b" * 64), {each.tag: image for each in made.functions})
    return record(made.version(revisions, 3))


def said(old: Function, new: Function) -> list[str]:
    return [str(each) for each in compare(plan(new), deployed(old), NOTHING)]


def test_all_is_new_the_first_time() -> None:
    daily = Function(tag="tick", schedule=Schedule(kind="cron", cron="0 9 * * *", timezone="Europe/Berlin"))
    found = compare(plan(function(endpoint={"requires_proxy_auth": True}), daily), None, NOTHING)
    assert [str(each) for each in found] == [
        "+ endpoint f: shop-f.localhost (a token is needed)",
        "+ function f",
        '+ function tick: it runs at "0 9 * * *" (Europe/Berlin)',
    ]


def test_nothing_changes() -> None:
    image = Image(steps=(ImageStep(kind="pip_install", arguments={"packages": ["six"]}, where="a.py:1"),))
    moved = image.model_copy(update={"where": "a.py:9", "steps": (image.steps[0].model_copy(update={"where": "a:9"}),)})
    assert said(function(image=image, where="a.py:3"), function(image=moved, where="a.py:30")) == []


def test_functions_and_endpoints_come_and_go() -> None:
    found = [str(each) for each in compare(plan(function("g")), deployed(function("f")), NOTHING)]
    assert found == [
        "+ endpoint g: shop-g.localhost",
        "- endpoint f: shop-f.localhost is not served any more",
        "+ function g",
        "- function f",
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({}, {"timeout": 60.0}, "timeout 300 s → 60 s"),
        ({}, {"scaling": Scaling(min_containers=1, max_containers=4)}, "min_containers 0 → 1; max_containers none → 4"),
        ({}, {"resources": Resources(memory=(512, 1024))}, "memory none → 512 MiB, 1024 MiB"),
        ({"resources": Resources(gpu=("H100",))}, {"resources": Resources(gpu=("A100", "L4"))}, "gpu H100 → A100, L4"),
        ({}, {"secrets": (SecretRef(name="db"),)}, "secret +db"),
        ({"secrets": (SecretRef(name="a"),)}, {"secrets": (SecretRef(name="b"),)}, "secrets +b -a"),
        ({}, {"secrets": (SecretRef(anonymous="12345678" * 8),)}, "secret +from the program (12345678)"),
        ({}, {"single_use": True}, "single_use no → yes"),
    ],
)
def test_a_function_changes(old: dict[str, Any], new: dict[str, Any], words: str) -> None:
    assert said(function(**old), function(**new)) == [f"~ function f: {words}"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({}, {"requires_proxy_auth": True}, "a token is needed now"),
        ({"requires_proxy_auth": True}, {}, "no token is needed any more: open to everybody"),
        ({}, {"label": "mine"}, "shop-f.localhost → mine.localhost"),
        ({}, {"custom_domains": ("a.example.com",)}, "custom domain +a.example.com"),
        ({}, {"method": "POST"}, "method GET → POST"),
    ],
)
def test_an_endpoint_changes(old: dict[str, Any], new: dict[str, Any], words: str) -> None:
    assert said(function(endpoint=old), function(endpoint=new)) == [f"~ endpoint f: {words}"]


def pip(*packages: str) -> ImageStep:
    return ImageStep(kind="pip_install", arguments={"packages": list(packages)})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (None, Image(), "one of its own now"),
        (Image(), None, "none of its own any more"),
        (Image(python_version="3.11"), Image(python_version="3.12"), "Python 3.11 → 3.12"),
        (Image(steps=(pip("a", "b"),)), Image(steps=(pip("a", "c"),)), "packages +c -b"),
        (
            Image(),
            Image(steps=(ImageStep(kind="env", arguments={"vars": {"TOKEN": "hidden"}}),)),
            "step env changed",
        ),
        (
            Image(steps=(pip("a"), ImageStep(kind="run_commands", arguments={"commands": ["x"]}))),
            Image(steps=(ImageStep(kind="run_commands", arguments={"commands": ["x"]}), pip("a"))),
            "the order of its steps changed",
        ),
        (
            Image(),
            Image(mounts=(Mount(kind="dir", local="/x", remote="/root/x"),)),
            "local files it takes along changed",
        ),
        (Image(), Image(steps=(pip("git+https://me:pass@example.com/x"),)), "package +git+https://***@example.com/x"),
    ],
)
def test_an_image_changes(old: Image | None, new: Image | None, words: str) -> None:
    assert said(function(image=old), function(image=new)) == [f"~ function f: image: {words}"]


def test_another_schedule() -> None:
    often = Function(tag="f", schedule=Schedule(kind="period", period={"hours": 1, "minutes": 30, "days": 0}))
    daily = Function(tag="f", schedule=Schedule(kind="cron", cron="0 9 * * *"))
    assert said(often, daily) == ['~ function f: runs at "0 9 * * *" (UTC) (before: every 1 hour 30 minutes)']


def test_the_code_changed() -> None:
    change = CodeChange.between({"a.py": "1", "b.py": "1", "c.py": "1"}, {"b.py": "2", "c.py": "1", "d.py": "1"})
    (found,) = compare(plan(function()), deployed(function()), change)
    assert str(found) == "~ code: 1 file changed (b.py); 1 file added (d.py); 1 file removed (a.py)"


def test_many_files_are_counted_not_listed() -> None:
    change = CodeChange.between({}, {f"{number}.py": "1" for number in range(9)})
    assert str(change) == "9 files added (0.py, 1.py, 2.py, 3.py, 4.py and 4 more)"


def test_what_only_the_deploy_finds_out() -> None:
    found = compare(plan(function()), deployed(function()), None, {"f": ("requirements.txt",)})
    assert [str(each) for each in found] == [
        "? code: the source of v3 is not in this home any more",
        "? function f: image: written since v3: requirements.txt",
    ]


def test_a_stopped_app_and_scaling_by_hand() -> None:
    before = deployed(function())
    (found,) = compare(plan(function()), stopped(before, 1.0), NOTHING)
    assert str(found) == "~ App: it is stopped since v3 and is served again"
    by_hand = before.model_copy(update={"overrides": {"f": ScalingOverride(min_containers=2, scaledown_window=0.5)}})
    (found,) = compare(plan(function()), by_hand, NOTHING)
    assert str(found) == "~ function f: scaling set by hand is taken back (min_containers 2, scaledown_window 0.5)"
