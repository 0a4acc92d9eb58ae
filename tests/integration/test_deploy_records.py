"""`deploy`, `plan` and `app …` without a running platform: what is stored, what is said, what is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modalnomad.deploy.changing import hold_app
from modalnomad.embedded.discovery import EmbeddedDiscovery
from tests.support.deploys import Deploys, files_below
from tests.support.serve import command_environment

SLOW_IMAGE = 'image=modal.Image.debian_slim().run_commands("touch {marker}; sleep 100")'


@pytest.fixture
def shop(tmp_path: Path) -> Deploys:
    made = Deploys(tmp_path)
    made.write()
    return made


@pytest.mark.timeout(240)  # eleven commands, one after the other, each of which imports all it has
def test_the_life_of_an_app(shop: Deploys) -> None:
    first = shop.deploy()
    assert (first["version"], first["served"], first["skipped"]) == (1, False, False)
    assert first["endpoints"][0]["url"] == "http://shop-f.localhost:8700"
    again = shop.run("deploy", "shop.py").stdout
    assert "Deployment skipped: nothing changed since v1" in again
    assert "modalnomad up" in again
    shop.write(answer="two")
    assert shop.deploy("shop.py", "--tag", "spring")["version"] == 2

    back = shop.run("app", "rollback", "shop").stdout
    assert "as v3 (rollback to v1)" in back
    newest, spring, oldest = shop.history()
    assert (newest["version"], newest["served"], newest["note"]) == (3, True, "rollback to v1")
    assert (spring["tag"], spring["served"]) == ("spring", False)
    assert "@" in oldest["deployed_by"]
    assert "v2 " in shop.run("app", "history", "shop").stdout

    assert "v3 was its last version" in shop.run("app", "stop", "shop", "-y").stdout
    assert "stopped already" in shop.run("app", "stop", "shop", "-y", code=1).stderr
    (listed,) = shop.json("app", "list")
    assert (listed["state"], listed["endpoints"], listed["replicas"]) == ("stopped", [], None)
    assert shop.deploy()["version"] == 4
    assert "deployed  v4" in shop.run("app", "list").stdout


def test_old_versions_go_and_a_rollback_there_names_the_kept_ones(tmp_path: Path) -> None:
    shop = Deploys(tmp_path, {"MODALNOMAD_EMBEDDED__KEEP_VERSIONS": "2"})
    for answer in ("one", "two", "three"):
        shop.write(answer=answer)
        shop.deploy()
    refused = shop.run("app", "rollback", "shop", "v1", code=1)
    assert "v1 of App shop is not kept any more: v2 and v3 are kept" in refused.stderr
    assert shop.versions() == [2, 3]


def test_a_rollback_finds_its_source_gone(shop: Deploys) -> None:
    shop.deploy()
    for bundle in (shop.home / "artifacts").iterdir():
        bundle.unlink()
    shop.write(answer="two")
    shop.deploy()
    refused = shop.run("app", "rollback", "shop", "1", code=1)
    assert "v1 of App shop cannot be served again, as something of it was removed: its source" in refused.stderr
    assert "deploy that program again" in refused.stderr
    assert shop.versions() == [1, 2]


def test_only_one_change_at_a_time(shop: Deploys) -> None:
    shop.deploy()
    commands = (
        ("deploy", "shop.py"),
        ("app", "rollback", "shop", "v1"),
        ("app", "stop", "shop"),
        ("app", "scale", "shop/f", "--max", "3"),
    )

    async def refused() -> list[str]:
        async with hold_app(EmbeddedDiscovery(shop.home), "shop", "main"):
            return [(await asyncio.to_thread(shop.run, *command, code=1)).stderr for command in commands]

    for said in asyncio.run(refused()):
        assert f"held by process {os.getpid()} since" in said
        assert "try again" in said
    assert shop.versions() == [1]


def test_a_host_of_another_app_is_refused_before_anything_is_built(shop: Deploys) -> None:
    shop.deploy()
    shop.write(
        "other.py",
        app="other",
        endpoint='label="shop-f"',
        function="image=modal.Image.debian_slim().pip_install('no-such-package-of-ours')",
    )
    refused = shop.run("deploy", "other.py", code=1)
    assert "other/f would take shop-f.localhost, which shop/f in environment main has" in refused.stderr
    assert "modalnomad app stop shop" in refused.stderr
    assert "resolving" not in refused.stderr
    assert shop.versions("other") == []
    shop.write("other.py", app="other", endpoint='label="shop-f"')
    shop.run("app", "stop", "shop")
    assert shop.deploy("other.py")["version"] == 1
    back = shop.run("app", "rollback", "shop", code=1)
    assert "shop/f would take shop-f.localhost, which other/f" in back.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_deploy_leaves_the_old_version(shop: Deploys, number: signal.Signals) -> None:
    shop.deploy()
    marker = shop.folder / "marker"
    shop.write(answer="two", function=SLOW_IMAGE.format(marker=marker))
    code, said = shop.interrupted(marker.exists, number, "deploy", "shop.py")
    if number is signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert list((shop.home / "scratch").iterdir()), "nobody was left to tidy up"
    else:
        assert code == 130
        assert "Interrupted: nothing was published" in said
        assert "Traceback" not in said
    assert shop.versions() == [1]
    shop.write(answer="three")
    assert shop.deploy()["version"] == 2
    assert not list((shop.home / "scratch").iterdir())


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (8, "main/shop.json: the file is larger than this process may write"),
        (0, "what shop.py declares could not be written"),
    ],
    ids=["record", "anything"],
)
def test_a_disk_that_takes_no_more_leaves_the_old_version(shop: Deploys, blocks: int, says: str) -> None:
    shop.deploy()
    endpoints = "".join(f"@app.function()\n@modal.fastapi_endpoint()\ndef g{n}(): pass\n" for n in range(6))
    shop.write(answer="two", more=endpoints)
    command = f"ulimit -f {blocks}; PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} -m modalnomad deploy shop.py"
    done = subprocess.run(
        ["bash", "-c", command],
        env=command_environment(shop.home),
        cwd=shop.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    assert shop.versions() == [1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("deploy", "nothing.py"), "no such file"),
        (("deploy", "shop.py", "--name", "no spaces"), "'no spaces'"),
        (("deploy", "shop.py", "--env", "Not good"), "'Not good'"),
        (("deploy", "shop.py", "--tag", "no spaces"), "--tag"),
        (("deploy", "two.py"), "two.py::"),
        (("deploy", "plain.py"), "has nothing to deploy"),
        (("deploy", "secret.py"), "there is no secret nope"),
        (("app", "rollback", "nope"), "there is no App nope in environment main (there: none)"),
        (("app", "rollback", "../x"), "is not the name of an App"),
        (("app", "history", "nope"), "there is no App nope"),
        (("app", "stop", "nope"), "there is no App nope"),
        (("app", "scale", "nope"), "names no Function of an App"),
        (("app", "scale", "nope/f"), "there is no App nope"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(shop: Deploys, arguments: tuple[str, ...], says: str) -> None:
    (shop.folder / "two.py").write_text('import modal\na = modal.App("a")\nb = modal.App("b")\n')
    (shop.folder / "plain.py").write_text('import modal\napp = modal.App("a")\n@app.function()\ndef f(): pass\n')
    shop.write("secret.py", function='secrets=[modal.Secret.from_name("nope")]')
    refused = shop.run(*arguments, code=1)
    assert says in refused.stderr
    assert "Hint:" in refused.stderr or "Error:" in refused.stderr
    assert not list(shop.home.rglob("apps/*/*.json"))


def test_wrong_usage_is_two(shop: Deploys) -> None:
    shop.run("deploy", "shop.py", "--strategy", "slow", code=2)
    shop.run("app", "scale", "shop/f", "--max", "0", code=2)
    shop.run("app", "scale", "shop/f", "--max", "1", "--reset", code=2)


@pytest.mark.timeout(240)  # ten commands, one after the other, each of which imports all it has
def test_scaling_by_hand_until_the_next_version(shop: Deploys) -> None:
    shop.write(function="min_containers=1, max_containers=4")
    shop.deploy()
    assert "scaledown_window = 60 s" in shop.run("app", "scale", "shop/f").stdout
    (made,) = shop.json("app", "scale", "shop/f", "--min", "2", "--window", "5")
    assert (made["min_containers"], made["max_containers"], made["scaledown_window"]) == (2, 4, 5.0)
    refused = shop.run("app", "scale", "shop/f", "--max", "1", code=1)
    assert "at least 2 replicas (as set by hand before) is more than at most 1 (as given)" in refused.stderr
    (made,) = shop.json("app", "scale", "shop/f")
    assert made["by_hand"] == ["min_containers", "scaledown_window"]
    assert "taken back" in shop.run("plan", "shop.py").stdout
    assert shop.deploy()["version"] == 2, "values set by hand make a new version"
    assert shop.json("app", "scale", "shop/f")[0]["by_hand"] == []
    shop.run("app", "scale", "shop/f", "--buffer", "1")
    assert shop.json("app", "scale", "shop/f", "--reset")[0]["buffer_containers"] == 0


def test_a_plan_says_what_changes_and_writes_nothing(shop: Deploys) -> None:
    new = shop.run("plan", "shop.py").stdout
    assert "+ endpoint f: shop-f.localhost" in new
    shop.deploy()
    before = files_below(shop.home)
    assert "= nothing changes" in shop.run("plan", "shop.py").stdout
    shop.write(
        answer="two",
        function='timeout=60, secrets=[modal.Secret.from_name("nope")], image=modal.Image.debian_slim()',
    )
    (told,) = shop.json("plan", "shop.py")
    assert [change["sign"] for change in told["changes"]] == ["~", "~"]
    assert "timeout 300 s → 60 s" in told["changes"][0]["words"]
    assert told["changes"][1]["words"] == "1 file changed (shop.py)"
    assert "there is no secret nope" in told["obstacles"][0]
    assert files_below(shop.home) == before


def test_schedules_are_deployed_and_what_nothing_calls_is_said(shop: Deploys) -> None:
    more = "@app.function(schedule=modal.Period(hours=1))\ndef tick(): pass\n@app.function()\ndef idle(): pass\n"
    shop.write(more=more)
    made = shop.deploy()
    assert made["schedules"] == {"tick": "every 1 hour"}
    assert "idle is not deployed" in "".join(notice["message"] for notice in made["notices"])
    assert shop.history()[0]["functions"] == ["f", "tick"]


def test_environments_are_apart(shop: Deploys) -> None:
    shop.deploy()
    elsewhere = shop.deploy("shop.py", "--env", "staging")
    assert elsewhere["endpoints"][0]["host"] == "staging--shop-f.localhost"
    assert len(shop.json("app", "list", "--all")) == 2
    assert [app["environment"] for app in shop.json("app", "list", "--env", "staging")] == ["staging"]
    shop.run("app", "stop", "shop", "--env", "staging")
    assert shop.json("app", "list")[0]["state"] == "deployed"


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_the_commit_of_the_program_is_kept(shop: Deploys) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *arguments], cwd=shop.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    shop.deploy()
    git("add", ".")
    git("commit", "-q", "-m", "one")
    shop.deploy("shop.py", "--tag", "clean")
    shop.write(answer="two")
    shop.deploy()
    dirty, clean, none = shop.history()
    assert (none["commit"], none["dirty"]) == ("", False)
    assert (clean["commit"], clean["dirty"]) == (git("rev-parse", "HEAD"), False)
    assert (dirty["commit"], dirty["dirty"]) == (clean["commit"], True)
    assert f"{clean['commit'][:8]}* " in shop.run("app", "history", "shop").stdout


def test_a_terminal_is_asked_before_an_app_is_stopped(shop: Deploys) -> None:
    shop.deploy()

    def answered(text: bytes) -> subprocess.CompletedProcess[bytes]:
        ours, theirs = os.openpty()
        try:
            os.write(ours, text)
            return subprocess.run(
                [sys.executable, "-m", "modalnomad", "app", "stop", "shop"],
                env=command_environment(shop.home),
                stdin=theirs,
                capture_output=True,
                timeout=60,
                check=False,
            )
        finally:
            os.close(ours)
            os.close(theirs)

    no = answered(b"n\n")
    assert (no.returncode, b"Stop App shop of environment main (v1)?" in no.stderr) == (1, True)
    assert shop.history()[0]["served"]
    assert answered(b"y\n").returncode == 0
    assert not shop.history()[0]["served"]
