"""`doctor` on a cluster: a real OpenBao, and stand-ins for Nomad and Consul."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from modalnomad.hashicorp.checks.examine import examine_cluster
from modalnomad.hashicorp.setup.platform import wanted
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.kit.finding import Finding
from modalnomad.settings import ConsulSettings, NomadSettings, Settings, VaultSettings
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.openbao import OpenBao

SEES = {"vault.version": "2.7.2", "consul.version": "1.22.5"}


@dataclass
class Cluster:
    nomad: FakeNomad
    consul: FakeConsul
    bao: OpenBao
    settings: Settings

    def changed(self, **groups: dict[str, Any]) -> Settings:
        update = {name: getattr(self.settings, name).model_copy(update=fields) for name, fields in groups.items()}
        return self.settings.model_copy(update=update)

    def of_role(self, role: str) -> Settings:
        """Settings with tokens of one role."""
        needed = wanted(self.settings, ["main"])
        (nomad,) = (policy.text for policy in needed.nomad_policies if policy.name == role)
        (consul,) = (policy.text for policy in needed.consul_policies if policy.name == role)
        tokens = (
            self.nomad.token(nomad),
            self.consul.token(consul, f"{role}-test"),
            self.bao.token(role, "default", ttl="25h"),
        )
        named = zip(("nomad", "consul", "vault"), tokens, strict=True)
        return self.changed(**{name: {"token": SecretStr(token)} for name, token in named})


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[OpenBao]:
    with OpenBao(tmp_path / "bao") as server:
        yield server


@pytest.fixture
async def servers(bao: OpenBao) -> AsyncIterator[Cluster]:
    async with FakeNomad(acl=True) as nomad, FakeConsul(acl=True) as consul:
        settings = Settings(
            nomad=NomadSettings(address=nomad.address, token=SecretStr(nomad.management)),
            consul=ConsulSettings(address=consul.address, token=SecretStr(consul.management)),
            vault=VaultSettings(address=bao.address, token=SecretStr("root")),
        )
        yield Cluster(nomad, consul, bao, settings)


async def set_up_all(servers: Cluster) -> None:
    servers.nomad.add_node("one", attributes=SEES)
    servers.nomad.state.oversubscription = True
    steps = [step async for step in set_up(servers.settings, ["main"])]
    assert {step.outcome for step in steps} <= {"made", "there"}, steps  # a dev server has its store


def wrong(found: Sequence[Finding]) -> dict[str, Finding]:
    """All that is not well, by check; each names a fix."""
    assert all(finding.fix for finding in found if finding.level != "ok"), found
    return {finding.check: finding for finding in found if finding.level != "ok"}


def of(found: Sequence[Finding], check: str) -> Finding:
    return next(finding for finding in found if finding.check == check)


@pytest.mark.parametrize(
    ("role", "nomad", "consul", "vault"),
    [
        ("modalnomad-deployer", "start replicas, deploy", "deploy, run a router", "write secrets, see their versions"),
        ("modalnomad-router", "start replicas", "run a router", "see their versions"),
    ],
)
async def test_after_setup_all_is_well_for_each_role(
    servers: Cluster, role: str, nomad: str, consul: str, vault: str
) -> None:
    await set_up_all(servers)
    found = await examine_cluster(servers.of_role(role))

    assert not wrong(found), wrong(found)
    assert of(found, "nomad acl").message.endswith(f"may look, {nomad}")
    assert of(found, "consul acl").message.endswith(f"may read what is served, {consul}")
    assert of(found, "vault acl").message == f"the token may {vault}, and not read values"
    assert "OpenBao 2.7.2" in of(found, "vault").message
    checks = {"dns", "nomad", "namespace", "nodes", "driver", "gpu", "secrets", "key", "identity", "jwks", "clock"}
    assert checks <= {finding.check for finding in found}


async def test_before_setup_each_missing_thing_names_the_command(servers: Cluster) -> None:
    servers.nomad.add_node("one", attributes={"consul.version": "", "vault.version": ""})
    bad = wrong(await examine_cluster(servers.settings))

    for check in ("namespace", "key", "identity"):
        assert "modalnomad setup" in bad[check].fix
    assert bad["node vault"].level == bad["node consul"].level == "problem"
    assert "vault {" in bad["node vault"].fix
    assert "values" in bad["vault acl"].message, "root may read them"


async def test_a_scheduler_that_holds_replicas_to_what_is_reserved_is_a_warning(servers: Cluster) -> None:
    await set_up_all(servers)
    servers.nomad.state.oversubscription = False
    for role in ("modalnomad-deployer", "modalnomad-router"):
        bad = wrong(await examine_cluster(servers.of_role(role)))

        assert set(bad) == {"memory"}
        assert "nomad.memory = 256 MiB" in bad["memory"].message
        assert "-memory-oversubscription=true" in bad["memory"].fix


async def test_servers_that_believe_for_minutes_that_a_lost_node_lives_are_a_warning(servers: Cluster) -> None:
    await set_up_all(servers)
    servers.nomad.cluster.settings["GCMaxAllocs"] = 500
    servers.nomad.cluster.servers = 3
    unset = wrong(await examine_cluster(servers.settings))["nomad servers"]
    servers.nomad.cluster.server["FailoverHeartbeatTTL"] = 30_000_000_000
    lower = await examine_cluster(servers.settings)

    assert "for 300 s" in unset.message
    assert 'failover_heartbeat_ttl = "30s"' in unset.fix
    assert (of(lower, "nomad servers").level, of(lower, "nomad servers").message) == (
        "ok",
        "there are 3; after an election they believe for 30 s that every node lives",
    )
    # Whose token may not look at agents is told nothing.
    assert "nomad servers" not in {
        finding.check for finding in await examine_cluster(servers.of_role("modalnomad-router"))
    }


async def test_another_environment_lacks_its_own_things_alone(servers: Cluster) -> None:
    await set_up_all(servers)
    staging = servers.settings.model_copy(update={"environment": "staging"})
    bad = wrong(await examine_cluster(staging))

    assert set(bad) == {"namespace", "identity", "vault acl"}
    assert bad["identity"].fix.endswith("--env staging")
    assert "modalnomad-staging" in bad["identity"].message


async def test_servers_that_are_not_there_are_one_problem_each(servers: Cluster) -> None:
    nowhere = {"address": "http://127.0.0.1:9"}
    found = await examine_cluster(servers.changed(nomad=nowhere, consul=nowhere, vault=nowhere))

    bad = wrong(found)
    assert set(bad) == {"nomad", "consul", "vault"}
    assert all(finding.level == "problem" for finding in bad.values())
    assert "VAULT_ADDR" in bad["vault"].fix


async def test_a_name_without_an_address_is_told(servers: Cluster) -> None:
    bad = wrong(await examine_cluster(servers.changed(nomad={"address": "http://nomad.invalid:4646"})))

    assert bad["dns"].message.startswith("nomad.invalid of nomad.address has no address")


async def test_unknown_tokens_are_told_with_where_they_come_from(servers: Cluster) -> None:
    await set_up_all(servers)
    token = {"token": SecretStr("11111111-2222-3333-4444-555555555555")}
    found = await examine_cluster(servers.changed(nomad=token, consul=token, vault=token))

    bad = wrong(found)
    assert {"nomad acl", "consul acl", "vault acl"} <= set(bad)
    assert "NOMAD_TOKEN" in bad["nomad acl"].fix
    assert "CONSUL_HTTP_TOKEN" in bad["consul acl"].fix
    assert "11111111" not in repr(found)


async def test_tokens_without_rights_are_told_from_unknown_ones(servers: Cluster) -> None:
    await set_up_all(servers)
    poor = servers.changed(
        nomad={"token": SecretStr(servers.nomad.token('agent { policy = "read" }'))},
        consul={"token": SecretStr(servers.consul.token('node_prefix "" { policy = "read" }'))},
        vault={"token": SecretStr(servers.bao.token("default"))},
    )
    bad = wrong(await examine_cluster(poor))

    assert "may not look at jobs" in bad["nomad acl"].message
    assert "may not read modalnomad/" in bad["consul acl"].message
    assert "may not read the platform key" in bad["vault acl"].message


async def test_a_viewer_may_only_look(servers: Cluster) -> None:
    await set_up_all(servers)
    viewer = next(p for p in wanted(servers.settings, ["main"]).nomad_policies if p.name == "modalnomad-viewer")
    token = {"token": SecretStr(servers.nomad.token(viewer.text))}

    bad = wrong(await examine_cluster(servers.changed(nomad=token)))

    assert "may only look" in bad["nomad acl"].message


async def test_acls_that_are_off_are_a_warning(bao: OpenBao) -> None:
    async with FakeNomad() as nomad, FakeConsul() as consul:
        settings = Settings(
            nomad=NomadSettings(address=nomad.address),
            consul=ConsulSettings(address=consul.address),
            vault=VaultSettings(address=bao.address, token=SecretStr("root")),
        )
        bad = wrong(await examine_cluster(settings))

    assert bad["nomad acl"].level == bad["consul acl"].level == "warning"
    assert "ACLs are off" in bad["nomad acl"].message
    assert bad["nodes"].level == "problem"


async def test_a_cluster_in_a_namespace_of_vault_is_set_up_and_well(servers: Cluster) -> None:
    with servers.bao.client() as client:
        client.write_data("sys/namespaces/team", data={})
    servers.settings = servers.changed(vault={"namespace": "team"})
    await set_up_all(servers)

    bad = wrong(await examine_cluster(servers.settings))
    assert set(bad) == {"vault acl"}, "root may read values"
    gone = wrong(await examine_cluster(servers.changed(vault={"namespace": "nowhere"})))
    assert "VAULT_NAMESPACE" in gone["vault"].fix


async def test_a_sealed_vault_is_told_and_nothing_else_of_it(servers: Cluster) -> None:
    await set_up_all(servers)
    servers.bao.seal()
    found = await examine_cluster(servers.settings)

    bad = wrong(found)
    assert set(bad) == {"vault"}
    assert "is sealed" in bad["vault"].message
    assert "operator unseal" in bad["vault"].fix


async def test_a_token_that_ends_soon_is_a_warning(servers: Cluster) -> None:
    await set_up_all(servers)
    token = {"token": SecretStr(servers.bao.token("modalnomad-router", "default", ttl="100m"))}
    found = await examine_cluster(servers.changed(vault=token))

    (soon,) = [finding for finding in found if finding.check == "vault acl" and finding.level == "warning"]
    assert soon.message.startswith("the token ends in 1 h")


async def test_keys_that_cannot_be_read_from_here_are_a_warning(servers: Cluster) -> None:
    await set_up_all(servers)
    bad = wrong(await examine_cluster(servers.changed(vault={"jwks_url": "http://127.0.0.1:9/keys"})))

    assert bad["jwks"].level == "warning"
    assert "http://127.0.0.1:9/keys" in bad["jwks"].message


async def test_keys_that_vault_itself_does_not_reach_are_told(
    servers: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, answers = asyncio.Event(), True

    async def keys(request: web.Request) -> web.Response:
        if not answers:
            await over.wait()
        return web.json_response(servers.nomad.signer.jwks())

    app = web.Application()
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        # Vault looks there when it is told to, so the keys go afterwards.
        servers.settings = servers.changed(vault={"jwks_url": url})
        await set_up_all(servers)
        servers.settings = servers.changed(vault={"jwks_url": ""})
        assert set(wrong(await examine_cluster(servers.settings))) == {"vault acl"}, "root may read values"
        answers = False
        with monkeypatch.context() as patch:
            patch.setattr("modalnomad.hashicorp.vault.client.ANSWER_LIMIT", 2.0)
            hanging = wrong(await examine_cluster(servers.settings))
    finally:
        over.set()
        await runner.cleanup()
    gone = wrong(await examine_cluster(servers.settings))

    for bad, said in ((hanging, "no answer in time"), (gone, f'Get "{url}"')):
        assert set(bad) == {"identity", "vault acl"}
        assert said in bad["identity"].message
        assert "vault.jwks_url" in bad["identity"].fix


async def test_what_is_no_server_of_ours_is_told_for_each(bao: OpenBao) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="<html>welcome</html>")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = {"address": f"http://127.0.0.1:{runner.addresses[0][1]}"}
    try:
        found = await examine_cluster(
            Settings(nomad=NomadSettings(**address), consul=ConsulSettings(**address), vault=VaultSettings(**address))
        )
    finally:
        await runner.cleanup()

    bad = wrong(found)
    assert {"nomad", "consul", "vault"} <= set(bad)
    assert all("look at the address" in bad[name].fix for name in ("nomad", "consul"))
