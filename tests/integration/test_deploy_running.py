"""`deploy` and `app …` beside a running `up`: a version that cannot start never replaces one that can."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.deploys import Deploys, wait_until
from tests.support.up import Up, up

BROKEN = 'if not modal.is_local(): raise RuntimeError("boom at start")\n'
SLOW = 'import time, pathlib\nif not modal.is_local(): pathlib.Path("{marker}").touch(); time.sleep(100)\n'


@pytest.fixture
def shop(tmp_path: Path) -> Deploys:
    made = Deploys(tmp_path)
    made.write()
    made.deploy()
    return made


@pytest.fixture
def running(shop: Deploys) -> Iterator[Up]:
    with up(shop.home) as started:
        yield started


def answer(running: Up) -> Any:
    response = httpx.get(running.url("f"), trust_env=False, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def started(running: Up) -> set[tuple[str, str]]:
    """Revision and name of every replica that was ever started."""
    return {(e["revision"], e["replica"]) for e in list(running.events) if e["event"] == "replica"}


def test_a_version_takes_over_as_warm_as_the_old_one_was(shop: Deploys, running: Up) -> None:
    assert answer(running) == "one"
    shop.write(answer="two")
    made = shop.deploy()
    assert (made["version"], made["served"]) == (2, True)
    assert made["endpoints"][0]["direct_url"] == running.url("f")
    assert made["endpoints"][0]["url"] == f"http://shop-f.localhost:{running.port}"
    wait_until(lambda: len(started(running)) == 2)
    assert answer(running) == "two"
    assert len(started(running)) == 2, "it was warm before the first request"

    shop.run("app", "rollback", "shop", "--strategy", "recreate")
    assert answer(running) == "one"
    shop.run("app", "stop", "shop")
    wait_until(lambda: shop.json("app", "list")[0]["replicas"] == 0)


def test_what_slept_is_published_asleep_and_checked_only_when_asked(shop: Deploys, running: Up) -> None:
    shop.write(answer="two")
    assert shop.deploy()["version"] == 2
    assert not started(running)
    shop.write(more=BROKEN)
    refused = shop.run("deploy", "shop.py", "--check", code=1)
    assert "RuntimeError: boom at start" in refused.stderr
    assert "shop/f does not start" in refused.stderr
    assert "nothing was changed: App shop stays v2" in refused.stderr
    assert shop.versions() == [1, 2]
    assert answer(running) == "two"


def test_a_version_that_cannot_start_does_not_replace_a_warm_one(shop: Deploys, running: Up) -> None:
    assert answer(running) == "one"
    shop.write(more=BROKEN)
    assert "boom at start" in shop.run("deploy", "shop.py", code=1).stderr
    assert shop.versions() == [1]
    assert answer(running) == "one"
    wait_until(lambda: len(started(running)) == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupt_while_the_new_one_starts_leaves_the_old_one_alone(
    shop: Deploys, running: Up, number: signal.Signals
) -> None:
    assert answer(running) == "one"
    marker = shop.folder / "marker"
    shop.write(more=SLOW.format(marker=marker))
    code, said = shop.interrupted(marker.exists, number, "deploy", "shop.py")
    assert code == (130 if number is signal.SIGTERM else -9), said
    assert ("Interrupted: nothing was published" in said) is (number is signal.SIGTERM)
    wait_until(lambda: [c["state"] for c in shop.json("container", "list")] == ["ready"])
    assert shop.versions() == [1]
    assert answer(running) == "one"


def test_up_is_killed_while_the_new_one_starts(shop: Deploys, running: Up) -> None:
    assert answer(running) == "one"
    marker = shop.folder / "marker"
    shop.write(more=SLOW.format(marker=marker))
    process = shop.start("deploy", "shop.py")
    try:
        wait_until(marker.exists)
        running.kill()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 1
    assert "went away: " in said
    assert "nothing was changed: App shop stays v1" in said
    assert "Traceback" not in said
    assert shop.versions() == [1]


def test_scaling_by_hand_is_followed_at_once(shop: Deploys, running: Up) -> None:
    shop.run("app", "scale", "shop/f", "--min", "2")
    wait_until(lambda: shop.json("app", "list")[0]["replicas"] == 2)
    shop.run("app", "scale", "shop/f", "--reset")
    asked = shop.json("app", "scale", "shop/f")[0]
    assert asked["min_containers"] == 0
