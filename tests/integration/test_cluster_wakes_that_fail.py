"""Why a wake failed, for each cause Nomad knows of: what the caller is answered and what the router's log says, on the
fake and on a real Nomad."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, Router, cluster
from tests.support.nomad_calls import Calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMESPACE = "modalnomad-main"
PROGRAM = """
import modal, os, sys
app = modal.App("shop")

async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})

@app.function(scaledown_window=2)
@modal.asgi_app()
def gone():
    return web

@app.function(scaledown_window=2)
@modal.asgi_app()
def damaged():
    return web

@app.cls(scaledown_window=2)
class exits:
    @modal.enter()
    def enter(self):
        print("to standard output", flush=True)
        print("its last words", file=sys.stderr, flush=True)
        os._exit(7)

    @modal.asgi_app(label="shop-exits")
    def web(self):
        return web
"""
FUNCTION = """
@app.function(scaledown_window=2{more})
@modal.asgi_app()
def {name}():
    return web
"""
SECRETS = ', secrets=[modal.Secret.from_name("db")]'
START, ROOM, PLACE = (503, "start_failed"), (503, "no_capacity"), (503, "unplaceable")


class Cause(NamedTuple):
    """What is done to a Function's job, so that it cannot start, and how that is told."""

    spoil: Callable[[Any, Any], None]
    """Of job and task."""
    answer: tuple[int, str]
    words: tuple[str, ...]
    more: str = ""


def set_to(*path: str, value: Any) -> Callable[[Any, Any], None]:
    """Of the task; a number stands for the last of a list."""

    def spoil(job: Any, task: Any) -> None:
        *where, name = path
        for step in where:
            task = task[-1] if step == "last" else task[step]
        task[name] = value

    return spoil


def moved(job: Any, task: Any) -> None:
    """Its code is somewhere else."""
    artifact = task["Artifacts"][-1]
    artifact["GetterSource"] = artifact["GetterSource"].replace("/artifacts/", "/artifacts/0")


def unreachable(job: Any, task: Any) -> None:
    """Nobody listens where its code is to come from."""
    artifact = task["Artifacts"][-1]
    artifact["GetterSource"] = "http://127.0.0.1:1/" + artifact["GetterSource"].split("/", 3)[3]


def another_system(job: Any, task: Any) -> None:
    """A constraint that no node meets."""
    job["Constraints"] = [{"LTarget": "${attr.kernel.name}", "RTarget": "windows", "Operand": "="}]


def of_another_environment(job: Any, task: Any) -> None:
    """A secret it may not read."""
    for template in task["Templates"]:
        template["EmbeddedTmpl"] = template["EmbeddedTmpl"].replace("modalnomad/main/", "modalnomad/other/")


def without_function(job: Any, task: Any) -> None:
    """A template that cannot be read."""
    for template in task["Templates"]:
        template["EmbeddedTmpl"] = template["EmbeddedTmpl"].replace("toJSON", "toNothing")


def wants_more(job: Any, task: Any) -> None:
    """Meta that routers do not give."""
    job["ParameterizedJob"]["MetaRequired"] = ["ticket"]


CAUSES = {
    "memory": Cause(set_to("Resources", "MemoryMB", value=99_000_000), ROOM, ("enough left", "memory")),
    "constraint": Cause(another_system, PLACE, ("no node meets ${attr.kernel.name} = windows",)),
    "driver": Cause(set_to("Driver", value="docker"), PLACE, ("no node has the driver it needs",)),
    "program": Cause(
        set_to("Config", "command", value="/no/python"),
        START,
        ("has no program /no/python (the setting nomad.python)",),
    ),
    "config": Cause(set_to("Config", "nope", value=1), START, ("refused it:", 'named "nope"')),
    "moved": Cause(
        moved, START, ("could not fetch its code from http://", "bad response code: 404", "deploy` puts it")
    ),
    "unreachable": Cause(
        unreachable, START, ("could not fetch its code from http://127.0.0.1:1/", "connection refused")
    ),
    "checksum": Cause(
        set_to("Artifacts", "last", "GetterOptions", "checksum", value="sha256:" + "0" * 64),
        START,
        ("could not fetch its code: http://", "is not what was deployed", "deploy` puts it"),
    ),
    "role": Cause(
        set_to("Vault", "Role", value="nobody"), START, ("Vault does not know the role", "modalnomad setup"), SECRETS
    ),
    "denied": Cause(of_another_environment, START, ("the secret db",), SECRETS),
    "template": Cause(without_function, START, ("its secrets could not be read: Template failed",), SECRETS),
    "meta": Cause(wants_more, START, ("required meta keys: [ticket]",)),
}


class World(NamedTuple):
    """What stands."""

    cluster: Cluster
    router: Router
    file: Path
    answers: dict[str, tuple[int, str]]
    """Of every cause: all were asked for at once."""


async def ask(router: Router, name: str) -> tuple[int, str]:
    """Status, and the code where the router itself answers."""
    status, text = await router.get(f"shop-{name}.localhost")
    return status, text if status == 200 else json.loads(text)["code"]


async def spoil(calls: Calls, name: str, cause: Cause) -> None:
    """Its job is another one from now on."""
    job = await calls.get("/v1/job/" + quote(f"shop.{name}.r1", safe=""), namespace=NAMESPACE)
    cause.spoil(job, job["TaskGroups"][0]["Tasks"][0])
    await calls.put("/v1/jobs", {"Job": job}, namespace=NAMESPACE)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fake", "real"])
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    if request.param == "real" and shutil.which("nomad") is None:
        pytest.skip("nomad is not on PATH")
    folder = tmp_path_factory.mktemp("world")
    file, values = folder / "shop.py", folder / "db.json"
    file.write_text(PROGRAM + "".join(FUNCTION.format(name=name, more=cause.more) for name, cause in CAUSES.items()))
    values.write_text('{"PASSWORD": "p"}')
    async with cluster(folder, real=request.param == "real", acl=True) as made:
        await made.cli("secret", "create", "db", "--from-json", str(values))
        await made.cli("deploy", str(file))
        token = made.nomad.token if request.param == "real" else made.nomad.management
        async with Calls(made.nomad.address, token) as calls, made.router() as router:
            for name, cause in CAUSES.items():
                await spoil(calls, name, cause)
            names = [*CAUSES, "exits"]
            answers = await asyncio.gather(*(ask(router, name) for name in names))
            yield World(made, router, file, dict(zip(names, answers, strict=True)))


@pytest.mark.parametrize("name", CAUSES)
async def test_a_wake_that_fails_says_why(world: World, name: str) -> None:
    cause = CAUSES[name]

    assert world.answers[name] == cause.answer
    await world.router.told(f"shop/{name}: ", *cause.words)


async def test_one_that_exits_says_its_code_and_last_lines(world: World) -> None:
    assert world.answers["exits"] == START
    await world.router.told("shop/exits: the process ended with code 7")
    await world.router.told("to standard output")
    await world.router.told("its last words")


async def test_what_cannot_be_had_by_trying_again_is_not_tried_again(world: World) -> None:
    assert not [line for line in world.router.errors if "dispatch of" in line and "repeated" in line]


async def test_code_that_is_damaged_or_gone_is_put_there_again_by_a_deploy(world: World) -> None:
    stored = [*(Path(world.cluster.env["MODALNOMAD_HOME"]) / "artifacts-store").iterdir()]
    for each in stored:
        each.write_bytes(b"other")
    assert await ask(world.router, "damaged") == START
    await world.router.told("shop/damaged: ", "is not what was deployed", "`modalnomad deploy` puts it")
    for each in stored:
        each.unlink()
    assert await ask(world.router, "gone") == START
    await world.router.told("shop/gone: ", "bad response code: 404", "`modalnomad deploy` puts it")

    await world.cluster.cli("deploy", str(world.file))

    assert await ask(world.router, "damaged") == await ask(world.router, "gone") == (200, "ok")
