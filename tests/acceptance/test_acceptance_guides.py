"""Every program of both guides, unchanged, through `modalnomad serve`, with the answers the guides promise."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import httpx
import pytest

from tests.support import guides
from tests.support.doors import direct_door, doors, replicas, replicas_told
from tests.support.guides import ALL, BY_NAME, Program
from tests.support.serve import Serve, run_command, serve

pytestmark = pytest.mark.guides

IDS = [program.name for program in ALL]


@pytest.fixture(scope="module", autouse=True)
def _secret() -> None:
    """The one secret both guides ask for, created as a user would."""
    created = run_command("secret", "create", "my-web-auth-token", f"AUTH_TOKEN={guides.TOKEN}", "--force")
    assert created.returncode == 0, created.stderr
    assert guides.TOKEN not in created.stdout + created.stderr


def clean_end(s: Serve) -> None:
    """It was stopped as Ctrl-C stops it, and said nothing but JSON."""
    assert s.exit_code == 0, s.output()
    assert not s.bad_lines


def test_the_folder_holds_exactly_these_programs() -> None:
    assert sorted(path.stem for path in guides.PROGRAMS.glob("*.py")) == sorted(IDS)


@pytest.mark.parametrize("program", ALL, ids=IDS)
def test_answers_as_the_guide_says(program: Program, tmp_path: Path) -> None:
    with serve(program.write(tmp_path)) as s, doors(s, program.endpoint) as clients:
        assert set(s.endpoints) == {program.endpoint}
        for client in clients:
            for call in program.calls:
                call.made_with(client)
    clean_end(s)
    assert guides.TOKEN not in "\n".join(s.stderr_lines)


@pytest.mark.parametrize("program", ALL, ids=IDS)
def test_answers_the_same_as_a_module_of_a_package(program: Program, tmp_path: Path) -> None:
    package = tmp_path / "pkg" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    program.write(package)

    with (
        serve("-m", f"pkg.inner.{program.name}", cwd=tmp_path) as s,
        direct_door(s, program.endpoint) as client,
    ):
        for call in program.calls:
            call.made_with(client)
    clean_end(s)


def test_the_vendors_package_is_installed_beside_all_this() -> None:
    found = importlib.util.find_spec("modal")

    assert found is not None
    assert found.origin is not None
    assert "site-packages" in found.origin


def test_lifespan_runs_before_the_first_answer_and_at_the_end(tmp_path: Path) -> None:
    program = BY_NAME["g2025_asgi_lifespan"]
    with serve(program.write(tmp_path)) as s, direct_door(s) as client:
        assert not s.logs(), "nothing runs before the first request"
        assert client.get("/").json() == "hello"
        s.wait_log("Starting")
        assert not [log for log in s.logs() if "Shutting down" in log["line"]]
    clean_end(s)

    assert [log["line"] for log in s.logs() if log["line"] in {"Starting", "Shutting down"}] == [
        "Starting",
        "Shutting down",
    ]


async def test_a_hundred_at_once_share_one_replica(tmp_path: Path) -> None:
    program = BY_NAME["g2025_asgi_echo"]
    s = await asyncio.to_thread(serve(program.write(tmp_path)).start)
    try:
        async with httpx.AsyncClient(
            base_url=s.url(), trust_env=False, timeout=60, limits=httpx.Limits(max_connections=100)
        ) as client:
            answers = await asyncio.gather(*(client.post("/echo", json={"n": n}) for n in range(100)))
    finally:
        await asyncio.to_thread(s.stop)

    assert [answer.json() for answer in answers] == [{"n": n} for n in range(100)]
    assert len(replicas(s)) == 1, s.output()


def test_three_pools_at_once_on_one_port(tmp_path: Path) -> None:
    path = BY_NAME["g2025_parametrized"].write(tmp_path)
    with serve(path) as s, doors(s) as clients:
        for client in clients:
            here = client.get("/")
            cache = client.get("/?root=.cache")
            root = client.get("/?root=%2F")

            assert here.status_code == 200
            assert path.name in here.text, "the working directory holds the program"
            assert "Directory listing" in here.text
            assert cache.status_code == 404, "there is no .cache in it"
            assert root.status_code == 200
            assert "etc/" in root.text
            assert path.name not in root.text
        assert len(replicas_told(s, 3, "ready")) == 3, s.output()
        assert not replicas(s, "failed", "gone", "draining"), s.output()
    clean_end(s)


def test_a_default_given_explicitly_is_the_same_pool(tmp_path: Path) -> None:
    with serve(BY_NAME["g2025_parametrized"].write(tmp_path)) as s, direct_door(s) as client:
        first, second = client.get("/"), client.get("/?root=.")
        assert (first.status_code, second.status_code) == (200, 200)
        assert len(replicas_told(s, 1)) == 1


@pytest.mark.parametrize("name", ["g2025_bearer_token", "g2024_bearer_token"])
def test_without_the_secret_nothing_starts(name: str, tmp_path: Path) -> None:
    refused = run_command("serve", "--env", "empty", str(BY_NAME[name].write(tmp_path)))

    assert refused.returncode == 1
    assert "my-web-auth-token" in refused.stderr
    assert "Traceback" not in refused.stderr
