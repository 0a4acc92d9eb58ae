"""Consul tokens with the rights that `setup` gives: each role can do its work, and no more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from modalnomad.hashicorp.consul.leader import Leader
from modalnomad.hashicorp.consul.registrations import watch_registrations
from modalnomad.hashicorp.consul.routers import RouterInfo, RouterPresence, routers
from modalnomad.hashicorp.http import ServerRefused
from modalnomad.hashicorp.setup.platform import wanted
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import PutToken, WithdrawApp
from modalnomad.settings import Settings
from tests.support.consul import Consul, fake_consul, publish, until, watching
from tests.support.engines import within
from tests.support.fakes.consul import NODE


@pytest.fixture
async def consul() -> AsyncIterator[Consul]:
    """Ours, with ACLs on."""
    async with fake_consul(acl=True) as made:
        yield made


def token(consul: Consul, role: str) -> str:
    """A new one of the role's own policy."""
    (policy,) = [one for one in wanted(Settings(), ()).consul_policies if one.name == f"modalnomad-{role}"]
    return consul.fake.token(policy.text, policy.name)


async def refused(doing: object, hint: str = "modalnomad doctor") -> None:
    """It must end with 403, and say this."""
    with pytest.raises(ServerRefused) as told:
        await doing  # type: ignore[misc]
    assert told.value.status == 403
    assert hint in (told.value.hint or "")


async def test_a_deployer_writes_records_and_holds_locks_and_sees_routers(consul: Consul) -> None:
    secret = token(consul, "deployer")
    deployer, api = consul.discovery(token=secret), consul.api(secret)
    async with deployer.lock("deploy", lifetime=5):
        await publish(deployer, "a")
        await deployer.publish(PutToken(Token(id="wk-1", secret_sha256="0" * 64, environment="main")))
        await deployer.publish(WithdrawApp("a", "main"))
    assert await routers(api, "modalnomad") == ()
    async with aclosing(watch_registrations(api)) as watch:  # type: ignore[type-var]
        assert await within(anext(watch)) == ()

    await refused(api.put("other/key", b""))


async def test_a_router_reads_records_and_writes_only_what_is_its_own(consul: Consul) -> None:
    secret = token(consul, "router")
    await publish(consul.discovery(token=consul.fake.management), "a")
    consul.fake.agent.register({"Name": "modalnomad-replica"})
    discovery, api = consul.discovery(token=secret), consul.api(secret)
    leader = Leader(api, "modalnomad/locks/drains")
    presence = RouterPresence(api, "modalnomad", "r1")
    async with watching(discovery) as watcher, Tasks("test") as tasks:
        await watcher.until("a")
        assert discovery.stale_since is None
        tasks.spawn(leader.run(), "run")
        await until(lambda: leader.held)
        await presence.tell(RouterInfo("r1", 8700, tls=False))
        await until(lambda: "modalnomad/routers/r1" in consul.fake.store.keys)
        async with aclosing(watch_registrations(api)) as watch:  # type: ignore[type-var]
            assert await within(anext(watch)) == ()
        assert await api.put("modalnomad/schedules", b"{}")
        await presence.close()

        await refused(publish(discovery, "b"))
        await refused(discovery.publish(WithdrawApp("a", "main")))
        await refused(api.put("modalnomad/apps/main/a", b"mine"))
        await refused(api.put("modalnomad/tokens/main/wk-1", b"mine"))
        await refused(api.put("other/key", b""))


@pytest.mark.parametrize("role", ["deployer", "router"])
async def test_sessions_of_the_node_that_is_asked_are_enough(consul: Consul, role: str) -> None:
    (policy,) = [one for one in wanted(Settings(), ()).consul_policies if one.name == f"modalnomad-{role}"]
    rules = {kind: rule for kind, rule in policy.rules.items() if kind != "session_prefix"}
    for node, holds in ((NODE, True), ("another", False)):
        narrow = json.dumps({**rules, "session": {node: {"policy": "write"}}})
        discovery = consul.discovery(token=consul.fake.token(narrow, f"{role}-{node}"))
        holding = discovery.lock(f"of-{node}", lifetime=5)
        if holds:
            async with holding:
                pass
        else:
            await refused(holding.__aenter__())


@pytest.mark.parametrize("secret", ["", "11111111-1111-1111-1111-111111111111"])
async def test_a_stranger_sees_and_writes_nothing(consul: Consul, secret: str) -> None:
    await publish(consul.discovery(token=consul.fake.management), "a")
    discovery = consul.discovery(token=secret)
    with pytest.raises(BackendError):
        await publish(discovery, "b")
    with pytest.raises(BackendError):
        await discovery.app("a", "main")
    hint = "modalnomad doctor" if secret else "no token is given"
    await refused(discovery.apps(), hint)
    await refused(discovery.tokens("main"), hint)
