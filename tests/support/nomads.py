"""A Nomad to ask, fake or real: the same questions must get the same answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.fakes.nomad.server import FakeNomad
from tests.support.nomad_agent import NomadAgent, nomad_program
from tests.support.nomad_calls import Calls

KINDS = ("fake", "real")
MEMORY = 512
"""MiB of a task that is to fit; a node of the fake has room for several."""
TOO_MUCH = 100_000_000


@dataclass
class Nomad:
    """One server, one node."""

    calls: Calls
    """With a management token where ACL is on."""
    node: str
    fake: FakeNomad | None = None
    agent: NomadAgent | None = None


@asynccontextmanager
async def opened(kind: str, *, acl: bool = False) -> AsyncIterator[Nomad]:
    """A fake or a real one; skips the test when that is not to be had."""
    if kind == "fake":
        async with FakeNomad(acl=acl) as fake:
            node = fake.add_node("test", memory=8 * MEMORY)
            async with Calls(fake.address, fake.management) as calls:
                yield Nomad(calls, node, fake=fake)
        return
    if nomad_program() is None:
        pytest.skip("no `nomad` on PATH: only the fake was asked")
    async with NomadAgent(acl=acl, client={"memory_total_mb": 8 * MEMORY}) as agent:
        yield Nomad(agent.calls, agent.node, agent=agent)


def parent(name: str, script: str = "sleep ${NOMAD_META_a}", **more: Any) -> dict[str, Any]:
    """A parameterized job whose children run a shell. `memory`, `cpu`, `devices`, `constraints`, `group`, `task`: of
    its task or group; anything else: of the job. A value None takes a key away."""
    resources = {"CPU": more.pop("cpu", 20), "MemoryMB": more.pop("memory", 32), "Devices": more.pop("devices", None)}
    task = {
        "Name": "app",
        "Driver": "raw_exec",
        "Config": {"command": "/bin/sh", "args": ["-c", "echo began; exec " + script]},
        "KillSignal": "SIGTERM",
        "Resources": resources,
    } | more.pop("task", {})
    group = {
        "Name": "replica",
        "Count": 1,
        "Constraints": more.pop("constraints", None),
        "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
        "Networks": [{"Mode": "host", "DynamicPorts": [{"Label": "http"}]}],
        "Tasks": [task],
    } | more.pop("group", {})
    job = {
        "ID": name,
        "Name": name,
        "Type": "batch",
        "Meta": {"revision": "r1"},
        "ParameterizedJob": {"Payload": "optional", "MetaOptional": ["a", "b"]},
        "TaskGroups": [group],
    } | more
    return {"Job": {key: value for key, value in job.items() if value is not None}}


def plain(name: str, script: str = "sleep 60", **more: Any) -> dict[str, Any]:
    """As `parent`, to be run as it is."""
    return parent(name, script, ParameterizedJob=None, **more)


def quoted(job: str) -> str:
    """In a path."""
    return job.replace("/", "%2F")
