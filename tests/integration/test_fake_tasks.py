"""What only the fake's task runner promises: nothing is left behind, and what a machine without GPUs cannot show."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import psutil
import pytest

from tests.support.engines import eventually
from tests.support.fakes.identity import Signer
from tests.support.fakes.tasks.runner import TaskRunner
from tests.support.leftovers import wait_gone
from tests.support.nomad_tasks import descendants, shell

NODE = {"ID": "n", "Name": "node", "Datacenter": "dc1", "Attributes": {"kernel.name": "linux"}, "Meta": {"rack": "7"}}
WORKS = "echo on; sleep 60 & setsid sleep 60 & wait"


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[TaskRunner]:
    """Closed at the end."""
    async with TaskRunner(tmp_path / "nodes") as found:
        yield found


class Started:
    """One allocation and what was told of it."""

    def __init__(self, task: dict[str, Any], *, devices: list[dict[str, Any]] | None = None) -> None:
        group = {"Name": "replica", "Tasks": [{"Name": "app", "Driver": "raw_exec", **task}]}
        self.job = {
            "ID": "parent/dispatch-1-aaaaaaaa",
            "Name": "parent/dispatch-1-aaaaaaaa",
            "ParentID": "parent",
            "Namespace": "modalnomad-main",
            "Region": "global",
            "Type": "batch",
            "Meta": {},
            "TaskGroups": [group],
        }
        resources = {"Cpu": {"CpuShares": 1}, "Memory": {"MemoryMB": 1}, "Devices": devices}
        self.alloc = {
            "ID": str(uuid.uuid4()),
            "Name": "parent/dispatch-1-aaaaaaaa.replica[0]",
            "TaskGroup": "replica",
            "AllocatedResources": {"Shared": {"Ports": []}, "Tasks": {"app": resources}},
        }
        self.told: list[dict[str, Any]] = []
        self.dead = asyncio.Event()

    @property
    def id(self) -> str:
        """Of the allocation."""
        return str(self.alloc["ID"])

    def tell(self, told: dict[str, Any]) -> None:
        """As a fake takes it."""
        self.told.append(told["TaskStates"]["app"])
        if self.told[-1]["State"] == "dead":
            self.dead.set()

    async def on(self, runner: TaskRunner) -> None:
        """Started; an own first line was written, if it runs."""
        await runner.start(self.alloc, self.job, NODE, self.tell)


async def test_a_closed_runner_leaves_nothing(runner: TaskRunner) -> None:
    started = Started(shell(WORKS))
    await started.on(runner)
    left = await descendants(started.id, "sleep", 2)
    assert runner.folder.exists()
    await runner.close()
    wait_gone(left)
    assert not runner.folder.exists()
    assert started.told[-1]["State"] == "running"  # a machine that is gone tells nothing


async def test_a_lost_allocation_ends_untold(runner: TaskRunner) -> None:
    started = Started(shell(WORKS))
    await started.on(runner)
    left = await descendants(started.id, "sleep", 2)
    await runner.lose(started.id)
    wait_gone(left)
    assert started.told[-1]["State"] == "running"
    assert runner.logs(started.id, "stdout").read_text() == "on\n"
    await runner.forget(started.id)
    with pytest.raises(KeyError):
        runner.logs(started.id, "stdout")
    assert not (runner.folder / started.id).exists()


async def test_an_executor_that_is_killed_is_a_task_that_was(runner: TaskRunner) -> None:
    started = Started(shell("echo on; exec sleep 60"))
    await started.on(runner)
    process = psutil.Process(runner.pid(started.id))
    executor = process.parent()
    assert executor is not None
    executor.kill()
    await started.dead.wait()
    assert [event["Type"] for event in started.told[-1]["Events"]][-2:] == ["Terminated", "Not Restarting"]
    process.kill()  # what an executor's death leaves, Nomad's too


async def test_a_stop_before_the_process_runs(runner: TaskRunner) -> None:
    """It waits for an artifact that does not come."""
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    started = Started(shell("true", Artifacts=[{"GetterSource": address}]))
    starting = asyncio.gather(started.on(runner))
    await asked.wait()
    await runner.stop(started.id, 1.0)
    await starting
    assert started.told[-1]["State"] == "dead"
    assert started.told[-1]["StartedAt"] is None
    assert not started.told[-1]["Failed"]
    server.close()
    await server.wait_closed()


async def test_devices_are_told(runner: TaskRunner) -> None:
    gpu = {"Vendor": "nvidia", "Type": "gpu", "Name": "H100", "DeviceIDs": ["GPU-1", "GPU-2"]}
    started = Started(shell("echo $NVIDIA_VISIBLE_DEVICES"), devices=[gpu])
    await started.on(runner)
    await started.dead.wait()
    assert runner.logs(started.id, "stdout").read_text() == "GPU-1,GPU-2\n"


async def test_logs_are_rotated(runner: TaskRunner) -> None:
    started = Started(shell("seq 100000 499999", LogConfig={"MaxFiles": 2, "MaxFileSizeMB": 1}))
    await started.on(runner)
    await started.dead.wait()
    files = runner.log_files(started.id, "stdout")
    assert [path.name for path in files] == ["app.stdout.1", "app.stdout.2"]
    assert all(path.stat().st_size <= 1024 * 1024 for path in files)
    _, *lines = "".join(path.read_text() for path in files).splitlines()  # the first may have begun in a file that went
    assert lines == [str(number) for number in range(500_000 - len(lines), 500_000)]


async def test_a_failure_before_the_process_can_be_told_late(tmp_path: Path) -> None:
    async with TaskRunner(tmp_path / "late", late=60) as runner:
        started = Started({"Config": {"command": "/bin/true", "args": ["${NOT_THERE}"]}})
        starting = asyncio.gather(started.on(runner))
        await eventually(lambda: started.told)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(started.dead.wait(), 0.3)
        assert started.told[-1]["State"] == "pending"
        starting.cancel()


@pytest.mark.parametrize("algorithm", ["RS256", "EdDSA"])
def test_identities_are_what_nomad_signs(algorithm: Any) -> None:
    signer, started = Signer(algorithm), Started(shell("true"))
    token = signer.identity(started.alloc, started.job, "app")
    (key,) = signer.jwks()["keys"]
    public = jwt.PyJWK(key)
    claims = jwt.decode(token, public.key, algorithms=[algorithm], audience="vault.io")
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": key["kid"], "typ": "JWT"}
    assert claims["exp"] - claims["iat"] == 3600
    assert {name: value for name, value in claims.items() if name not in {"exp", "iat", "nbf", "jti"}} == {
        "aud": "vault.io",
        "sub": "global:modalnomad-main:parent:replica:app:vault_default",
        "nomad_namespace": "modalnomad-main",
        "nomad_job_id": "parent",  # of a dispatched child: its parent
        "nomad_allocation_id": started.id,
        "nomad_task": "app",
    }
