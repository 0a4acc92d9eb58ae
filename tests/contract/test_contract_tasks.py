"""What a node does with a raw_exec task: the fake's nodes run them as a real Nomad's client does."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey
from tests.support.fakes.faults import Faults
from tests.support.fakes.tasks.templates import to_json
from tests.support.leftovers import wait_gone
from tests.support.nomad_calls import Calls
from tests.support.nomad_tasks import (
    GROUP,
    NAMESPACE,
    NOMADS,
    VAULT,
    Place,
    descendants,
    events_of,
    shell,
    task_place,
)
from tests.support.openbao import OpenBao

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_RESTARTED = ("Not Restarting", "Policy allows no restarts")
STARTED = ("Started", "Task started by client")
FETCHING = ("Downloading Artifacts", "Client is downloading artifacts")
OF_THE_HOST = {"NOMAD_CPU_CORES", "NOMAD_PARENT_CGROUP"}
"""Variables that depend on how the machine does control groups; the fake has none."""
PRINT_ENV = "tr '\\0' '\\n' < /proc/self/environ"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=NOMADS)
async def place(
    request: pytest.FixtureRequest, openbao: OpenBao, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    """One for all tests of each kind: a real one takes seconds to start."""
    async with task_place(request.param, openbao, tmp_path_factory.mktemp("tasks")) as found:
        yield found


def sha256(data: bytes) -> str:
    """As a checksum option."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def archive(*entries: tuple[str, bytes | str, int]) -> bytes:
    """tar.gz of (name, bytes or a link's target, mode)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, data, mode in entries:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.mtime = mode, 1_000_000_000
            if isinstance(data, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, data
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


# --- environment and interpolation ---------------------------------------------------------------------------


async def test_environment(place: Place) -> None:
    """All that Nomad tells a task, and what the agent itself has."""
    task = shell(PRINT_ENV, Meta={"k-d": "x"}, Env={"OWN": "a=b", "NOMAD_OWN": "1"})
    child = await place.start("environment", task)
    alloc = await place.ended(child)
    found = dict(line.split("=", 1) for line in (await place.log(alloc)).splitlines())
    (port,) = alloc["AllocatedResources"]["Shared"]["Ports"]
    folder = found["NOMAD_ALLOC_DIR"].removesuffix("/alloc")
    address = f"127.0.0.1:{port['Value']}"
    expected = {
        "OWN": "a=b",
        "NOMAD_OWN": "1",
        "NOMAD_ALLOC_ID": alloc["ID"],
        "NOMAD_SHORT_ALLOC_ID": alloc["ID"][:8],
        "NOMAD_ALLOC_NAME": f"{child}.{GROUP}[0]",
        "NOMAD_ALLOC_INDEX": "0",
        "NOMAD_ALLOC_DIR": f"{folder}/alloc",
        "NOMAD_TASK_DIR": f"{folder}/app/local",
        "NOMAD_SECRETS_DIR": f"{folder}/app/secrets",
        "NOMAD_JOB_ID": child,
        "NOMAD_JOB_NAME": child,
        "NOMAD_JOB_PARENT_ID": child.split("/")[0],
        "NOMAD_GROUP_NAME": GROUP,
        "NOMAD_TASK_NAME": "app",
        "NOMAD_NAMESPACE": NAMESPACE,
        "NOMAD_REGION": "global",
        "NOMAD_DC": "dc1",
        "NOMAD_CPU_LIMIT": "50",
        "NOMAD_MEMORY_LIMIT": "64",
        **{f"NOMAD_{kind}PORT_http": str(port["Value"]) for kind in ("", "HOST_", "ALLOC_")},
        **{f"NOMAD_{kind}IP_http": "127.0.0.1" for kind in ("", "HOST_")},
        **{f"NOMAD_{kind}ADDR_http": address for kind in ("", "HOST_")},
        **{f"NOMAD_META_{key}": "R" for key in ("revision", "REVISION")},
        **{f"NOMAD_META_{key}": "P" for key in ("pool", "POOL")},
        **{f"NOMAD_META_{key}": "0" for key in ("number", "NUMBER")},
        **{f"NOMAD_META_{key}": "" for key in ("reason", "REASON", "epoch", "EPOCH")},
        **{f"NOMAD_META_{key}": "x" for key in ("k_d", "K_D")},
    }
    inherited = {name for name in found if not name.startswith("NOMAD_")} - {"OWN", "PWD"}
    assert {name: value for name, value in found.items() if name not in OF_THE_HOST | inherited | {"PWD"}} == expected
    assert inherited == {"PATH", "HOME"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${NOMAD_META_number}.${NOMAD_META_pool}", "0.P"),
        ("<${NOMAD_META_reason}>", "<>"),  # not given, but allowed: empty
        ("${NOMAD_META_unknown}", "${NOMAD_META_unknown}"),
        ("${node.datacenter} ${attr.kernel.name}", "dc1 linux"),
        ("$PATH $(id) %{x}", "$PATH $(id) %{x}"),
        ("$${NOMAD_META_pool}", "$P"),
        ('${env["HOME"]}', '${env["HOME"]}'),
    ],
)
async def test_env_is_interpolated_where_a_name_is_known(place: Place, text: str, value: str) -> None:
    alloc = await place.run("env", shell('printf %s "$OWN"', Env={"OWN": text}))
    assert await place.log(alloc) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${NOMAD_META_number}.${NOMAD_META_pool}", "0.P"),
        ("<${NOMAD_META_reason}>", "<>"),
        ('${env["OWN"]} ${env.OWN} ${OWN}', "own own own"),
        ("${attr.kernel.name}", "linux"),
        ("$HOME $(id)", "$HOME $(id)"),
        ("$${NOMAD_META_pool} %%{x}", "${NOMAD_META_pool} %{x}"),
    ],
)
async def test_arguments_are_templates(place: Place, text: str, value: str) -> None:
    task = {"Config": {"command": "/bin/echo", "args": [text]}, "Env": {"OWN": "own"}}
    alloc = await place.run("argument", task)
    assert events_of(alloc) == [STARTED, ("Terminated", "Exit Code: 0")]
    assert await place.log(alloc) == value + "\n"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"args": ["${NOMAD_META_unknown}"]}, 'Unknown variable: There is no variable named "NOMAD_META_unknown".'),
        ({"args": ["%{x}"]}, 'Invalid template control keyword: "x" is not a valid template control keyword.'),
        ({"nope": 1}, 'Invalid label: No argument or block type is named "nope".'),
    ],
)
async def test_a_driver_configuration_that_cannot_be_read(place: Place, config: dict[str, Any], text: str) -> None:
    alloc = await place.run("validation", {"Config": {"command": "/bin/true", **config}})
    (kind, message), last = events_of(alloc)
    assert kind == "Failed Validation"
    assert text in message
    assert (last, alloc["ClientStatus"]) == (NOT_RESTARTED, "failed")


# --- artifacts -----------------------------------------------------------------------------------------------


async def test_artifacts_as_file_and_unpacked(place: Place) -> None:
    program, bundle = b"#!program\n", archive(("a/run.sh", b"#!/bin/sh\n", 0o755), ("b", b"b", 0o400), ("l", "b", 0))
    place.files.files |= {"artifacts/p": program, "artifacts/b.tar.gz": bundle}
    task = shell(
        "cd local && cat program.pyz && stat -c '%n %a %s %Y' root/a/run.sh root/b root/l && find . -type l",
        Artifacts=[
            {
                "GetterSource": f"{place.files.address}/artifacts/p",
                "GetterMode": "file",
                "GetterOptions": {"checksum": sha256(program)},
                "RelativeDest": "local/program.pyz",
            },
            {
                "GetterSource": f"{place.files.address}/artifacts/b.tar.gz?checksum={sha256(bundle)}",
                "RelativeDest": "local/root",
            },
        ],
    )
    alloc = await place.run("artifacts", task)
    assert events_of(alloc) == [FETCHING, STARTED, ("Terminated", "Exit Code: 0")]
    # A link becomes an empty file: what needs links cannot come this way.
    expected = ["#!program", "root/a/run.sh 755 10 1000000000", "root/b 400 1 1000000000", "root/l 0 0 1000000000"]
    assert (await place.log(alloc)).splitlines() == expected


async def test_an_artifact_with_another_checksum(place: Place) -> None:
    place.files.files["x"] = b"other"
    wrong = "0" * 64
    artifact = {
        "GetterSource": f"{place.files.address}/x",
        "GetterMode": "file",
        "GetterOptions": {"checksum": f"sha256:{wrong}"},
        "RelativeDest": "local/x",
    }
    alloc = await place.run("checksum", shell("true", Artifacts=[artifact]))
    started, (kind, message), last = events_of(alloc)
    assert (started, kind, last) == (FETCHING, "Failed Artifact Download", NOT_RESTARTED)
    assert message.startswith(f'failed to download artifact "{place.files.address}/x": getter subprocess failed: ')
    got = hashlib.sha256(b"other").hexdigest()
    assert message.endswith(f"/app/local/x.\nExpected: {wrong}\nGot: {got}\n*sha256.Digest")
    details = alloc["TaskStates"]["app"]["Events"][-2]["Details"]
    assert details == {"download_error": message}


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("not-there", None, "bad response code: 404"),
        ("escapes.tar.gz", archive(("../../evil", b"x", 0o644)), "entry contains '..': ../../evil"),
        ("torn.tar.gz", b"nope", "Error opening a gzip reader for "),
        (
            "many.tar.gz",
            archive(*((f"f{number}", b"", 0o644) for number in range(4096))),
            "tar archive contains too many files: 4097 > 4096",
        ),
    ],
)
async def test_an_artifact_that_cannot_be_used(place: Place, name: str, data: bytes | None, text: str) -> None:
    if data is not None:
        place.files.files[name] = data
    artifact = {"GetterSource": f"{place.files.address}/{name}", "RelativeDest": "local/root"}
    alloc = await place.run("artifact", shell("true", Artifacts=[artifact]))
    _, (kind, message), last = events_of(alloc)
    assert (kind, last) == ("Failed Artifact Download", NOT_RESTARTED)
    assert f"failed to download artifact: {text}" in message


async def test_an_artifact_of_a_host_that_is_not_there(place: Place) -> None:
    artifact = {"GetterSource": "http://127.0.0.1:1/x"}
    alloc = await place.run("refused", shell("true", Artifacts=[artifact]))
    message = events_of(alloc)[1][1]
    assert message.endswith('Get "http://127.0.0.1:1/x": dial tcp 127.0.0.1:1: connect: connection refused')


# --- secrets -------------------------------------------------------------------------------------------------


def template(path: str, name: str, **more: Any) -> dict[str, Any]:
    """As the platform renders one secret."""
    return {
        "EmbeddedTmpl": '{{ with secret "' + path + '" }}{{ .Data.data | toJSON }}{{ end }}',
        "DestPath": f"secrets/{name}.json",
        "Once": True,
        "ChangeMode": "noop",
        "ErrMissingKey": True,
        "Perms": "0400",
        **more,
    }


def put(place: Place, name: str, values: dict[str, str]) -> str:
    """Store a secret → its path in a template."""
    with place.bao.client() as client:
        client.secrets.kv.v2.create_or_update_secret(name, values, mount_point=place.kv)
    return f"{place.kv}/data/{name}"


AWKWARD = {
    "PLAIN": "a b",
    "LINES": "one\ntwo\r\n-----BEGIN X-----\n",
    "MARKS": "\"'\\#$HOME ${NOMAD_ALLOC_ID} $(id) `%s` {{ .Data }} <&>",
    "FAR": "žluťoučký 🐍 \u2028\u2029\ufeff\x01\x07\x1b\x7f",
    "EMPTY": "",
    "LONG": "x" * 30_000,
}


async def test_a_secret_as_a_file(place: Place) -> None:
    path = put(place, "modalnomad/main/awkward", AWKWARD)
    script = "stat -c %a secrets/0.json; env | grep -c VAULT_TOKEN; ls secrets | grep -c token; cat secrets/0.json"
    alloc = await place.run("secret", shell(script, Vault=VAULT, Templates=[template(path, "0")]))
    assert events_of(alloc) == [STARTED, ("Terminated", "Exit Code: 0")]
    mode, variables, files, text = (await place.log(alloc)).split("\n", 3)
    assert (mode, variables, files) == ("400", "0", "0")
    assert json.loads(text) == AWKWARD
    assert text == to_json(AWKWARD)


async def test_a_secret_as_variables(place: Place) -> None:
    path = put(place, "modalnomad/main/variables", AWKWARD)
    each = "{{ range $k, $v := .Data.data }}{{ $k }}={{ $v | toJSON }}\n{{ end }}"
    text = '{{ with secret "' + path + '" }}' + each + "{{ end }}"
    made = template(path, "0", EmbeddedTmpl=text, Envvars=True)
    task = shell("cat /proc/self/environ", Vault=VAULT, Templates=[made], Env={"PLAIN": "overridden"})
    alloc = await place.run("variables", task)
    found = dict(item.split("=", 1) for item in (await place.log(alloc)).split("\0") if item)
    assert {name: found[name] for name in AWKWARD} == AWKWARD


def final_event(alloc: Mapping[str, Any]) -> tuple[str, str]:
    """The first, but for what is missing so far: said where a look takes long."""
    return next(event for event in events_of(alloc) if event[0] != "Template")


async def test_secrets_that_are_not_there(place: Place) -> None:
    paths = [f"{place.kv}/data/modalnomad/main/{name}" for name in ("missing-a", "missing-b")]
    wanted = [template(path, str(number)) for number, path in enumerate(paths)]
    alloc = await place.run("missing", shell("true", Vault=VAULT, Templates=wanted))
    kind, message = final_event(alloc)
    assert kind == "Killing"
    assert re.fullmatch(r"Template failed: vault\.read\((\S+)\): no secret exists at \1", message)
    assert alloc["ClientStatus"] == "failed"
    assert alloc["TaskStates"]["app"]["StartedAt"] is None


async def test_a_secret_of_another_environment(place: Place) -> None:
    path = put(place, "modalnomad/other/db", {"A": "1"})
    alloc = await place.run("denied", shell("true", Vault=VAULT, Templates=[template(path, "0")]))
    kind, message = final_event(alloc)
    assert kind == "Killing"
    assert message.startswith(f"Template failed: vault.read({path}): vault.read({path}): Error making API request.")
    assert f"URL: GET {place.bao.address}/v1/{path}\nCode: 403. Errors:\n\n* 1 error occurred:" in message
    assert "permission denied" in message


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("nobody", 'role "nobody" could not be found'),
        (
            "elsewhere",
            'error validating claims: claim "nomad_namespace" does not match any associated bound claim values',
        ),
    ],
)
async def test_a_login_that_is_refused(place: Place, role: str, text: str) -> None:
    path = put(place, "modalnomad/main/role", {"A": "1"})
    task = shell("true", Vault={**VAULT, "Role": role}, Templates=[template(path, "0")])
    alloc = await place.run("role", task)
    (kind, message), (hook, told), last = events_of(alloc)
    assert (kind, hook, last) == ("Killing", "Task hook failed", NOT_RESTARTED)
    begin = "failed to derive Vault token for identity vault_default: failed to login with JWT: Error making API"
    assert message.startswith(f"Vault: failed to derive vault token: {begin}")
    assert told.startswith(f"vault: {begin}")
    assert message.endswith(f"Code: 400. Errors:\n\n* {text}")


async def test_a_key_that_is_not_in_the_secret(place: Place) -> None:
    path = put(place, "modalnomad/main/key", {"A": "1"})
    text = '{{ with secret "' + path + '" }}{{ .Data.data.B | toJSON }}{{ end }}'
    made = template(path, "0", EmbeddedTmpl=text)
    alloc = await place.run("key", shell("true", Vault=VAULT, Templates=[made]))
    assert final_event(alloc)[1].endswith('executing "" at <.Data.data.B>: map has no entry for key "B"')


async def test_a_vault_that_is_sealed(place: Place) -> None:
    path = put(place, "modalnomad/main/sealed", {"A": "1"})
    async with Faults(vault=place.bao).vault_sealed():
        alloc = await place.run("sealed", shell("true", Vault=VAULT, Templates=[template(path, "0")]))
    (kind, message), (hook, _), last = events_of(alloc)
    assert (kind, hook, last) == ("Killing", "Task hook failed", NOT_RESTARTED)
    assert message.endswith("Code: 503. Errors:\n\n* Vault is sealed")


async def test_a_vault_that_hangs_is_waited_for(place: Place) -> None:
    path = put(place, "modalnomad/main/hangs", {"A": "1"})
    with Faults(vault=place.bao).vault_hangs():
        child = await place.start("hangs", shell("true", Vault=VAULT, Templates=[template(path, "0")]))
        alloc = await place.until(child, lambda alloc: alloc["TaskStates"])
        assert (alloc["ClientStatus"], events_of(alloc)) == ("pending", [])
    assert (await place.ended(child))["ClientStatus"] == "complete"


# --- the process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "told", "details"),
    [
        ("exit 3", "Exit Code: 3", ("3", "0")),
        ("kill -9 $$", "Exit Code: 137, Signal: 9", ("137", "9")),
        ("kill -15 $$", "Exit Code: 143, Signal: 15", ("143", "15")),
    ],
)
async def test_a_process_that_fails(place: Place, script: str, told: str, details: tuple[str, str]) -> None:
    alloc = await place.run("exit", shell(script))
    assert events_of(alloc) == [STARTED, ("Terminated", told), NOT_RESTARTED]
    code, signal = details
    events = alloc["TaskStates"]["app"]["Events"]
    assert events[-2]["Details"] == {"exit_code": code, "signal": signal, "oom_killed": "false"}
    assert events[-1]["FailsTask"]
    assert (alloc["ClientStatus"], alloc["ClientDescription"]) == ("failed", "Failed tasks")


async def test_a_process_that_ends_well(place: Place) -> None:
    alloc = await place.run("well", shell("true"))
    assert events_of(alloc) == [STARTED, ("Terminated", "Exit Code: 0")]
    assert (alloc["ClientStatus"], alloc["ClientDescription"]) == ("complete", "All tasks have completed")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("/no/such/bin", 'binary "/no/such/bin" could not be found'),
        ("no-such-bin", 'binary "no-such-bin" could not be found'),
        (
            "/etc/passwd",
            'failed to start command path="/etc/passwd" --- args=["/etc/passwd"]: '
            "fork/exec /etc/passwd: exec format error",
        ),
    ],
)
async def test_a_program_that_cannot_run(place: Place, command: str, text: str) -> None:
    if command == "/etc/passwd" and os.geteuid() != 0:
        pytest.skip("Nomad makes it executable, which only root can")
    alloc = await place.run("program", {"Config": {"command": command}})
    prefix = "failed to launch command with executor: rpc error: code = Unknown desc = "
    assert events_of(alloc) == [("Driver Failure", prefix + text), NOT_RESTARTED]


async def test_logs_of_both_streams(place: Place) -> None:
    alloc = await place.run("logs", shell("echo out; echo err >&2; printf last"))
    assert (await place.log(alloc), await place.log(alloc, "stderr")) == ("out\nlast", "err\n")


async def test_a_signal_goes_to_the_process(place: Place) -> None:
    child = await place.start("signal", shell("trap 'echo got; exit 0' USR1; echo on; while :; do sleep 0.05; done"))
    alloc = await place.running(child, "on")
    await place.signal(alloc, "SIGUSR1")
    alloc = await place.ended(child)
    told = ("Signaling", "Task being sent a signal")
    assert events_of(alloc) == [STARTED, told, ("Terminated", "Exit Code: 0")]
    assert await place.log(alloc) == "on\ngot\n"
    assert alloc["TaskStates"]["app"]["Events"][3]["Details"] == {"signal": "SIGUSR1"}


async def test_a_killed_task_leaves_nothing(place: Place) -> None:
    """Neither its children nor those that made sessions of their own."""
    child = await place.start("family", shell("sleep 60 & setsid sleep 60 & echo on; wait"))
    alloc = await place.running(child)
    family = await descendants(alloc["ID"], "sleep", 2)
    await place.signal(alloc, "SIGKILL")
    alloc = await place.ended(child)
    assert events_of(alloc)[-2:] == [("Terminated", "Exit Code: 137, Signal: 9"), NOT_RESTARTED]
    wait_gone(family)


async def test_a_stop_asks_first(place: Place) -> None:
    script = "trap 'echo asked; exit 0' TERM; echo on; while :; do sleep 0.05; done"
    child = await place.start("stop", shell(script, KillTimeout=20_500_000_000))
    await place.running(child, "on")
    await place.stop(child)
    alloc = await place.ended(child)
    killing = ("Killing", "Sent interrupt. Waiting 20.5s before force killing")
    killed = ("Killed", "Task successfully killed")
    assert events_of(alloc) == [STARTED, killing, ("Terminated", "Exit Code: 0"), killed]
    assert (alloc["ClientStatus"], await place.log(alloc)) == ("complete", "on\nasked\n")


async def test_a_stop_that_is_not_heard_ends_all_the_same(place: Place) -> None:
    task = shell(
        "trap '' TERM; echo on; while :; do sleep 0.05; done", KillTimeout=300_000_000, ShutdownDelay=200_000_000
    )
    child = await place.start("deaf", task)
    await place.running(child, "on")
    await place.stop(child)
    alloc = await place.ended(child)
    delay = "Waiting for shutdown_delay of 200ms before killing the task."
    assert events_of(alloc)[1:] == [
        ("Killing", "Sent interrupt. Waiting 300ms before force killing"),
        ("Waiting for shutdown delay", delay),
        ("Terminated", "Exit Code: 137, Signal: 9"),
        ("Killed", "Task successfully killed"),
    ]
    assert alloc["ClientStatus"] == "complete"


# --- services ------------------------------------------------------------------------------------------------


async def test_a_service_is_in_consul_while_it_runs(place: Place) -> None:
    service = {
        "Name": "modalnomad-replica",
        "Provider": "consul",
        "PortLabel": "http",
        "Meta": {
            "alloc": "${NOMAD_ALLOC_ID}",
            "pool": "${NOMAD_META_pool}",
            "empty": "${NOMAD_META_reason}",
            "unknown": "a${NOMAD_META_unknown}",
        },
        "Checks": [
            {
                "Name": "ready",
                "Type": "http",
                "Path": "/.modalnomad/ready",
                "Interval": 1_000_000_000,
                "Timeout": 1_000_000_000,
            }
        ],
    }
    child = await place.start("service", shell("sleep 60"), group={"Services": [service]})
    alloc = await place.running(child)
    port = alloc["AllocatedResources"]["Shared"]["Ports"][0]["Value"]
    identity = f"_nomad-task-{alloc['ID']}-group-{GROUP}-modalnomad-replica-http"
    known = await registered(place, identity, there=True)
    found = known[identity]
    assert (found["Service"], found["Port"], found["Address"]) == ("modalnomad-replica", port, "127.0.0.1")
    assert found["Meta"] == {
        "alloc": alloc["ID"],
        "pool": "P",
        "empty": "",
        "unknown": "a${NOMAD_META_unknown}",
        "external-source": "nomad",
    }
    await place.stop(child)
    await place.ended(child)
    await registered(place, identity, there=False)


async def registered(place: Place, identity: str, *, there: bool) -> Any:
    """What Consul's agent has, when the service is there or no longer."""
    async with Calls(place.consul.address) as calls:
        return await calls.until("/v1/agent/services", lambda services: (identity in services) is there)


# --- faults of nodes -----------------------------------------------------------------------------------------


async def test_a_child_that_gets_its_place_late(place: Place) -> None:
    async with Faults(calls=place.calls).placed_late():
        child = await place.start("late", shell("true"))
        path = f"/v1/job/{quote(child, safe='')}/evaluations"
        found = await place.calls.until(
            path, lambda evals: any(each["Status"] == "blocked" for each in evals), namespace=NAMESPACE
        )
        assert any(each["FailedTGAllocs"] for each in found)
        assert await place.calls.get(f"/v1/job/{quote(child, safe='')}/allocations", namespace=NAMESPACE) == []
    assert (await place.ended(child))["ClientStatus"] == "complete"


async def test_a_drained_node_takes_nothing_more_and_its_replica_is_found(place: Place) -> None:
    key = ReplicaKey(PoolKey(RevisionId("ab" * 16)), 0, 1)
    meta = {"pool": str(key.pool), "number": "0", "epoch": "1"}
    child = await place.start("drained", shell("sleep 60"), meta=meta, revision=str(key.pool.revision))
    alloc = await place.running(child)
    faults = Faults(calls=place.calls, fake=place.fake)
    assert (await faults.allocation_of(key))["ID"] == alloc["ID"]
    with pytest.raises(LookupError):
        await faults.allocation_of(ReplicaKey(key.pool, 0, 2))
    await faults.node_drained(alloc["NodeID"])
    try:
        node = await place.calls.get(f"/v1/node/{alloc['NodeID']}")
        assert (node["Drain"], node["SchedulingEligibility"]) == (True, "ineligible")
        # A batch job's task may run on until the drain's deadline.
        assert (await place.calls.get(f"/v1/allocation/{alloc['ID']}"))["ClientStatus"] == "running"
    finally:
        await faults.node_back(alloc["NodeID"])
    assert (await place.calls.get(f"/v1/node/{alloc['NodeID']}"))["SchedulingEligibility"] == "eligible"
    if place.fake is not None:
        await faults.alloc_lost(key)
    else:
        await place.stop(child)
    assert (await place.ended(child))["ClientStatus"] == ("lost" if place.fake is not None else "complete")
