"""Deploys on a cluster that fail, at every step: the old version goes on being served, nothing is half-applied, and
what is said names who was asked what, what came back, what holds now and what to do."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modalnomad.hashicorp.consul.routers import RouterInfo, encoded
from modalnomad.ports.discovery import PublishApp
from modalnomad.wiring.cluster import open_cluster
from tests.support.cluster_shop import World, settings_of, shop, words
from tests.support.engines import eventually
from tests.support.fakes.nomad.faults import Fault
from tests.support.nomad_calls import Calls
from tests.support.pace import turn

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),  # several commands, one after the other, each of which imports all it has
]

REGISTER = "(PUT|POST) /v1/jobs$"
BROKEN = """
@app.cls()
class Broken:
    @modal.enter()
    def load(self): raise RuntimeError("no model here")
    @modal.fastapi_endpoint()
    def ask(self): pass
"""
TWO_MORE = """
@app.function()
@modal.fastapi_endpoint()
def g(): return "2"
@app.function()
@modal.fastapi_endpoint()
def h(): return "3"
"""
LEAVES_LATE = """
@app.cls()
class Late:
    @modal.exit()
    def leave(self):
        while pathlib.Path({gate!r}).exists(): time.sleep(0.02)
    @modal.fastapi_endpoint()
    def g(self): return "{answer}"
"""
SCRIPT = """
import sys
import modalnomad.deploy.apply as apply
import modalnomad.render.environment as environment
import modalnomad.wiring.cluster_stage as stage
from modalnomad.__main__ import main
{}
sys.argv[0] = "modalnomad"
main()
"""
FORGETFUL = SCRIPT.format("environment.ORPHAN_FLOOR = 1")
IMPATIENT = SCRIPT.format("apply.SERVED_WITHIN, stage.TOLD_AFTER = 1, 0.2")
WAITING = SCRIPT.format("stage.TOLD_AFTER = 0.2")
BEHIND, GHOST = "not taken up yet by the router ", "ghost (port 1)"
"""The other one may be named beside the ghost: it takes its time, too."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    async with shop(tmp_path_factory.mktemp("deploys")) as found:
        yield found


@pytest.fixture(autouse=True)
def _well(world: World) -> Any:
    """Faults of one test are not those of the next."""
    world.write()
    yield
    world.cluster.nomad.faults.clear()
    world.cluster.consul.clear_faults()


# --- before anything runs ------------------------------------------------------------------------------------------


async def test_a_secret_that_is_not_there(world: World) -> None:
    world.write(function='secrets=[modal.Secret.from_name("nope")]')
    await world.refused("there is no secret nope in environment main", "modalnomad secret create nope")


async def test_a_program_that_cannot_be_read(world: World) -> None:
    world.write(above="raise RuntimeError('broken here')")
    await world.refused("RuntimeError: broken here")


async def test_values_of_the_program_that_cannot_be_stored(world: World) -> None:
    """The platform's key may be read, and no secret written."""
    vault = world.cluster.vault
    rights = 'path "secret/data/modalnomad-platform/*" { capabilities = ["read"] }'
    token = await asyncio.to_thread(lambda: vault.token(vault.policy("reads-key", rights), "default"))
    world.write(function='secrets=[modal.Secret.from_dict({"WORD": "hidden-word"})]')
    told = await world.refused("403", "VAULT_TOKEN (vault.token)", "nothing was changed", env={"VAULT_TOKEN": token})
    assert "hidden-word" not in told


async def test_an_image_that_cannot_be_built(world: World) -> None:
    world.write(function='image=modal.Image.debian_slim().pip_install("no-such-package-of-ours==1")')
    await world.refused("no-such-package-of-ours", "nothing was changed")


async def test_an_environment_that_is_not_set_up(world: World) -> None:
    await world.refused(
        'nonexistent namespace "modalnomad-nope"', "modalnomad setup --env nope", arguments=("--env", "nope")
    )


async def test_a_gpu_no_node_has(world: World) -> None:
    world.write(function='gpu="H100"')
    await world.refused(
        "f cannot run here: no node has the GPU it asks for (it asks for H100; modalnomad gpu list shows"
    )


async def test_a_store_of_artifacts_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = {"MODALNOMAD_ARTIFACTS__STORE": str(tmp_path / "file")}
    await world.refused(str(tmp_path / "file"), "nothing was changed", env=env)


async def test_a_bucket_that_is_not_reached(world: World) -> None:
    env = {
        "MODALNOMAD_ARTIFACTS__STORE": "s3://bucket",
        "AWS_ENDPOINT": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    await world.refused("s3://bucket", "nothing was changed", env=env)


# --- Nomad ---------------------------------------------------------------------------------------------------------

VALIDATION = "1 error occurred:\n\t* Task group f validation failed: 1 error occurred:\n\t* Task f has no driver"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: f.refuse(REGISTER, text=VALIDATION), "answered POST /v1/jobs with 500: 1 error occurred: * Task"),
        (lambda f: f.refuse(REGISTER, status=403, text="Permission denied"), "with 403: Permission denied"),
        (lambda f: f.refuse("/plan$", times=9), "/plan with 500: No cluster leader"),
        (lambda f: f.refuse("/dispatch$", times=99), "/dispatch with 500: No cluster leader"),
        (lambda f: f.refuse("GET /v1/jobs$", times=99), "answered GET /v1/jobs with 500: No cluster leader"),
        (lambda f: f.cut(REGISTER), "does not answer POST /v1/jobs"),
    ],
    ids=["validation", "forbidden", "plan", "dispatch", "list", "cut-after-effect"],
)
async def test_nomad_refuses(world: World, spoil: Callable[[Any], Fault], says: str) -> None:
    fault = spoil(world.cluster.nomad.faults)
    await world.refused(says, "nothing was changed")
    assert fault.seen


async def test_one_of_several_jobs_is_refused(world: World) -> None:
    """Those that were registered before go again."""
    world.write(more=TWO_MORE)
    fault = world.cluster.nomad.faults.refuse(REGISTER, text=VALIDATION)
    await world.refused("answered POST /v1/jobs with 500", "nothing was changed: App shop stays v1")
    assert fault.seen == 1


# --- replicas of the new version -----------------------------------------------------------------------------------


async def test_a_version_that_cannot_be_imported_where_it_runs(world: World) -> None:
    world.write(above="if 'MODALNOMAD_REPLICA' in os.environ: raise RuntimeError('not here')")
    told = await world.refused("RuntimeError: not here", "shop/f does not start", "App shop stays v1")
    assert "Starting f before anything is switched over" in told


async def test_a_version_that_does_not_pass_its_check(world: World) -> None:
    world.write(more=BROKEN)
    await world.refused("no model here", "shop/Broken does not start", "stays v1", arguments=("--check",))


async def test_a_version_that_never_gets_ready(world: World) -> None:
    world.write(above="if 'MODALNOMAD_REPLICA' in os.environ: time.sleep(100)", function="startup_timeout=1")
    await world.refused("shop/f", "within", "nothing was changed: App shop stays v1")


async def test_a_version_that_consul_never_calls_ready(world: World) -> None:
    await world.answer()
    world.write(function="startup_timeout=3")  # in which it is ready by itself: else it is the one that fails
    world.cluster.consul.empty(999, path="/v1/health/service/modalnomad-replica")
    env = {"MODALNOMAD_NOMAD__GRACE_PERIOD": "0"}
    says = "shop/f was started, and Consul did not say within 3 s that its health check passes", "stays v"
    await world.refused(*says, "is Nomad's agent on its node told where Consul is?", env=env)


async def test_what_was_begun_and_cannot_be_taken_back_is_told(world: World) -> None:
    """Beside what failed or happened."""
    before, stored = await world.at_rest(), world.records()
    left = "what was brought to Nomad for shop/f could not be taken back", "It serves nobody; a deploy"
    async with world.held() as deploy, world.cluster.nomad.away():
        deploy.process.send_signal(signal.SIGINT)
        assert await deploy.ended() == 130, deploy.said
    assert "Interrupted: nothing was published" in deploy.said
    assert "all is as it was" not in deploy.said
    faults = world.cluster.nomad.faults
    faults.refuse("/dispatch$", times=99)
    faults.refuse("DELETE .*/job/", times=99)
    await world.answer()
    world.write(answer="three")
    failed = await world.cluster.cli("deploy", str(world.file), code=1)
    faults.clear()

    assert "/dispatch with 500: No cluster leader" in words(failed)
    assert "nothing was changed: App shop stays v" in words(failed)
    for said in (" ".join(deploy.said.split()), words(failed)):
        assert all(text in said for text in left), said
    assert world.records() == stored
    present = world.jobs() - before
    assert len([id for id in present if "/" not in id]) == 2
    async with Calls(world.cluster.nomad.address) as calls:
        for id in present:
            await spoil(calls, id, "purge")
    await world.until_jobs(before)


# --- Consul --------------------------------------------------------------------------------------------------------


async def test_consul_refuses_the_record(world: World) -> None:
    world.cluster.consul.fail(99, path="/v1/txn")
    await world.refused("answered PUT /v1/txn with 500: No cluster leader", "nothing was changed: App shop stays v1")


async def test_what_was_begun_stays_while_consul_does_not_say_who_needs_it(world: World) -> None:
    before = await world.at_rest()
    async with world.held() as deploy:
        world.cluster.consul.fail(99, path="/v1/kv/modalnomad/apps/")
        deploy.process.send_signal(signal.SIGINT)
        assert await deploy.ended() == 130, deploy.said
    world.cluster.consul.clear_faults()
    said = " ".join(deploy.said.split())
    assert "was brought to Nomad for shop/f was not taken back: Consul at" in said
    assert "Interrupted: nothing was published" in said
    async with Calls(world.cluster.nomad.address) as calls:
        for id in world.jobs() - before:
            await spoil(calls, id, "purge")
    await world.until_jobs(before)


async def test_somebody_else_writes_the_record_meanwhile(world: World) -> None:
    before = await world.at_rest()
    async with world.held() as deploy, open_cluster(settings_of(world)) as other:
        record = await other.discovery.app("shop", "main")
        assert record is not None
        changed = record.model_copy(update={"serial": record.serial + 1})
        await other.discovery.publish(PublishApp(changed, record.serial))
    assert await deploy.ended() == 1, deploy.said
    assert "App shop" in deploy.said
    assert "nothing was changed" in deploy.said
    await world.until_jobs(before)
    assert await world.answer() == "one"


async def test_a_host_another_app_has(world: World) -> None:
    world.write(endpoint='label="shop-f"')
    await world.refused(
        "other/f would take shop-f.localhost, which shop/f in environment main has", arguments=("--name", "other")
    )


async def test_two_apps_that_want_one_host_at_once(world: World) -> None:
    """Both have looked before either is published: one of them gets it."""
    async with world.held("--check", "--name", "left", endpoint='label="both"') as left:
        present = world.jobs()
        async with world.running("deploy", str(world.file), "--check", "--name", "right") as right:
            await world.started(right, present)
            world.gate.unlink()
            codes = await left.ended(), await right.ended()
    assert sorted(codes) == [0, 1], left.said + right.said
    winner, loser = (left, right) if codes[0] == 0 else (right, left)
    name = "left" if winner is left else "right"
    assert f"wants the host both.localhost, which {name}/f in environment main has" in loser.said
    assert await world.answer("both.localhost") == "two"
    await world.cluster.cli("app", "stop", name, "--yes")


async def test_two_deploys_of_one_app_at_once_and_ctrl_c(world: World) -> None:
    async with world.unchanged(), world.held() as deploy:
        done = await world.cluster.cli("deploy", str(world.file), code=1)
        assert "App shop in environment main is being changed by somebody else" in words(done)
        assert f"process {deploy.process.pid} on " in words(done)
        assert "wait until that is done" in words(done)
        deploy.process.send_signal(signal.SIGINT)
        assert await deploy.ended() == 130
        assert "Interrupted: nothing was published" in deploy.said


async def test_a_deploy_that_is_killed(world: World) -> None:
    """Nobody is left to tidy up: its replica goes when no router asks for it, its lock with its session."""
    before, stored, store = await world.at_rest(), world.records(), world.cluster.consul.store
    async with world.held(window=2, script=FORGETFUL) as deploy:
        deploy.process.kill()
        await deploy.ended()
        # The router's own lock is another one.
        held = f"process {deploy.process.pid} on "
        (lock,) = (entry for entry in store.keys.values() if held.encode() in entry.value)
        store.sessions[lock.session].expires = float("inf")  # however long the commands below take
    assert world.records() == stored
    assert await world.answer() == "one"
    done = await world.cluster.cli("deploy", str(world.file), code=1)
    assert held in words(done)
    (parent,) = (id for id in world.jobs() - before if "/" not in id)
    await world.until_jobs(before | {parent})
    store.end_session(lock.session)  # as its TTL would
    store.delays.clear()
    async with world.held(answer="other") as deploy:
        deploy.process.send_signal(signal.SIGTERM)
        assert await deploy.ended() == 130
    await world.until_jobs(before | {parent})


# --- once it is published ------------------------------------------------------------------------------------------


@asynccontextmanager
async def absent_router(world: World) -> AsyncIterator[None]:
    """One that says it runs, and does not follow."""
    store = world.cluster.consul.store
    session = store.add_session(name="ghost", ttl=0.0, ttl_text="", lock_delay=0.0, behavior="delete", node="n")
    info = RouterInfo(name="ghost", port=1, tls=False)
    assert store.acquire("modalnomad/routers/ghost", encoded(info), 0, session.id)
    try:
        yield
    finally:
        store.end_session(session.id)


async def test_a_router_that_never_takes_it_up(world: World) -> None:
    world.write(answer="late")
    async with absent_router(world), world.running("deploy", str(world.file), script=IMPATIENT) as deploy:
        assert await deploy.ended() == 1
    said = " ".join(deploy.said.split())
    assert GHOST in said.partition(BEHIND)[2]
    assert "did not take it up within 1 s" in said
    assert "App shop is stored as v2" in said
    await world.until_answer("late")


async def test_ctrl_c_once_it_is_published(world: World) -> None:
    world.write(answer="later")
    stored = world.records()
    async with absent_router(world), world.running(script=WAITING) as deploy:
        await deploy.until(BEHIND)
        assert world.records() != stored
        deploy.process.send_signal(signal.SIGINT)
        assert await deploy.ended() == 130
    assert "Interrupted, but App shop is published: v3" in deploy.said
    assert GHOST in deploy.said
    await world.until_answer("later")


async def test_a_new_version_is_ready_before_anybody_is_sent_there(world: World) -> None:
    answers: list[str] = []
    old = await world.answer()

    async def ask() -> None:
        while answers[-3:] != ["warm"] * 3:
            answers.append(await world.answer())
            await asyncio.sleep(turn())

    asking = world.cluster.tasks.spawn(ask(), "asking")
    async with world.held(answer="warm"):
        assert set(answers) == {old}, "its replica runs, and is not ready"
    await asking
    assert answers == sorted(answers, key=["warm"].count), "once on the new version, always"
    started = [event["reason"] for event in world.router.events if event["event"] == "replica"]
    assert "deploy: as warm as the version before" in started


async def test_recreate_ends_the_old_replicas_at_once(world: World) -> None:
    before = {id for id in await world.at_rest() if "/" in id}
    world.write(answer="again")
    await world.cluster.cli("deploy", str(world.file), "--strategy", "recreate")
    assert not before & world.jobs()
    assert await world.answer() == "again"


async def test_scaling_by_hand(world: World) -> None:
    await world.cluster.cli("app", "scale", "shop/f", "--min", "2")
    await world.cluster.nomad.until(lambda state: sum("shop.f." in id and "/" in id for id in world.jobs()) == 2)
    (shown,) = (await world.cluster.cli("app", "scale", "shop/f", "--json")).records()
    assert (shown["min_containers"], shown["by_hand"]) == (2, ["min_containers"])
    await world.cluster.cli("app", "scale", "shop/f", "--reset")


async def test_what_somebody_did_to_jobs_by_hand_is_put_right_by_the_next_deploy(world: World) -> None:
    """Though nothing of the program changed. Replicas that run are left alone."""
    world.write(answer="mended", more=TWO_MORE)
    await world.cluster.cli("deploy", str(world.file))
    running = {id for id in await world.at_rest() if "/" in id}
    jobs = await world.served_jobs()
    async with Calls(world.cluster.nomad.address) as calls:
        await spoil(calls, jobs["f"], "stop")
        await spoil(calls, jobs["g"], "purge")
        await spoil(calls, jobs["h"], "change")
    done = await world.cluster.cli("deploy", str(world.file))
    assert "Jobs registered anew, as they are made now: f, g, h." in done.stdout
    said = words(done)
    assert running <= world.jobs()
    assert f"the job {jobs['f']} was stopped" in said
    assert f"the job {jobs['h']} was changed by hand" in said
    state = world.cluster.nomad.state.jobs
    for id in (await world.served_jobs()).values():
        job = state["modalnomad-main", id]
        assert not job["Stop"]
        assert job["TaskGroups"][0]["Tasks"][0]["Resources"]["CPU"] == 100
    assert await world.answer("shop-g.localhost") == "2"


async def test_a_job_that_was_kept_cannot_be_put_right(world: World) -> None:
    """Once the new version holds: that is said, and it is served."""
    world.write(answer="kept", more=TWO_MORE)
    await world.cluster.cli("deploy", str(world.file))
    job = (await world.served_jobs())["h"]
    world.cluster.nomad.faults.refuse(f"/v1/job/{job}/plan$")
    done = await world.cluster.cli("deploy", str(world.file), "--tag", "again", code=1)
    assert f"POST /v1/job/{job}/plan with 500: No cluster leader" in words(done)
    assert "App shop is stored as v" in words(done)
    assert await world.answer() == "kept"


async def spoil(calls: Calls, id: str, harm: str) -> None:
    """As somebody with Nomad's command line would."""
    if harm == "change":
        job = await calls.get(f"/v1/job/{id}", namespace="modalnomad-main")
        job["TaskGroups"][0]["Tasks"][0]["Resources"]["CPU"] += 1
        await calls.put("/v1/jobs", {"Job": job}, namespace="modalnomad-main")
    else:
        await calls.call(
            "DELETE", f"/v1/job/{id.replace('/', '%2F')}", namespace="modalnomad-main", purge=harm == "purge"
        )


async def test_a_rollback_to_a_version_whose_job_was_purged(world: World) -> None:
    jobs, old = await world.served_jobs(), await world.answer()
    world.write(answer="newer")
    await world.cluster.cli("deploy", str(world.file))
    async with Calls(world.cluster.nomad.address) as calls:
        await spoil(calls, jobs["f"], "purge")
    await world.cluster.cli("app", "rollback", "shop")
    assert await world.answer() == old


async def test_a_rollback_while_the_replicas_it_replaced_still_leave(world: World) -> None:
    """One of that very version that is on its way out is neither waited for nor taken for warm: when it was gone, the
    rollback failed, as if the program did not start."""
    gate, agent, host = str(world.gate), world.cluster.consul.agent, "shop-late-g.localhost"
    world.gate.touch()
    try:
        world.write(answer="good", more=LEAVES_LATE.format(gate=gate, answer="good"))
        await world.cluster.cli("deploy", str(world.file))
        assert await world.answer(host) == "good"
        revision = world.cluster.nomad.state.jobs["modalnomad-main", (await world.served_jobs())["Late"]]["Meta"]
        world.write(answer="bad", more=LEAVES_LATE.format(gate=gate, answer="bad"))
        await world.cluster.cli("deploy", str(world.file))
        assert await world.answer(host) == "bad"

        def leaves() -> bool:
            found = agent.health("modalnomad-replica", False)[1]
            old = [each["Checks"] for each in found if each["Service"]["Meta"]["revision"] == revision["revision"]]
            return bool(old) and any(check["Status"] != "passing" for check in old[0])

        await eventually(leaves)
        replaced = {id for id in world.jobs() if "/" in id}
        await world.cluster.cli("app", "rollback", "shop")
        assert await world.answer(host) == "good"
    finally:
        world.gate.unlink(missing_ok=True)
    await world.cluster.nomad.until(lambda state: not replaced & world.jobs())


async def test_a_rollback_to_a_version_whose_source_is_gone(world: World) -> None:
    artifacts = Path(world.cluster.env["MODALNOMAD_HOME"]) / "artifacts-store"
    world.write(answer="another source")
    await world.cluster.cli("deploy", str(world.file))
    async with world.unchanged():
        kept = {file: file.read_bytes() for file in artifacts.iterdir() if file.is_file()}
        for file in kept:
            file.unlink()
        done = await world.cluster.cli("app", "rollback", "shop", code=1)
        for file, content in kept.items():
            file.write_bytes(content)
    assert " of App shop cannot be served again, as something of it was removed: its source" in words(done)
    assert "deploy that program again" in words(done)


async def test_nomad_goes_away_while_a_replica_starts(world: World) -> None:
    """Its start goes on without it, and Consul tells that it is ready."""
    async with world.held(answer="through") as deploy, world.cluster.nomad.away():
        world.gate.unlink()
        assert await deploy.ended() == 0, deploy.said
    assert await world.answer() == "through"
