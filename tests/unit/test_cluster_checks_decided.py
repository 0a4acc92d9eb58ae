"""What is said of a cluster, by what was seen."""

from __future__ import annotations

from typing import Any

import pytest

from modalnomad.hashicorp.checks import nodes as of_nodes
from modalnomad.hashicorp.checks.common import check_clocks, check_version, skew, version_of
from modalnomad.hashicorp.checks.key import check_kept
from modalnomad.hashicorp.checks.vault import check_rights
from modalnomad.hashicorp.key_use import KeyUse
from modalnomad.hashicorp.vault.platform_key import PlatformKeys
from modalnomad.settings import NomadSettings


def node(name: str = "one", **changed: Any) -> dict[str, Any]:
    healthy = {"Detected": True, "Healthy": True, "HealthDescription": "Healthy"}
    found: dict[str, Any] = {
        "Name": name,
        "Status": "ready",
        "SchedulingEligibility": "eligible",
        "Datacenter": "dc1",
        "NodePool": "default",
        "Drivers": {"raw_exec": healthy},
        "NodeResources": {"Devices": None},
    }
    return {**found, **changed}


def agent(max_kill: str = "30s", allocations: int = 500, plugins: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"Client": {"MaxKillTimeout": max_kill, "GCMaxAllocs": allocations}, "Plugins": plugins}


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.0.5", (2, 0, 5)), ("v1.22.6+ent", (1, 22, 6)), ("1.9", (1, 9, 0)), ("", ()), ("dev", ())],
)
def test_versions_are_read(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize(
    ("version", "level"), [("1.9.9", "problem"), ("1.11.3", "warning"), ("2.0.1", None), ("3.0.0", None), ("", None)]
)
def test_old_versions_are_told(version: str, level: str | None) -> None:
    found = check_version("nomad", "Nomad", version, "1.10.0", "2.0.5")

    assert (found.level if found else None) == level


def test_a_version_that_was_never_tried_is_not_said_to_be() -> None:
    old = check_version("consul", "Consul", "1.15.2", "1.16.0")

    assert old is not None
    assert old.fix == "take 1.16.0 or newer"
    assert check_version("consul", "Consul", "1.16.0", "1.16.0") is None


@pytest.mark.parametrize(
    ("ahead", "level", "said"),
    [
        ({"Nomad": 0.9, "Vault": -1.0}, "ok", "Nomad, Vault and this machine agree"),
        ({"Nomad": 12.0, "Vault": 0.0}, "warning", "Nomad's is 12 s ahead"),
        ({"Nomad": 0.0, "Vault": -90.0}, "problem", "Vault's is 90 s behind"),
        ({}, "ok", "no server"),
    ],
)
def test_clocks_that_differ_are_told(ahead: dict[str, float], level: str, said: str) -> None:
    found = check_clocks(ahead)

    assert (found.level, said in found.message) == (level, True)


def test_a_server_without_a_date_says_nothing() -> None:
    assert skew({}, 0.0) is None
    assert skew({"Date": "yesterday"}, 0.0) is None
    assert skew({"Date": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50.0) == 10.0


@pytest.mark.parametrize(
    "changed",
    [
        {"Status": "down"},
        {"SchedulingEligibility": "ineligible"},
        {"Datacenter": "other"},
        {"NodePool": "gpu"},
    ],
)
def test_nodes_that_take_nothing_do_not_count(changed: dict[str, Any]) -> None:
    settings = NomadSettings(datacenters=("dc*",))

    alone = of_nodes.check_nodes([node(**changed)], settings)
    beside = of_nodes.check_nodes([node(**changed), node("two")], settings)

    assert alone.level == "problem"
    assert "nomad.node_pool" in alone.fix
    assert beside.level == "ok"
    assert beside.message == "1 can take replicas; 1 others are drained, down or elsewhere"


@pytest.mark.parametrize(
    ("drivers", "said"),
    [
        ({}, "one (not enabled)"),
        ({"raw_exec": {"Detected": False, "HealthDescription": "disabled"}}, "one (disabled)"),
        ({"raw_exec": {"Detected": True, "Healthy": False, "HealthDescription": ""}}, "one (unhealthy)"),
        (None, "one (not enabled)"),
    ],
)
def test_a_driver_that_does_not_work_is_told_with_its_reason(drivers: Any, said: str) -> None:
    everywhere = of_nodes.check_driver([node(Drivers=drivers)], "raw_exec")
    somewhere = of_nodes.check_driver([node(Drivers=drivers), node("two")], "raw_exec")

    assert (everywhere.level, somewhere.level) == ("problem", "warning")
    assert said in everywhere.message
    assert "enabled = true" in everywhere.fix
    assert "docker" in of_nodes.check_driver([node()], "docker").fix


def test_gpus_are_counted_by_type_and_only_healthy_ones() -> None:
    instances = [{"ID": "a", "Healthy": True}, {"ID": "b", "Healthy": False}]
    device = {"Type": "gpu", "Vendor": "nvidia", "Name": "H100", "Instances": instances}
    nodes = [node(NodeResources={"Devices": [device]}), node("two", NodeResources={"Devices": [device]}), node("three")]

    assert of_nodes.check_gpus(nodes).message == "2 × nvidia H100"
    assert of_nodes.check_gpus([node()]).level == "ok"


def test_many_names_are_cut() -> None:
    found = of_nodes.check_vault_of_nodes([node(f"n{number}") for number in range(8)])

    assert found.message.endswith("n0, n1, n2, n3, n4 and 3 more")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2m30s", 150), ("1h0m0s", 3600), ("500ms", 0.5), ("", 30), ("1.5s", 1.5)]
)
def test_times_of_an_agent_are_read(text: str, seconds: float) -> None:
    assert of_nodes.max_kill(agent(text)) == seconds


def test_a_grace_period_that_nodes_cut_is_told() -> None:
    settings = NomadSettings(grace_period=60)

    seen = of_nodes.check_agents({"one": agent("30s"), "two": agent("2m")}, "", settings)
    hidden = of_nodes.check_agents({}, "this token lacks agent read", settings)
    fits = of_nodes.check_agents({"two": agent("2m")}, "", settings)

    assert [found.level for found in (*seen, *hidden, *fits)] == ["warning", "warning", "ok"]
    assert "one (30 s)" in seen[0].message
    assert 'max_kill_timeout = "60s"' in seen[0].fix
    assert "cannot be seen (this token lacks agent read)" in hidden[0].message
    assert of_nodes.check_agents({}, "this token lacks agent read", NomadSettings())[0].level == "ok"


@pytest.mark.parametrize(
    ("servers", "config", "level"),
    [
        (3, {"Enabled": True, "FailoverHeartbeatTTL": 0}, "warning"),
        (3, {"Enabled": True, "FailoverHeartbeatTTL": 300_000_000_000}, "warning"),
        (3, {"Enabled": True, "FailoverHeartbeatTTL": 120_000_000_000}, "ok"),
        (3, {"Enabled": True}, "warning"),
        (1, {"Enabled": True, "FailoverHeartbeatTTL": 0}, None),
        (3, {"Enabled": False, "FailoverHeartbeatTTL": 0}, None),
        (3, None, None),
    ],
)
def test_what_servers_believe_after_an_election(servers: int, config: Any, level: str | None) -> None:
    found = of_nodes.check_elections(servers, {"Server": config})

    assert (found.level if found else None) == level


def test_nodes_that_forget_logs_early_are_told() -> None:
    (found,) = of_nodes.check_agents({"one": agent(allocations=50)}, "", NomadSettings())

    assert (found.level, "gc_max_allocs" in found.fix) == ("warning", True)


@pytest.mark.parametrize(
    ("plugins", "removes"),
    [
        (None, True),
        ([{"Name": "raw_exec", "Config": {}}], True),
        ([{"Name": "docker", "Config": {"gc": {"image": False}}}], False),
        ([{"Name": "docker", "Config": [{"gc": [{"image": False}]}]}], False),
        ([{"Name": "docker", "Config": {"gc": [{"image_delay": "1h"}]}}], True),
    ],
)
def test_docker_removes_images_unless_told_otherwise(plugins: Any, removes: bool) -> None:
    found = of_nodes.check_agents({"one": agent(plugins=plugins)}, "", NomadSettings(driver="docker"))

    assert ("gc { image = false }" in found[0].fix) == removes
    assert of_nodes.check_agents({"one": agent(plugins=plugins)}, "", NomadSettings())[0].level == "ok"


HERE = "modalnomad/main/doctor-probe"


@pytest.mark.parametrize(
    ("granted", "level", "said"),
    [
        (None, "problem", "does not know this token"),
        ({}, "problem", "may not read the platform key"),
        ({"data/modalnomad-platform/key": ["read"]}, "problem", "neither write secrets of main nor see versions"),
        (
            {"data/modalnomad-platform/key": ["read"], f"metadata/{HERE}": ["read"]},
            "ok",
            "the token may see their versions, and not read values",
        ),
        (
            {
                "data/modalnomad-platform/key": ["read"],
                f"data/{HERE}": ["create", "update", "read"],
                f"subkeys/{HERE}": ["read"],
            },
            "warning",
            "may read values of secrets (write secrets)",
        ),
    ],
)
def test_rights_in_vault_are_told(granted: dict[str, list[str]] | None, level: str, said: str) -> None:
    found = check_rights(
        granted if granted is None else {f"kv/{path}": rights for path, rights in granted.items()}, "kv", "main"
    )

    assert (found.level, said in found.message) == (level, True)


ROTATED = PlatformKeys(b"n" * 32, b"o" * 32, 3, "2026-11-22T13:34:52.061113299Z")


@pytest.mark.parametrize(
    ("keys", "use", "level", "said", "fix"),
    [
        (PlatformKeys(b"n" * 32), KeyUse(), "ok", "the platform key is there", ""),
        (ROTATED, None, "warning", "who needs it cannot be told", "Nomad and Consul"),
        (
            ROTATED,
            KeyUse(),
            "warning",
            "at 2026-11-22T13:34:52 UTC, and the one before it still holds, though",
            "--forget",
        ),
        (ROTATED, KeyUse(("hello (main)",), ()), "warning", "hello (main) not deployed since", "deploy those Apps"),
        (ROTATED, KeyUse((), ("hello (main)",)), "warning", "replicas of hello (main) run with it", "container stop"),
        (ROTATED, KeyUse(("hello (main)",), unmarked=True), "warning", "do not say which key", "deploy those Apps"),
        (ROTATED, KeyUse(deploying=True), "warning", "an App is being deployed", "is over; then"),
    ],
    ids=["one", "unknown", "unneeded", "served", "running", "unmarked", "deploying"],
)
def test_a_key_that_was_rotated_is_told(
    keys: PlatformKeys, use: KeyUse | None, level: str, said: str, fix: str
) -> None:
    found = check_kept(keys, use)

    assert found.level == level
    assert said in found.message
    assert fix in found.fix
    assert (found.fix == "") is (level == "ok")
