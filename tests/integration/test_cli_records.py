"""`secret`, `token` and `image` as a user runs them: what goes in never comes out again."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve import run_command

VALUE = "hunter2-" + "x" * 20


def run(home: Path, *arguments: str, stdin: str | None = None, code: int = 0) -> Any:
    done = run_command(*arguments, home=home, stdin=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    assert VALUE not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_secret_is_created_listed_replaced_and_deleted(home: Path) -> None:
    run(home, "secret", "create", "db", f"PASSWORD={VALUE}", "USER=me")
    assert run(home, "secret", "list").stdout.split()[4:6] == ["db", "PASSWORD,"]
    again = run(home, "secret", "create", "db", f"PASSWORD={VALUE}", code=1)
    assert "exists already" in again.stderr
    assert "--force" in again.stderr
    run(home, "secret", "create", "db", f"OTHER={VALUE}", "--force")
    (listed,) = [json.loads(line) for line in run(home, "secret", "list", "--json").stdout.splitlines()]
    assert (listed["name"], listed["keys"], listed["version"]) == ("db", ["OTHER"], 2)
    run(home, "secret", "delete", "db")
    assert "No secrets" in run(home, "secret", "list").stdout
    assert "there is no secret db" in run(home, "secret", "delete", "db", code=1).stderr


def test_values_come_from_standard_input_and_files(home: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"A={VALUE}\nB=2\n")
    (tmp_path / "c.json").write_text(json.dumps({"C": VALUE}))
    run(home, "secret", "create", "one", "D=-", stdin=f"{VALUE}\n")
    run(
        *(home, "secret", "create", "two", "B=3"),
        *("--from-dotenv", str(tmp_path / ".env"), "--from-json", str(tmp_path / "c.json")),
    )
    listed = [json.loads(line) for line in run(home, "secret", "list", "--json").stdout.splitlines()]
    assert [(each["name"], each["keys"]) for each in listed] == [("one", ["D"]), ("two", ["A", "B", "C"])]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "Bad Name", "A=1"), "Bad Name"),
        (("create", "x"), "no values"),
        (("create", "x", VALUE), "KEY=VALUE"),
        (("create", "x", f"A={VALUE}", f"A={VALUE}"), "twice"),
        (("create", "x", f"PATH={VALUE}"), "reserved"),
        (("create", "x", f"1A={VALUE}"), "1A"),
        (("create", "x", "--from-json", "/no/such/file"), "/no/such/file"),
        (("create", "x", "A=-", "B=-"), "one value"),
        (("create", "x", "A=1", "--env", "Not good"), "Not good"),
        (("list", "--env", "Not good"), "Not good"),
    ],
)
def test_wrong_input_is_told_without_values(home: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in run(home, "secret", *arguments, code=1).stderr


def test_files_with_values_are_the_owner_s_alone(home: Path) -> None:
    run(home, "secret", "create", "db", f"PASSWORD={VALUE}")
    run(home, "token", "create")
    holding = [path for path in home.rglob("*") if path.is_file() and VALUE in path.read_text("utf-8", "replace")]
    assert len(holding) == 1
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in home.rglob("*"))


def test_environments_are_apart(home: Path) -> None:
    run(home, "secret", "create", "db", "A=1", "--env", "staging")

    assert "No secrets" in run(home, "secret", "list").stdout
    assert "db" in run(home, "secret", "list", "--env", "staging").stdout


def test_a_token_s_secret_is_shown_once(home: Path) -> None:
    shown = run(home, "token", "create", "--name", "ci", "--rate", "5").stdout
    # Whole words: either may hold the beginning of the other, which are letters like any.
    (secret,) = set(re.findall(r"(?<![\w-])ws-[\w-]+", shown))
    (key,) = set(re.findall(r"(?<![\w-])wk-[\w-]+", shown))
    assert f"Bearer {key}.{secret}" in shown
    assert "curl" in shown
    listed = run(home, "token", "list").stdout
    assert key in listed
    assert "5/s" in listed
    as_json = run(home, "token", "list", "--json").stdout
    assert secret not in listed + as_json
    assert "sha256" not in as_json
    assert not [p for p in home.rglob("*") if p.is_file() and secret in p.read_text("utf-8", "replace")]
    run(home, "token", "delete", key)
    assert "No tokens" in run(home, "token", "list").stdout
    assert key in run(home, "token", "delete", key, code=1).stderr


def test_a_token_for_programs(home: Path) -> None:
    made = json.loads(run(home, "token", "create", "--json").stdout)

    assert set(made) == {"id", "secret", "environment", "name"}


def test_no_images_yet(home: Path) -> None:
    assert "No images" in run(home, "image", "list").stdout
    assert json.loads(run(home, "image", "prune", "--json").stdout) == {"removed": [], "busy": [], "freed": 0}


def test_version_and_help() -> None:
    version = run_command("--version")
    assert re.fullmatch(r"modalnomad \d+\.\d+\.\d+\n", version.stdout)
    assert "serve" in run_command("--help").stdout
    assert "Example" in run_command("secret", "create", "--help").stdout
    assert run_command("no-such-command").returncode == 2
