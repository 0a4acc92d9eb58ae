"""Each of Terraform's modules and examples with the real plug-ins, without any server: valid, and planned or applied on
stand-ins as its own tests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.repository import ROOT, shown
from tests.support.terraform import TERRAFORM, plugins_given, run
from tests.support.terraform_cluster import copied

FOLDERS = sorted({path.parent for path in TERRAFORM.rglob("versions.tf") if ".terraform" not in path.parts})
"""Of whatever needs a plug-in."""


def test_none_is_missed() -> None:
    assert len(FOLDERS) >= 7
    assert {path.parent for path in TERRAFORM.glob("*/*/main.tf")} - {*FOLDERS} == {TERRAFORM / "modules" / "names"}


@pytest.mark.parametrize("folder", FOLDERS, ids=shown)
def test_it_is_valid_and_its_own_tests_pass(folder: Path, tmp_path: Path) -> None:
    plugins = plugins_given()
    there = copied(tmp_path / "checkout") / folder.relative_to(ROOT)
    data = tmp_path / "terraform"

    made = run(there, "init", "-no-color", *plugins, data=data)
    assert made.returncode == 0, made.stderr
    valid = run(there, "validate", "-no-color", data=data)
    assert (valid.returncode, valid.stdout) == (0, "Success! The configuration is valid.\n\n"), valid
    if any((folder / "tests").glob("*.tftest.hcl")):
        tested = run(there, "test", "-no-color", data=data)
        assert tested.returncode == 0, tested.stdout + tested.stderr
        assert " 0 passed" not in tested.stdout
        assert "Success! " in tested.stdout
