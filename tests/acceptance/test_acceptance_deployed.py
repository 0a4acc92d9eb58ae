"""Every program of both guides, unchanged, deployed into one `up`, with the answers the guides promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import guides
from tests.support.deploys import Deploys
from tests.support.guides import ALL, Program
from tests.support.up import Up, up

pytestmark = pytest.mark.guides

IDS = [program.name for program in ALL]


class Deployed:
    """A platform on which all of them are deployed, the first half before it runs, the others while it does."""

    def __init__(self, shop: Deploys, running: Up, answers: dict[str, dict[str, Any]]) -> None:
        self.shop = shop
        self.up = running
        self.answers = answers

    def client(self, program: Program, *, direct: bool) -> httpx.Client:
        """Of its one endpoint, through a port of its own or by the host name."""
        (endpoint,) = self.answers[program.name]["endpoints"]
        shown = self.up.wait_event("endpoint", app=program.name)
        base = shown["direct_url"] if direct else f"http://127.0.0.1:{self.up.port}"
        headers = {} if direct else {"Host": endpoint["host"]}
        return httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, guides_images: None) -> Iterator[Deployed]:
    shop = Deploys(tmp_path_factory.mktemp("deployed"))
    shop.run("secret", "create", "my-web-auth-token", f"AUTH_TOKEN={guides.TOKEN}")
    answers = {}

    def deploy(program: Program) -> None:
        path = program.write(shop.folder)
        answers[program.name] = shop.deploy(path.name, "--name", program.name)

    half = len(ALL) // 2
    for program in ALL[:half]:
        deploy(program)
    with up(shop.home) as running:
        for program in ALL[half:]:
            deploy(program)
        yield Deployed(shop, running, answers)
    assert running.exit_code == 0, running.output()
    assert not running.bad_lines
    # One of the programs prints it itself, on its replica's standard output.
    assert guides.TOKEN not in "\n".join(running.stderr_lines)


@pytest.mark.parametrize("program", ALL, ids=IDS)
def test_answers_as_the_guide_says(deployed: Deployed, program: Program) -> None:
    for direct in (True, False):
        with deployed.client(program, direct=direct) as client:
            for call in program.calls:
                call.made_with(client)


def test_who_was_there_first_and_who_came_later(deployed: Deployed) -> None:
    served = [answer["served"] for answer in deployed.answers.values()]
    assert served == [False] * 10 + [True] * 10
    assert all(answer["version"] == 1 for answer in deployed.answers.values())
    apps = deployed.shop.json("app", "list")
    assert [app["app"] for app in apps] == sorted(IDS)
    assert all(app["state"] == "deployed" for app in apps)


def test_the_same_again_changes_nothing(deployed: Deployed) -> None:
    program = ALL[0]
    (Path(deployed.shop.folder) / f"{program.name}.py").touch()
    assert deployed.shop.deploy(f"{program.name}.py", "--name", program.name)["skipped"]
