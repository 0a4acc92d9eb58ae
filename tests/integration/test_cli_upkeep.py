"""`prune`, `environment`, `secret delete` and homes that are none, as a user meets them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.home import open_home
from modalnomad.model.apps import AppVersion
from modalnomad.model.manifest import SecretRef
from modalnomad.ports.discovery import PublishApp
from tests.support.apps import app_record, version
from tests.support.serve import run_command

PROGRAM = """
import modal
app = modal.App("a")
@app.function()
@modal.fastapi_endpoint()
def f():
    return 1
"""
COMMANDS = (
    ("serve", "{program}"),
    ("up",),
    ("deploy", "{program}"),
    ("plan", "{program}"),
    ("app", "list"),
    ("app", "history", "a"),
    ("app", "rollback", "a"),
    ("app", "stop", "a"),
    ("app", "scale", "a/f", "--min", "1"),
    ("app", "logs", "a"),
    ("container", "list"),
    ("secret", "create", "s", "A=1"),
    ("secret", "list"),
    ("secret", "delete", "s"),
    ("token", "create"),
    ("token", "list"),
    ("token", "delete", "wk-1"),
    ("image", "list"),
    ("image", "prune"),
    ("prune", "--yes"),
    ("environment", "list"),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(home: Path, *arguments: str, code: int = 0) -> Any:
    done = run_command(*arguments, home=home)
    assert done.returncode == code, (arguments, done.stdout + done.stderr)
    assert "Traceback" not in done.stderr, arguments
    return done


def publish(home: Path, app: str, *versions: AppVersion, environment: str = "main") -> None:
    record = app_record(app, *versions, environment=environment)
    asyncio.run(EmbeddedDiscovery(open_home(home)).publish(PublishApp(record, 0)))


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def old_bundle(home: Path) -> Path:
    path = open_home(home) / "artifacts" / ("a" * 64)
    path.parent.mkdir()
    path.write_bytes(b"x" * 1500)
    os.utime(path, times=(time.time() - 86400,) * 2)
    return path


def test_prune_shows_asks_and_removes(home: Path) -> None:
    publish(home, "kept")
    path = old_bundle(home)

    shown = run(home, "prune", "--dry-run").stdout
    assert "1.5 kB" in shown
    assert "aaaaaaaaaaaa" in shown
    assert "no kept version needs it" in shown
    refused = run(home, "prune", code=1)
    assert "--yes" in refused.stderr
    told = lines(run(home, "prune", "--dry-run", "--json").stdout)
    assert [(item["kind"], item["size"], item["removed"]) for item in told if item["goes"]] == [("bundle", 1500, False)]
    assert path.exists()

    (gone, *stays) = lines(run(home, "prune", "--yes", "--json").stdout)
    assert (gone["name"], gone["removed"], gone["size"]) == ("a" * 64, True, 1500)
    assert [(item["kind"], item["name"], item["removed"]) for item in stays] == [("App", "kept", False)]
    assert not path.exists()
    assert "Nothing goes" in run(home, "prune").stdout


def test_environments_are_those_that_hold_something(home: Path) -> None:
    assert [each["name"] for each in lines(run(home, "environment", "list", "--json").stdout)] == ["main"]
    publish(home, "a")
    publish(home, "b", environment="staging")
    run(home, "secret", "create", "s", "A=1", "--env", "staging")
    run(home, "token", "create", "--env", "third")

    listed = lines(run(home, "environment", "list", "--json", "--env", "staging").stdout)

    assert [(e["name"], e["apps"], e["secrets"], e["tokens"], e["current"]) for e in listed] == [
        ("main", 1, 0, 0, False),
        ("staging", 1, 1, 0, True),
        ("third", 0, 0, 1, False),
    ]
    assert "staging" in run(home, "environment", "list").stdout


def test_a_damaged_record_is_told_once_and_nothing_is_claimed_of_what_runs(home: Path) -> None:
    publish(home, "good")
    (home / "discovery" / "apps" / "main" / "bad.json").write_text("{")
    listed = run(home, "app", "list")
    assert "good" in listed.stdout
    assert listed.stderr.count("bad.json") == 1
    assert "not served" not in listed.stderr
    assert "goes on with what it last read" in listed.stderr


def test_scaling_is_shown_without_writing(home: Path) -> None:
    publish(home, "shop")
    function = next(iter(asyncio.run(EmbeddedDiscovery(home).apps()))).revisions[0].function.tag
    before = sorted(path for path in home.rglob("*"))
    assert "max_containers" in run(home, "app", "scale", f"shop/{function}").stdout
    assert sorted(path for path in home.rglob("*")) == before


def test_a_secret_that_a_served_app_uses_is_not_deleted_by_mistake(home: Path) -> None:
    run(home, "secret", "create", "db", "A=1")
    run(home, "secret", "create", "free", "A=1")
    ref = SecretRef(name="db", environment="main")
    publish(home, "shop", version("shop", 1, environment="staging", secrets=[ref]), environment="staging")
    publish(home, "past", version("past", 1, secrets=[ref]), version("past", 2))

    run(home, "secret", "delete", "free")
    refused = run(home, "secret", "delete", "db", code=1).stderr
    assert "shop (environment staging)" in refused
    assert "past" not in refused
    assert "--yes" in refused
    assert "db" in run(home, "secret", "list").stdout

    run(home, "secret", "delete", "db", "--yes")
    assert run(home, "secret", "delete", "db", "--yes", code=1).stderr.startswith("Error: there is no secret db")
    assert "There is no secret" in run(home, "secret", "delete", "db", "--yes", "--allow-missing").stdout


def all_commands(home: Path, program: Path, commands: Iterable[tuple[str, ...]] = COMMANDS) -> dict[str, Any]:
    """Each command's outcome, two at a time."""
    given = [[word.format(program=program) for word in command] for command in commands]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda arguments: run(home, *arguments, code=1), given)
    return {" ".join(words): each for words, each in zip(given, done, strict=True)}


@pytest.mark.timeout(240)  # twenty-one commands, each of which imports all it has
def test_every_command_refuses_a_home_of_a_newer_format_untouched(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "a.py"
    program.write_text(PROGRAM)
    publish(home, "a")
    (home / "format").write_text('{"kind": "home", "version": 2, "content": {}}')
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}

    told = all_commands(home, program)

    assert {words for words, done in told.items() if "use the newer modalnomad" not in done.stderr} == set()
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_a_folder_of_other_things_stays_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "a.py"
    program.write_text(PROGRAM)
    home = tmp_path / "photos"
    (home / "2026").mkdir(parents=True)

    told = all_commands(
        home, program, [command for command in COMMANDS if command[0] in {"serve", "up", "deploy", "secret"}]
    )

    assert {words for words, done in told.items() if "is not a home of modalnomad" not in done.stderr} == set()
    assert [path.name for path in home.rglob("*")] == ["2026"]
