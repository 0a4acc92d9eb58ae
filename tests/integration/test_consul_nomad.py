"""The fake Consul as a real Nomad's: agents and services register in it, and are gone when they stop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from modalnomad.hashicorp.consul.api import ConsulApi
from tests.support.consul import fake_consul
from tests.support.nomad_agent import NomadAgent, nomad_program

SERVER = """
import http.server, os

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(os.environ["NOMAD_PORT_http"])), Ready).serve_forever()
"""

JOB = {
    "ID": "web",
    "Name": "web",
    "Type": "service",
    "Datacenters": ["*"],
    "TaskGroups": [
        {
            "Name": "web",
            "Count": 1,
            "Networks": [{"DynamicPorts": [{"Label": "http"}]}],
            "Services": [
                {
                    "Name": "svc",
                    "PortLabel": "http",
                    "Provider": "consul",
                    "Tags": ["tagged"],
                    "Meta": {"alloc": "${NOMAD_ALLOC_ID}", "n": "1"},
                    "Checks": [
                        {
                            "Name": "ready",
                            "Type": "http",
                            "Path": "/ready",
                            "Interval": 1_000_000_000,
                            "Timeout": 1_000_000_000,
                        }
                    ],
                }
            ],
            "Tasks": [
                {
                    "Name": "app",
                    "Driver": "raw_exec",
                    "Config": {"command": sys.executable, "args": ["-c", SERVER]},
                    "Resources": {"CPU": 50, "MemoryMB": 64},
                }
            ],
        }
    ],
}


@pytest.mark.skipif(nomad_program() is None, reason="no nomad on PATH")
async def test_a_real_nomad_registers_itself_and_a_job_s_service() -> None:
    async with fake_consul() as consul:
        api = consul.api()
        async with NomadAgent(consul=consul.address.removeprefix("http://")) as agent:
            await until_instances(api, "nomad", lambda found: len(found) == 3)
            await until_instances(api, "nomad-client", lambda found: len(found) == 1)

            await agent.calls.put("/v1/jobs", {"Job": JOB})
            (instance,) = await until_instances(api, "svc", lambda found: len(found) == 1, passing=True)

            service = instance["Service"]
            (allocation,) = await agent.calls.get("/v1/job/web/allocations")
            assert service["Meta"] == {"alloc": allocation["ID"], "external-source": "nomad", "n": "1"}
            assert service["ID"].startswith(f"_nomad-task-{allocation['ID']}-group-web-svc-http")
            assert (service["Tags"], service["Address"]) == (["tagged"], "127.0.0.1")
            (check,) = [check for check in instance["Checks"] if check["CheckID"].startswith("_nomad-check-")]
            assert (check["Name"], check["Status"], check["Type"]) == ("ready", "passing", "http")

            await agent.calls.call("DELETE", "/v1/job/web")
            await until_instances(api, "svc", lambda found: not found)
            asked = {one.partition("?")[0].rpartition("/")[0] for one in consul.fake.requests}
        await until_instances(api, "nomad-client", lambda found: not found)

    assert asked >= {"GET /v1/agent", "PUT /v1/agent/service", "PUT /v1/agent/service/deregister"}


async def until_instances(
    api: ConsulApi, name: str, wanted: Callable[[tuple[dict[str, Any], ...]], bool], *, passing: bool = False
) -> tuple[dict[str, Any], ...]:
    """The service's instances, as soon as they are as wanted."""
    index = 0
    while not wanted((found := await api.service(name, index=index, passing=passing)).items):
        index = found.index
    return found.items
