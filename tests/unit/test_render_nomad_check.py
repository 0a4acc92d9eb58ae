"""A wrong job is noticed before it is sent: Nomad itself would drop the key, or fail when a task starts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from modalnomad.render.nomad import check_job
from modalnomad.render.nomad_schema import BODY, DRIVERS, TASK, Block, Kind, Many, Texts
from tests.support.rendered import bodies

BODIES = bodies()
VARIED = ("secrets", "gpu_list", "docker_web_server", "prewarm")
"""Together they have every block."""

Place = tuple[Kind, Any, str]


def places(kind: Kind, value: Any, path: str = "") -> Iterator[Place]:
    """Every value of a job with what the schema says of it."""
    yield kind, value, path
    if isinstance(kind, Many):
        for number, each in enumerate(value):
            yield from places(kind.of, each, f"{path}[{number}]")
    if isinstance(kind, Block):
        for name, each in value.items():
            own = DRIVERS[value["Driver"]] if kind is TASK and name == "Config" else kind.keys[name]
            yield from places(own, each, f"{path}.{name}" if path else name)


def refused(body: dict[str, Any], part: str) -> bool:
    """Is it refused, with this in the message?"""
    try:
        check_job(body)
    except ValueError as error:
        return part in str(error)
    return False


@pytest.mark.parametrize("name", BODIES)
def test_what_is_rendered_passes(name: str) -> None:
    check_job(BODIES[name])


def test_these_jobs_have_every_key_of_the_schema() -> None:
    def keys(kind: Kind, path: str = "") -> Iterator[str]:
        if isinstance(kind, Many):
            yield from keys(kind.of, path)
        if isinstance(kind, Block):
            for name, each in kind.keys.items():
                yield f"{path}.{name}"
                yield from keys(each, f"{path}.{name}")

    def used(kind: Kind, value: Any, path: str = "") -> Iterator[str]:
        for found, each, where in places(kind, value, path):
            if isinstance(found, Block):
                clean = "".join(part.partition("]")[2] if "]" in part else part for part in where.split("["))
                yield from (f".{clean}.{name}" if clean else f".{name}" for name in each)

    known = set(keys(BODY))
    seen = {key for body in BODIES.values() for key in used(BODY, body)}

    # A request of the engine's own, and a sort of job that is never rendered.
    assert known - seen == {".EnforceIndex", ".JobModifyIndex", ".Job.ParameterizedJob.MetaRequired"}


@pytest.mark.parametrize("name", VARIED)
def test_a_misspelt_key_is_told_with_its_path(name: str) -> None:
    body = copy.deepcopy(BODIES[name])
    blocks = [(value, path) for kind, value, path in places(BODY, body) if isinstance(kind, Block)]

    assert len(blocks) > 8
    for block, path in blocks:
        for key in list(block):
            value = block.pop(key)
            wrong = key.swapcase()
            block[wrong] = value
            assert refused(body, f"{path}.{wrong} is no key" if path else f"{wrong} is no key"), f"{path}.{wrong}"
            del block[wrong]
            block[key] = value
    check_job(body)


@pytest.mark.parametrize("name", VARIED)
def test_a_missing_key_is_told(name: str) -> None:
    body = copy.deepcopy(BODIES[name])
    blocks = [(kind, value, path) for kind, value, path in places(BODY, body) if isinstance(kind, Block)]

    for kind, block, path in blocks:
        for key in kind.required:
            value = block.pop(key)
            assert refused(body, f"{path}.{key} is missing" if path else f"{key} is missing")
            block[key] = value
    check_job(body)


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("wrong", [None, 1.5, ["x", 1], {"x": {}}], ids=repr)
def test_a_value_of_another_kind_is_told(name: str, wrong: object) -> None:
    body = copy.deepcopy(BODIES[name])
    everywhere = [(value, path) for kind, value, path in places(BODY, body) if isinstance(kind, (Block, Texts))]

    for holder, path in everywhere:
        for key in list(holder):
            value = holder[key]
            holder[key] = wrong
            assert refused(body, key), f"{path}.{key}"
            holder[key] = value
    check_job(body)


def changed(name: str, *path: str | int, to: Any) -> dict[str, Any]:
    body = copy.deepcopy(BODIES[name])
    at: Any = body["Job"]
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = to
    return body


GROUP = ("TaskGroups", 0)
WEB_TASK = (*GROUP, "Tasks", 0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (changed("plain", *GROUP, "Services", 0, "PortLabel", to="web"), "has the port web, which the group has not"),
        (changed("plain", *GROUP, "Services", 0, "Checks", 0, "Interval", to=10), "whole number from 1000000000"),
        (changed("plain", *GROUP, "Services", 0, "Checks", to=[]), "Checks is empty"),
        (
            changed("plain", "ParameterizedJob", "MetaOptional", to=["number", "epoch"]),
            "${NOMAD_META_pool} is in no Meta",
        ),
        (changed("plain", "Type", to="sysbatch"), "ParameterizedJob in a job of type sysbatch"),
        (changed("plain", "UI", "Description", to="x" * 1001), "at most 1000 characters"),
        (changed("plain", *WEB_TASK, "Env", to={"A-B": ""}), "the key 'A-B'"),
        (changed("plain", *WEB_TASK, "Driver", to="exec"), "raw_exec or docker"),
        (changed("plain", *WEB_TASK, "Driver", to="docker"), "Config.image is missing"),
        (changed("plain", *WEB_TASK, "KillTimeout", to="30s"), "KillTimeout is '30s': it must be a whole number"),
        (changed("plain", *WEB_TASK, "KillTimeout", to=True), "KillTimeout is True: it must be a whole number"),
        (changed("docker", *WEB_TASK, "Config", "image", to="shop:latest"), "pinned by its digest"),
        (changed("secrets", *WEB_TASK, "Templates", 1, "DestPath", to="secrets/00-db.json"), "two templates make"),
        (
            changed("web_server", *GROUP, "Networks", 0, "DynamicPorts", to=[{"Label": "http"}] * 2),
            "port http is there 2",
        ),
        (changed("plain", "ID", to="a b"), "a name without blanks"),
        (changed("plain", "TaskGroups", to={}), "TaskGroups is {}: it must be a list"),
    ],
)
def test_what_nomad_would_find_out_when_a_task_starts(body: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"the rendered job is not right") as told:
        check_job(body)

    assert words in str(told.value)


def test_a_template_needs_a_login() -> None:
    body = copy.deepcopy(BODIES["secrets"])
    del body["Job"]["TaskGroups"][0]["Tasks"][0]["Vault"]

    assert refused(body, "has templates and no Vault block")


def test_everything_wrong_is_told_at_once() -> None:
    body = changed("plain", "NodePol", to="x")
    body["Job"]["TaskGroups"][0]["Count"] = 0

    with pytest.raises(ValueError, match=r"Count is 0: .*; Job\.NodePol is no key ") as told:
        check_job(body)
    assert str(told.value).count("; ") == 1


def test_a_body_that_is_no_object() -> None:
    with pytest.raises(ValueError, match=r"the body is \[\]: it must be an object"):
        check_job([])  # type: ignore[arg-type]
