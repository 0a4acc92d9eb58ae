"""What is committed: nothing of one machine, nothing secret, pinned by hash, and one version everywhere."""

from __future__ import annotations

import getpass
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.repository import ROOT, committed, shown

HOSTS = ("py" + "pi.org", "pythonhosted" + ".org", "registry.npm" + "js", "crates" + ".io", "deb.debian" + ".org")
SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=]{40}"),
    re.compile(r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|xox[abp]-[0-9A-Za-z-]{20})"),
    re.compile(r"://[^/\s:@{}'\"<>]+:[^/\s:@{}'\"<>]+@(?!localhost|127\.|example|[\w.-]+\.test\b)"),
)


def texts() -> list[tuple[Path, str]]:
    return [(path, path.read_text("utf-8", errors="replace")) for path in committed() if path.suffix != ".png"]


def test_no_index_address() -> None:
    found = [f"{shown(path)}: {host}" for path, text in texts() for host in HOSTS if host in text]
    found += [shown(p) for p in (ROOT / "requirements").iterdir() if "://" in p.read_text("utf-8")]

    assert not found


def test_no_path_of_this_machine() -> None:
    places = {f"{ROOT}/", f"{ROOT.parent}/", f"/home/{getpass.getuser()}/", "/.pyenv/"} - {"//", "/tmp/"}

    assert not [
        f"{shown(path)}: {place}"
        for path, text in texts()
        for place in places
        if place in text and path.name != Path(__file__).name
    ]


def test_no_secret() -> None:
    assert not [f"{shown(p)}: {s.pattern}" for p, text in texts() for s in SECRETS if s.search(text)]


@pytest.mark.parametrize("name", ["bootstrap", "runtime", "dev"])
def test_every_requirement_is_pinned_by_hash(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]

    assert pins
    assert not [
        pin for pin in pins if not re.match(r"[a-z0-9._-]+(?:\[[a-z0-9,_-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", pin)
    ]


def test_every_dependency_is_among_the_pinned_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {re.split(r"[><=;\[ ]", name)[0] for name in project["dependencies"]} - {"modalnomad-sdk"}
    listed = set((ROOT / "requirements" / "runtime.in").read_text("utf-8").split("\n"))

    assert wanted <= listed


def test_one_version_everywhere() -> None:
    platform = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    sdk = tomllib.loads((ROOT / "sdk" / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    released = re.search(r"^## \[?(\d+\.\d+\.\d+)\]?", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)

    assert sdk == platform
    assert released is not None
    assert released[1] == platform


def test_every_example_is_an_acceptance_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests" / "acceptance").glob("test_*.py"))
    examples = [p for p in (ROOT / "examples").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]

    assert len(examples) >= 8
    assert not [example.name for example in examples if example.name not in tests]


def test_scripts_can_be_run() -> None:
    scripts = [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]

    assert not [shown(script) for script in scripts if script.is_file() and not script.stat().st_mode & 0o100]
