"""The engine port, whatever runs the replicas."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import aclosing, suppress

import pytest
from modalnomad_sdk import contract

from modalnomad.model.errors import BackendError, NotFound
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Parameter, Resources, Scaling, SecretRef
from modalnomad.model.replica import PoolKey, ReplicaKey, ReplicaState
from modalnomad.model.revision import BuiltImage
from tests.support.engines import HELLO, IMAGE, Harness, program, revision_id, within
from tests.support.repository import persona

FAILED, GONE, STARTING = ReplicaState.FAILED, ReplicaState.GONE, ReplicaState.STARTING


def read_persona(name: str) -> str:
    return persona(name).read_text("utf-8")


# --- starting ----------------------------------------------------------------------------------------------------


async def test_a_started_replica_answers_at_its_address_and_names_itself(harness: Harness) -> None:
    revision = await harness.revision(HELLO)
    key = await harness.start(revision)

    replica = await harness.replica(key)
    ready = await harness.ask(key, contract.READY_PATH)
    answer = await harness.ask(key, "/there")

    assert (replica.state, replica.reason) == (STARTING, "a test")
    assert (ready.status, ready.headers[contract.HEADER_REPLICA]) == (200, f"{key.pool} 0.1")
    assert answer.body == b"hello /there"


async def test_the_address_takes_connections_before_the_program_is_ready(harness: Harness) -> None:
    key = await harness.start(await harness.revision(read_persona("hangs_in_import"), "f", startup_timeout=60))

    held = asyncio.ensure_future(harness.ask(key, contract.READY_PATH))
    await harness.engine.kill(key)

    with pytest.raises(ConnectionError):
        await within(held)


async def test_the_same_key_twice_starts_once(harness: Harness) -> None:
    revision = await harness.revision(program("import os; return str(os.getpid()).encode()"))
    key = ReplicaKey(PoolKey(revision.id), 0, 1)

    await asyncio.gather(*(harness.engine.start(key, f"caller {n}") for n in range(5)))
    first = (await harness.ask(key)).body
    await harness.engine.start(key, "late caller")

    assert [replica.key for replica in await harness.snapshot()] == [key]
    assert (await harness.ask(key)).body == first


async def test_other_numbers_epochs_and_parameters_are_other_replicas(harness: Harness) -> None:
    revision = await harness.revision(HELLO)
    keys = [
        await harness.start(revision),
        await harness.start(revision, 1),
        await harness.start(revision, 0, 2),
        await harness.start(revision, parameters='{"a":1}'),
    ]

    addresses = {await harness.address(key) for key in keys}

    assert {replica.key for replica in await harness.snapshot()} == set(keys)
    assert len(addresses) == len(keys)


async def test_an_unprepared_revision_is_not_found(harness: Harness) -> None:
    with pytest.raises(NotFound):
        await harness.engine.start(ReplicaKey(PoolKey(revision_id("none")), 0, 1), "a test")

    assert await harness.snapshot() == ()


async def test_preparing_twice_is_preparing_once(harness: Harness) -> None:
    revision = await harness.revision(HELLO)

    await asyncio.gather(*(harness.engine.prepare(revision) for _ in range(4)))
    key = await harness.started(revision)

    assert (await harness.ask(key)).status == 200


@pytest.mark.parametrize("missing", ["image", "bundle"])
async def test_what_is_missing_refuses_preparation_or_fails_the_start(harness: Harness, missing: str) -> None:
    """The machine that prepares is not always the one that runs it."""
    image = BuiltImage(digest=Digest("2" * 64 if missing == "image" else IMAGE), python="3.11")
    revision = await harness.revision(HELLO, image=image, prepare=False)
    if missing == "bundle":
        revision = revision.model_copy(update={"bundle": Digest("3" * 64)})

    try:
        await harness.engine.prepare(revision)
    except (BackendError, NotFound) as error:
        found = error.message
    else:
        failure = (await harness.until(await harness.start(revision), FAILED, GONE)).failure
        assert failure is not None
        assert failure.code == "start_failed"
        found = f"{failure.reason} {failure.detail}"

    assert ("222222222222" if missing == "image" else "3333") in found


async def test_a_cancelled_caller_leaves_the_replica_to_the_others(harness: Harness) -> None:
    revision = await harness.revision(HELLO)
    key = ReplicaKey(PoolKey(revision.id), 0, 1)
    impatient = asyncio.ensure_future(harness.engine.start(key, "impatient"))
    await asyncio.sleep(0)
    impatient.cancel()

    await harness.engine.start(key, "patient")

    assert (await harness.ask(key, contract.READY_PATH)).status == 200
    assert (await harness.replica(key)).reason == "impatient"


# --- what a replica is given ----------------------------------------------------------------------------------------

SHOW_ENVIRONMENT = program(
    """
import json, os
return json.dumps({**os.environ, "cwd": os.getcwd()}).encode()
"""
)


async def test_secrets_reach_the_replica_to_the_byte_and_later_ones_win(harness: Harness) -> None:
    hard = {
        "LINES": "a\n b\r\n\tc ",
        "QUOTES": "'\"\\$HOME `x` ${y}",
        "WIDE": "žluťoučký 🐎",
        "LONG": "x" * 30_000,
        "E": "",
    }
    await harness.secrets.create("hard", harness.environment, hard)
    await harness.secrets.create("late", harness.environment, {"E": "late"})
    refs = (SecretRef(name="hard"), SecretRef(name="late"))
    key = await harness.started(await harness.revision(SHOW_ENVIRONMENT, secrets=refs))

    seen = (await harness.ask(key)).json()

    assert {name: seen[name] for name in hard} == {**hard, "E": "late"}


async def test_a_secret_that_is_gone_fails_the_start_by_name(harness: Harness) -> None:
    await harness.secrets.create("brief", harness.environment, {"A": "s3cr3t"})
    revision = await harness.revision(HELLO, secrets=(SecretRef(name="brief"),))
    await harness.secrets.delete("brief", harness.environment)

    replica = await harness.until(await harness.start(revision), FAILED)

    assert replica.failure is not None
    assert "brief" in replica.failure.reason


async def test_the_environment_is_made_not_inherited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    image = BuiltImage(digest=IMAGE, python="3.11", env=(("COLOUR", "red"), ("MODALNOMAD_APP", "forged")))
    revision = await harness.revision(SHOW_ENVIRONMENT, image=image)
    seen = (await harness.ask(await harness.started(revision))).json()

    assert seen["COLOUR"] == "red"
    assert seen["MODAL_IS_REMOTE"] == "1"
    assert seen.get(contract.ENV_APP, "app") == "app"
    assert not {"PYTEST_CURRENT_TEST", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH"} & set(seen)


async def test_class_parameters_reach_the_replica(harness: Harness) -> None:
    text = """
import modal
app = modal.App("app")

@app.cls()
class Server:
    root: str = modal.parameter()
    count: int = modal.parameter(default=3)

    @modal.asgi_app()
    def site(self):
        async def web(scope, receive, send):
            if scope["type"] != "http":
                raise RuntimeError("no lifespan here")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": f"{self.root} {self.count}".encode()})
        return web
"""
    parameters = (Parameter(name="root", type="str"), Parameter(name="count", type="int", has_default=True, default=3))
    revision = await harness.revision(text, "Server", is_class=True, parameters=parameters)
    key = await harness.start(revision, parameters=json.dumps({"count": 7, "root": "ů/"}, separators=(",", ":")))

    assert (await harness.ask(key)).text == "ů/ 7"


async def test_a_replica_works_in_a_copy_of_the_bundle_of_its_own(harness: Harness) -> None:
    text = program(
        """
with open("prog.py", "a") as file:
    file.write("\\n# changed")
with open("prog.py") as file:
    return str(file.read().count("# changed")).encode()
"""
    )
    revision = await harness.revision(text)
    one, two = await harness.started(revision, 0), await harness.started(revision, 1)

    assert [(await harness.ask(key)).text for key in (one, one, two)] == ["3", "4", "3"]
    assert (await harness.ask(await harness.started(revision, 2))).text == "3"


# --- ends ----------------------------------------------------------------------------------------------------------


async def test_a_drained_replica_is_gone(harness: Harness) -> None:
    key = await harness.started(await harness.revision(HELLO))

    answer = await harness.ask(key, f"{contract.DRAIN_PATH}?idle_for=0", "POST")
    replica = await harness.until(key, GONE, FAILED)

    assert answer.status == 202
    assert (replica.state, replica.failure) == (GONE, None)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("raises_in_import", contract.Exit.USER_CODE_FAILED, "Traceback"), ("exits_at_once", 3, "leaving already")],
)
async def test_an_end_before_ready_is_a_failed_start_with_its_output(
    harness: Harness, name: str, code: int, said: str
) -> None:
    key = await harness.start(await harness.revision(read_persona(name), "f"))

    failure = (await harness.until(key, FAILED, GONE)).failure

    assert failure is not None
    assert (failure.code, failure.exit_code) == ("start_failed", code)
    assert said in failure.detail


async def test_a_replica_that_is_killed_from_outside_has_failed(harness: Harness) -> None:
    text = program("import os, signal; os.kill(os.getpid(), signal.SIGSEGV); return b''")
    key = await harness.started(await harness.revision(text))

    with suppress(ConnectionError):
        await harness.ask(key)
    failure = (await harness.until(key, FAILED, GONE)).failure

    assert failure is not None
    assert signal.SIGSEGV.name in failure.reason


async def test_ended_replicas_stay_in_the_snapshots_with_their_reason(harness: Harness) -> None:
    revision = await harness.revision(read_persona("raises_in_import"), "f")
    first = await harness.start(revision)
    await harness.until(first, FAILED)
    second = await harness.start(revision, epoch=2)
    await harness.until(second, FAILED)

    assert [replica.key.epoch for replica in await harness.snapshot()] == [1, 2]
    assert (await harness.replica(first)).failure is not None


# --- killing -------------------------------------------------------------------------------------------------------


async def test_kill_ends_the_replica_and_everything_it_started(harness: Harness) -> None:
    key = await harness.started(await harness.revision(read_persona("ignores_sigterm"), scaling=Scaling(max_inputs=10)))
    await harness.ask(key)

    await within(harness.engine.kill(key), 20)

    replica = await harness.replica(key)
    assert (replica.state, replica.failure) == (GONE, None)


@pytest.mark.parametrize("name", ["hangs_in_import", "slow_start"])
async def test_kill_ends_a_start(harness: Harness, name: str) -> None:
    key = await harness.start(await harness.revision(read_persona(name), "f", startup_timeout=60))

    await within(harness.engine.kill(key), 20)

    assert (await harness.replica(key)).state is GONE


async def test_kill_at_any_moment_of_a_start_leaves_nothing_running(harness: Harness) -> None:
    revision = await harness.revision(HELLO)
    for number in range(6):
        key = ReplicaKey(PoolKey(revision.id), number, 1)
        starting = asyncio.ensure_future(harness.engine.start(key, "a test"))
        await asyncio.sleep(0.002 * number)
        await within(harness.engine.kill(key), 20)
        await starting

        assert number == 0 or (await harness.replica(key)).state is GONE


async def test_killing_nobody_or_somebody_twice_is_nothing(harness: Harness) -> None:
    revision = await harness.revision(HELLO)
    await harness.engine.kill(ReplicaKey(PoolKey(revision.id), 9, 9))
    key = await harness.started(revision)

    await asyncio.gather(*(within(harness.engine.kill(key), 20) for _ in range(3)))
    await harness.engine.kill(key)

    assert (await harness.replica(key)).state is GONE


async def test_retiring_a_revision_ends_its_replicas_and_forgets_it(harness: Harness) -> None:
    revision = await harness.revision(HELLO)
    other = await harness.revision(HELLO + "\n# another")
    key, kept = await harness.started(revision), await harness.started(other)

    await within(harness.engine.retire(revision.id), 20)
    await harness.engine.retire(revision.id)
    await harness.engine.retire("never heard of")

    assert (await harness.replica(key)).state is GONE
    assert (await harness.ask(kept)).status == 200
    with pytest.raises(NotFound):
        await harness.start(revision, 1)


# --- watching ------------------------------------------------------------------------------------------------------


async def test_every_watcher_gets_the_present_snapshot_at_once_and_each_change(harness: Harness) -> None:
    revision = await harness.revision(HELLO)
    async with aclosing(harness.engine.watch()) as watch:  # type: ignore[type-var]
        assert await within(anext(watch)) == ()
        key = await harness.start(revision)
        assert [r.state for r in await within(anext(watch))] == [STARTING]
        assert [r.state for r in await harness.snapshot()] == [STARTING]
        await harness.engine.kill(key)
        while (states := [r.state for r in await within(anext(watch))]) == [STARTING]:
            pass  # it got its address, say
        assert states == [GONE]


# --- explaining ----------------------------------------------------------------------------------------------------


async def test_explain_says_whether_anything_could_run_it(harness: Harness) -> None:
    fine = await harness.revision(HELLO)
    impossible = await harness.revision(HELLO, resources=Resources(gpu=("H100:64",)), prepare=False)

    assert (await harness.engine.explain(fine)).answer == "yes"
    verdict = await harness.engine.explain(impossible)
    assert verdict.answer == "never"
    assert "H100:64" in verdict.reason
    assert await harness.snapshot() == ()
