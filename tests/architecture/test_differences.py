"""The SDK against the vendor's package: every difference has its reason, and docs/differences.md lists them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support import differences
from tests.support.misuse import PRELUDE, ROWS
from tests.support.repository import ROOT

TRY_PROGRAMS = """
import json, sys, types, warnings
warnings.simplefilter("ignore")
said = {}
for name, program in json.load(sys.stdin).items():
    module = sys.modules["wrong"] = types.ModuleType("wrong")
    module.__file__ = "wrong.py"
    try:
        exec(compile(program, "wrong.py", "exec"), module.__dict__)
        said[name] = []
    except BaseException as error:
        said[name] = [base.__name__ for base in type(error).__mro__]
print(json.dumps(said))
"""


def test_the_page_is_what_scripts_differences_writes() -> None:
    assert differences.PAGE.read_text("utf-8") == differences.page(), "run scripts/differences"


def test_a_difference_without_a_reason_is_noticed() -> None:
    ours = differences.surface("modalnomad_sdk")
    assert list(differences.compare(ours, ours)) == [
        difference for difference in differences.compare(ours, ours) if difference.what == "raises UnimplementedError"
    ]
    changed: Any = copy.deepcopy(ours)
    del changed["names"]["wsgi_app"]
    changed["members"]["App"]["function"]["parameters"][0][2] = "5"
    changed["members"]["App"]["cls"]["parameters"].pop()
    changed["errors"].pop("InvalidError")

    found = {difference.subject for difference in differences.compare(ours, changed)}

    assert {
        "modal.wsgi_app",
        "modal.App.function(image)",
        "modal.App.cls(allow_concurrent_inputs)",
        "modal.exception.InvalidError",
    } <= found


def test_the_vendors_package_raises_what_the_misuse_table_says(tmp_path: Any) -> None:
    programs = {row.name: PRELUDE + row.program for row in ROWS}
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "MODAL_CONFIG_PATH": str(tmp_path / "none.toml")}
    # A server address that refuses: what would ask the vendor's servers fails at once, without leaving this machine.
    environment["MODAL_SERVER_URL"] = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-c", TRY_PROGRAMS],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    raised = json.loads(done.stdout.splitlines()[-1])

    for row in ROWS:
        wanted = row.error if row.vendor is None else row.vendor
        if wanted:
            assert wanted in raised[row.name], row.name
        else:
            assert raised[row.name] == [], row.name


@pytest.mark.parametrize("name", ["sdk/differences.toml", "scripts/differences"])
def test_the_sources_of_the_page_are_there(name: str) -> None:
    assert (ROOT / name).is_file()
