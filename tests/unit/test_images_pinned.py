"""The resolver's output as data, and what a definition's name depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk.store import Interpreter, definition_digest

from modalnomad.deploy.image_plan import plan_image
from modalnomad.deploy.resolve import Resolved, Resolver, _pinned
from modalnomad.model.errors import ImageBuildFailed
from modalnomad.model.manifest import Image, ImageStep

PYTHON = Interpreter("/usr/bin/python3", "3.11.2", "cpython", "linux-x86_64-glibc")
TWO = "b==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:aa\na==1 \\\n    --hash=sha256:cc\n"


def no_uv() -> Path:
    raise AssertionError("uv was asked for")


def planned(**arguments: Any) -> Any:
    return plan_image(Image(steps=(ImageStep(kind="pip_install", arguments=arguments),)))


def test_pins_are_sorted_one_a_line() -> None:
    assert _pinned(TWO, []) == {
        "kind": "install",
        "requirements": "a==1 --hash=sha256:cc\nb==2 --hash=sha256:aa --hash=sha256:bb\n",
        "verify": True,
    }


def test_only_the_users_own_hashes_count_where_there_are_some() -> None:
    assert "b==2 --hash=sha256:aa\n" in _pinned(TWO, ["B == 2 --hash=sha256:aa"])["requirements"]
    with pytest.raises(ImageBuildFailed, match="no file of b==2 has one of the hashes"):
        _pinned(TWO, ["b==2 --hash=sha256:dd"])


def test_a_repository_has_no_hash_and_a_local_path_is_refused() -> None:
    assert _pinned("x @ git+https://git.test/x@abc\n", [])["verify"] is False
    with pytest.raises(ImageBuildFailed, match="local path"):
        _pinned("x @ file:///home/me/x\n", [])


def test_what_was_resolved_is_found_again_without_uv(tmp_path: Path) -> None:
    resolver = Resolver(tmp_path, no_uv)
    plan = planned(packages=["six"])
    first = Resolved(tmp_path / f"{resolver.key(plan, PYTHON)}.json", ({"kind": "install", "requirements": "x"},))
    resolver.note(first, "d" * 64)
    again = resolver.resolve(plan, PYTHON, None, lambda line: None)  # type: ignore[arg-type]
    assert again.installs == first.installs
    assert again.images == {"d" * 64}

    assert resolver.forget([]) == 0
    assert resolver.forget(["d" * 64]) == 1
    with pytest.raises(AssertionError, match="uv was asked for"):
        resolver.resolve(plan, PYTHON, None, lambda line: None)  # type: ignore[arg-type]


def test_force_build_resolves_again(tmp_path: Path) -> None:
    resolver = Resolver(tmp_path, no_uv)
    plan = planned(packages=["six"], force_build=True)
    resolver.note(Resolved(tmp_path / f"{resolver.key(plan, PYTHON)}.json", ()), "d" * 64)
    with pytest.raises(AssertionError, match="uv was asked for"):
        resolver.resolve(plan, PYTHON, None, lambda line: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"packages": ["rich"]},
        {"packages": ["six"], "pre": True},
        {"packages": ["six"], "index_url": "https://other.test/simple"},
        {"packages": ["six"], "env": {"UV_EXCLUDE_NEWER": "2024-01-01"}},
    ],
)
def test_what_is_remembered_depends_on_everything_asked(tmp_path: Path, other: dict[str, Any]) -> None:
    resolver = Resolver(tmp_path, no_uv)
    assert resolver.key(planned(packages=["six"]), PYTHON) != resolver.key(planned(**other), PYTHON)


def test_what_is_remembered_does_not_depend_on_a_password(tmp_path: Path) -> None:
    resolver = Resolver(tmp_path, no_uv)
    keys = {
        resolver.key(planned(packages=["six"], index_url=f"https://me:{word}@index.test/simple"), PYTHON)
        for word in ("one", "two")
    }
    assert len(keys) == 1


def test_a_definitions_digest_leaves_out_where_packages_come_from() -> None:
    definition = {"schema": 1, "python": "3.11.2", "steps": [], "sources": {"environment": {"UV_INDEX": "https://a"}}}
    assert definition_digest(definition) == definition_digest({**definition, "sources": {}})
    assert definition_digest(definition) != definition_digest({**definition, "python": "3.11.3"})
    assert len(definition_digest(definition)) == 64
