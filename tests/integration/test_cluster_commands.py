"""Commands beside a cluster's servers: what they list, plan, remove and say."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from modalnomad.embedded import prune as home_rules
from modalnomad.hashicorp import prune as cluster_rules
from modalnomad.render.cluster import META_PREFIX
from modalnomad.settings import Settings
from modalnomad.wiring.prune import open_pruning
from modalnomad.wiring.pruning import Plan
from modalnomad.wiring.records import open_records
from tests.support.cluster import Cluster, cluster
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.nomad.shapes import device_group
from tests.support.nomad_calls import Calls
from tests.support.repository import ROOT

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),  # several commands, one after the other, each of which imports all it has
]

PROGRAM = """
import modal
app = modal.App("APP")

@app.function(scaledown_window=2, secrets=[modal.Secret.from_dict({"INLINE": "VERSION"})])
@modal.fastapi_endpoint()
def show():
    return "VERSION"
"""
INLINE = 'from_dict({"INLINE": "VERSION"})'
BROKEN = """
import modal
app = modal.App("broken")

@app.cls(scaledown_window=2)
class Broken:
    @modal.enter()
    def load(self):
        raise RuntimeError("no model here")

    @modal.fastapi_endpoint()
    def ask(self):
        return 1
"""
CLOSED = "http://127.0.0.1:1"
SLEEPER = {"Driver": "raw_exec", "Config": {"command": "/bin/sleep", "args": ["600"]}}
HOLDER = {
    "ID": "holder",
    "Type": "batch",
    "Datacenters": ["*"],
    "TaskGroups": [
        {
            "Name": "group",
            "Tasks": [{"Name": "task", **SLEEPER, "Resources": {"Devices": [{"Name": "nvidia/gpu", "Count": 1}]}}],
        }
    ],
}
DOWN = {"NOMAD_ADDR": CLOSED, "CONSUL_HTTP_ADDR": CLOSED, "VAULT_ADDR": CLOSED}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One for all tests of this file."""
    async with cluster(tmp_path_factory.mktemp("world")) as made:
        yield made


def write(world: Cluster, app: str, text: str = PROGRAM, **values: str) -> str:
    """The program's file."""
    for name, value in {"APP": app, "VERSION": "one", **values}.items():
        text = text.replace(name, value)
    file = world.folder / f"{app}.py"
    file.write_text(text)
    return str(file)


async def jobs(world: Cluster, app: str) -> set[str]:
    """Of revisions, registered now."""
    listing = await world.cli("prune", "--dry-run", "--json")
    found = [record for record in listing.records() if record.get("kind") == "job"]
    return {record["name"] for record in found if record["name"].startswith(f"{app}.")}


# --- doctor ------------------------------------------------------------------------------------------------------


async def test_doctor_looks_at_this_machine_and_at_every_server(world: Cluster) -> None:
    answer = await world.cli("doctor", "--json")

    found = {record["check"]: record for record in answer.records()}
    assert found.keys() >= {
        "versions",
        "home",
        "uv",
        "artifacts",
        "routers",
        "nomad",
        "vault",
        "consul",
        "driver",
        "key",
    }
    assert not [record for record in found.values() if record["level"] == "problem"]
    assert "none runs" in found["routers"]["message"]


async def test_doctor_tells_a_refusal_from_silence(world: Cluster) -> None:
    world.consul.fail(99, path="/v1/kv/modalnomad/routers", status=403, text="Permission denied")
    answer = await world.cli("doctor", "--json", code=None)
    world.consul.clear_faults()

    (routers,) = [record for record in answer.records() if record["check"] == "routers"]
    assert routers["level"] == "warning"
    assert "403: Permission denied" in routers["message"]


async def test_doctor_works_when_no_server_does(world: Cluster, tmp_path: Path) -> None:
    answer = await world.cli("doctor", "--json", code=1, env={**DOWN, "MODALNOMAD_HOME": str(tmp_path / "none")})

    problems = {record["check"]: record for record in answer.records() if record["level"] == "problem"}
    assert problems.keys() == {"nomad", "vault", "consul"}
    assert all(CLOSED in record["message"] and record["fix"] for record in problems.values())
    assert not (tmp_path / "none").exists()


async def test_doctor_counts_routers(world: Cluster) -> None:
    async with world.router():
        answer = await world.cli("doctor", "--json")

    found = {record["check"]: record for record in answer.records()}
    assert (found["routers"]["level"], found["routers"]["message"][:6]) == ("ok", "1 run:")


# --- lists -------------------------------------------------------------------------------------------------------


async def test_a_replica_that_failed_is_never_listed_as_alive(world: Cluster) -> None:
    await world.cli("deploy", write(world, "broken", BROKEN))
    async with world.router() as router:
        assert (await router.get("broken-broken-ask.localhost"))[0] == 503
        await router.until(lambda e: e["event"] == "replica" and e["state"] == "failed")
    listed = await world.cli("container", "list", "--json")
    apps = await world.cli("app", "list", "--json")

    assert [record for record in listed.records() if record["app"] == "broken"] == []
    assert [record["replicas"] for record in apps.records() if record["app"] == "broken"] == [0]


# --- plan --------------------------------------------------------------------------------------------------------


async def test_plan_shows_nomads_own_diff_and_changes_nothing(world: Cluster) -> None:
    file = write(world, "planned")
    first = await world.cli("plan", file)
    assert "+ Nomad job planned.show.r1" in first.stdout
    assert await jobs(world, "planned") == set()
    await world.cli("deploy", file)
    assert (await world.cli("plan", file)).stdout.splitlines()[1:] == ["= nothing changes"]
    stored = sorted(path.name for path in (world.folder / "home" / "artifacts-store").iterdir())

    file = write(world, "planned", PROGRAM.replace("scaledown_window=2", 'memory=777, env={"WORD": "hush-hush"}'))
    answer = await world.cli("plan", file)
    (record,) = (await world.cli("plan", file, "--json")).records()

    assert "~ Resources.MemoryMB: 256 → 777" in answer.stdout
    assert "hush-hush" not in answer.stdout + json.dumps(record["jobs"])
    assert [(job["job"], job["registered"], job["answer"]) for job in record["jobs"]] == [
        ("planned.show.r1", True, "yes")
    ]
    assert sorted(path.name for path in (world.folder / "home" / "artifacts-store").iterdir()) == stored
    assert await jobs(world, "planned") == {"planned.show.r1"}


async def test_plan_of_what_no_node_could_ever_run_fails_with_the_reason(world: Cluster) -> None:
    file = write(world, "greedy", PROGRAM.replace("scaledown_window=2", 'gpu="H100"'))

    answer = await world.cli("plan", file, code=1)
    (record,) = (await world.cli("plan", file, "--json", code=1)).records()

    assert "show cannot run: no node has the GPU it asks for (it asks for H100" in answer.stdout
    assert len(record["obstacles"]) == 1
    assert record["jobs"][0]["answer"] == "never"


# --- GPUs --------------------------------------------------------------------------------------------------------


async def test_gpus_are_listed_by_node_with_what_is_free(world: Cluster) -> None:
    assert (await world.cli("gpu", "list")).stdout.startswith("No node has a GPU")
    memory = {"memory": {"Int": 81559, "Unit": "MiB"}}
    node = world.nomad.add_node(
        "gpus", devices=[device_group("NVIDIA H100 80GB HBM3", ["GPU-1", "GPU-2"], attributes=memory)]
    )
    try:
        async with Calls(world.nomad.address) as calls:
            await calls.put("/v1/jobs", {"Job": HOLDER})
            await calls.until("/v1/job/holder/allocations", bool)
            (held,) = (await world.cli("gpu", "list", "--json")).records()
            table = await world.cli("gpu", "list")
        world.nomad.drain(node)
        (drained,) = (await world.cli("gpu", "list", "--json")).records()
    finally:
        await world.nomad.lose(node)
    (lost,) = (await world.cli("gpu", "list", "--json")).records()

    assert held == {
        "node": "gpus",
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 81559,
        "count": 2,
        "used": 1,
        "free": 1,
        "state": "",
    }
    assert "NVIDIA H100 80GB HBM3  80 GiB" in table.stdout
    assert (drained["free"], drained["state"]) == (0, "draining")
    assert (lost["free"], lost["state"]) == (0, "down")


async def test_what_waits_for_a_place_is_listed_with_the_reason(world: Cluster) -> None:
    node = world.nomad.add_node("busy", devices=[device_group("H100", ["GPU-9"])])
    try:
        await world.cli("deploy", write(world, "queued", PROGRAM.replace("scaledown_window=2", 'gpu="H100"')))
        async with Calls(world.nomad.address) as calls:
            await calls.put("/v1/jobs", {"Job": HOLDER})
            await calls.until("/v1/job/holder/allocations", lambda found: any(a["NodeID"] == node for a in found))
            async with world.router() as router:
                assert (await router.get("queued-show.localhost"))[0] == 503
        (told,) = [one for one in (await world.cli("container", "list", "--json")).records() if one["app"] == "queued"]
        table = await world.cli("container", "list", "--app", "queued")
        stopped = await world.cli("container", "stop", told["id"], code=1)
    finally:
        await world.nomad.lose(node)

    assert told["state"] == "waiting"
    assert "GPU" in told["waits"]
    assert told["reason"]
    assert "waiting" in table.stdout
    assert told["waits"][:30] in table.stdout
    assert f"{told['id']} waits for a place" in stopped.stderr


# --- prune -------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of the world, and everything counts as put long ago."""
    for name, value in world.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cluster_rules, "YOUNG", -60.0)
    monkeypatch.setattr(home_rules, "YOUNG", -60.0)
    return Settings(nomad={"keep_versions": 1})


async def plan_of(settings: Settings) -> Plan:
    async with open_pruning(settings) as pruning:
        return await pruning.plan()


async def test_what_no_kept_version_needs_goes_from_all_servers(world: Cluster, settings: Settings) -> None:
    keep_one = {"MODALNOMAD_NOMAD__KEEP_VERSIONS": "1"}
    await world.cli("deploy", write(world, "pruned", VERSION="pruned one"), env=keep_one)
    await world.cli("deploy", write(world, "pruned", VERSION="pruned two"), env=keep_one)
    assert await jobs(world, "pruned") == {"pruned.show.r1", "pruned.show.r2"}  # young: the deploy left it alone

    async with open_pruning(settings) as pruning:
        plan = await pruning.plan()
        gone = await pruning.carry_out(plan)

    assert gone.problems == ()
    assert await jobs(world, "pruned") == {"pruned.show.r2"}
    assert {item.kind for item in gone.removed} >= {"job", "artifact", "secret"}
    left = await plan_of(settings)
    assert left.goes == ()
    async with world.router() as router:
        assert await router.get("pruned-show.localhost") == (200, '"pruned two"')


async def test_jobs_whose_records_are_elsewhere_stay(world: Cluster, settings: Settings) -> None:
    """Of another installation on the same Nomad, or of the same one where somebody mistook consul.prefix."""
    await world.cli("deploy", write(world, "ours"))
    await world.cli("deploy", write(world, "theirs", VERSION="their word"), env={"MODALNOMAD_CONSUL__PREFIX": "other"})
    other = settings.model_copy(update={"consul": settings.consul.model_copy(update={"prefix": "other"})})

    seen = [{item.name: item.goes for item in (await plan_of(one)).items} for one in (settings, other)]

    assert "ours.show.r1" in seen[0]
    assert "theirs.show.r1" not in seen[0]
    assert seen[1]["theirs.show.r1"] is False
    assert not [name for name in seen[1] if name.startswith("ours.")]
    for plan in (await plan_of(settings), await plan_of(other)):
        assert not [item for item in plan.goes if item.kind in {"artifact", "secret"}], "one of both needs it"


async def test_a_job_is_of_where_it_was_deployed_last(world: Cluster) -> None:
    """Who moves an installation to another prefix finds all jobs there already."""
    file = write(world, "moved")
    belongs = []
    for prefix in ("other", "modalnomad", "another"):
        await world.cli("deploy", file, env={"MODALNOMAD_CONSUL__PREFIX": prefix})
        belongs.append(world.nomad.state.jobs["modalnomad-main", "moved.show.r1"]["Meta"].get(META_PREFIX))

    assert belongs == ["other", None, "another"]


async def test_a_job_stays_while_a_replica_of_it_lives(world: Cluster, settings: Settings) -> None:
    keep_one = {"MODALNOMAD_NOMAD__KEEP_VERSIONS": "1"}
    stays = PROGRAM.replace("scaledown_window=2", "scaledown_window=600")  # however long the router takes to end
    await world.cli("deploy", write(world, "busy", stays, VERSION="busy one"), env=keep_one)
    async with world.router() as router:
        assert (await router.get("busy-show.localhost"))[0] == 200
    # No router drains the old one.
    await world.cli("deploy", write(world, "busy", stays, VERSION="busy two"), env=keep_one)

    found = {item.name: (item.goes, item.why) for item in (await plan_of(settings)).items}

    assert found["busy.show.r1"] == (False, "a replica of it lives")
    assert found["busy.show.r2"] == (False, "a kept version needs it")


async def test_things_of_a_deploy_under_way_stay(world: Cluster, settings: Settings) -> None:
    keep_one = {"MODALNOMAD_NOMAD__KEEP_VERSIONS": "1"}
    await world.cli("deploy", write(world, "held"), env=keep_one)
    await world.cli("deploy", write(world, "held", VERSION="two"), env=keep_one)
    async with open_pruning(settings) as pruning, open_records(settings) as records:
        discovery = records.discovery
        plan = await pruning.plan()
        assert "held.show.r1" in {item.name for item in plan.goes}
        async with discovery.lock("deploy-main-held", lifetime=30.0):
            assert "held.show.r1" not in {item.name for item in (await pruning.plan()).goes}
            gone = await pruning.carry_out(plan)
        assert "held.show.r1" not in {item.name for item in gone.removed}
        assert await jobs(world, "held") == {"held.show.r1", "held.show.r2"}
        assert "held.show.r1" in {item.name for item in (await pruning.carry_out(plan)).removed}


# --- router ------------------------------------------------------------------------------------------------------


async def test_a_router_whose_environment_nomad_does_not_have_says_so_and_serves(world: Cluster) -> None:
    async with world.router("--env", "nowhere") as router:
        told = await router.told("WARNING", "no namespace modalnomad-nowhere")
        assert "`modalnomad setup --env nowhere` makes it" in told
        assert (await router.get("nowhere.localhost"))[0] == 404


async def test_a_router_of_a_nomad_that_was_never_prepared_says_so(world: Cluster) -> None:
    async with FakeNomad() as bare, world.router(env={"NOMAD_ADDR": bare.address}) as router:
        assert "until `modalnomad setup` makes it" in await router.told("WARNING", "no namespace of an environment")


# --- deploy ------------------------------------------------------------------------------------------------------


async def test_a_deploy_without_a_router_says_so_and_where_it_will_be(world: Cluster) -> None:
    answer = await world.cli("deploy", write(world, "lonely"))
    checked = await world.cli("deploy", write(world, "lonely", VERSION="two"), "--check", code=1)

    assert "lonely/show → http://lonely-show.localhost:8700" in answer.stdout
    assert "No router runs: `modalnomad router` serves it." in answer.stdout
    assert "no router runs, and nodes get their code from routers" in checked.stderr
    assert "App lonely stays v1" in checked.stderr


async def test_a_deploy_that_changes_nothing_puts_jobs_right(world: Cluster) -> None:
    file = write(world, "same")
    await world.cli("deploy", file)

    async def url() -> str:
        return str((await calls.get("/v1/job/same.show.r1", **space))["TaskGroups"][0]["Tasks"][0]["Artifacts"][0])

    space = {"namespace": "modalnomad-main"}
    moved = {"MODALNOMAD_ARTIFACTS__URL": "http://127.0.0.2:8702"}
    async with Calls(world.nomad.address) as calls:
        assert "127.0.0.2" not in await url()
        answer = await world.cli("deploy", file, env=moved)
        assert "skipped" not in answer.stdout
        assert "Jobs registered anew, as they are made now: show.\nApp same stays v1: its program" in answer.stdout
        assert "127.0.0.2" in await url()

        answer = await world.cli("deploy", file, "--tag", "again")
        assert "Jobs registered anew, as they are made now: show.\nApp same deployed as v2" in answer.stdout
        assert "127.0.0.2" not in await url()

        await calls.call("DELETE", "/v1/job/same.show.r1", **space)
        (told,) = (await world.cli("deploy", file, "--json")).records()
        assert (told["version"], told["skipped"], told["renewed"]) == (2, True, ["show"])
        assert (await calls.get("/v1/job/same.show.r1", **space))["Stop"] is False

        (told,) = (await world.cli("deploy", file, "--json")).records()
        assert (told["version"], told["skipped"], told["renewed"]) == (2, True, [])
        assert "Deployment skipped: nothing changed since v2" in (await world.cli("deploy", file)).stdout


async def test_environments_are_made_on_all_nodes_before_a_version_is_published(world: Cluster) -> None:
    second = world.nomad.add_node("second")
    file = write(world, "warmed")
    try:
        alone = await world.cli("deploy", file, "--prewarm")
        async with world.router():
            answer = await world.cli("deploy", file, "--prewarm")
    finally:
        await world.nomad.lose(second)

    assert "not on all nodes" in alone.stderr
    assert "no router runs" in alone.stderr
    assert "The environment of show is on 2 nodes" in answer.stderr
    assert "Deployment skipped" in answer.stdout


async def test_a_node_that_cannot_make_the_environment_is_told_and_fails_no_deploy(world: Cluster) -> None:
    async with world.router():
        answer = await world.cli(
            "deploy", write(world, "odd"), "--prewarm", env={"MODALNOMAD_NOMAD__PYTHON": "no-such-python"}
        )

    assert "the environment could not be made on 1 of 1 nodes" in answer.stderr
    assert "one has no program no-such-python" in answer.stderr
    assert "is ready on 1 of 1" not in answer.stderr
    assert "App odd deployed as v1" in answer.stdout


# --- secrets -----------------------------------------------------------------------------------------------------


async def test_a_new_version_of_a_secret_tells_whose_replicas_are_replaced(world: Cluster) -> None:
    first = await world.cli("secret", "create", "token", "WORD=one")
    unused = await world.cli("secret", "create", "token", "WORD=two", "--force")
    await world.cli("deploy", write(world, "user", PROGRAM.replace(INLINE, 'from_name("token")')))
    used = await world.cli("secret", "create", "token", "WORD=three", "--force")
    kept = await world.cli("secret", "create", "token", "WORD=4", "--force", env={"MODALNOMAD_VAULT__ROTATION": "0"})
    (record,) = (await world.cli("secret", "create", "token", "WORD=5", "--force", "--json")).records()

    assert "replace" not in first.stdout
    assert "No App that is served uses it." in unused.stdout
    assert "Used by user (environment main): within 30 s a router begins to replace" in used.stdout
    assert "running replicas keep the old values" in kept.stdout
    assert record["used_by"] == ["user"]


# --- servers that are away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "server"),
    [
        ("container list", "Consul"),
        ("secret list", "Vault"),
        ("gpu list", "Nomad"),
        ("deploy examples/hello.py", "Vault"),
    ],
)
async def test_a_server_that_is_away_is_named_with_its_address_and_setting(
    world: Cluster, tmp_path: Path, command: str, server: str
) -> None:
    answer = await world.cli(*command.split(), code=1, env={**DOWN, "MODALNOMAD_HOME": str(tmp_path / "home")})

    assert f"{server} at {CLOSED} does not answer" in answer.stderr
    assert f"({server.lower()}.address)" in answer.stderr


async def test_a_router_that_waits_for_its_first_table_can_be_stopped(world: Cluster, tmp_path: Path) -> None:
    env = {**world.env, "CONSUL_HTTP_ADDR": CLOSED, "MODALNOMAD_HOME": str(tmp_path / "home")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modalnomad", "router", "--port", "0", "--admin-port", "0", "--artifacts-port", "0"),
        cwd=ROOT,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"records below" not in await process.stderr.readline():
                assert not process.stderr.at_eof()
            process.terminate()
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 130
