"""The platform's key on a cluster whose servers hold everybody to their rights: the first routers make it, and it is
replaced while requests come, none of which is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from modalnomad.hashicorp.checks.key import check_key
from modalnomad.hashicorp.setup.key import change_key
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.platform_key import FIELD, PATH, PREVIOUS, PlatformKeys
from modalnomad.render.cluster import META_KEY
from modalnomad.settings import ConsulSettings, NomadSettings, Settings, VaultSettings
from modalnomad.wiring.cluster import KEY_KEPT
from tests.support.cluster import Cluster, Router, cluster, leader_of
from tests.support.load import PROGRAM, SITE, Load, verdict
from tests.support.nomad_calls import Calls

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),  # several commands and deploys, beside a load
]

SLOW = """
import os, pathlib, modal
app = modal.App("slow")
if "MODALNOMAD_REPLICA" not in os.environ:
    pathlib.Path("{described}").read_text()

@app.function()
@modal.fastapi_endpoint()
def f():
    return "hello"
"""
SITES = {
    "warm": {"window": 600, "most": 3, "least": 2, "inputs": 16},
    "cold": {"window": 2, "most": 1, "least": 0, "inputs": 16},
}


@dataclass
class World:
    """A cluster, and an App whose requests are counted."""

    cluster: Cluster
    seen: Path
    management: Mapping[str, str]
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def router(self, *, serves_nodes: bool = False) -> AbstractAsyncContextManager[Router]:
        """One more. `serves_nodes`: they get their code from this one."""
        return self.cluster.router(env={} if serves_nodes else {"MODALNOMAD_ARTIFACTS__PORT": "0"})

    async def setup(self, *arguments: str, code: int = 0) -> str:
        """What it says."""
        done = await self.cluster.cli("setup", *arguments, env=self.management, code=code)
        return " ".join((done.stdout + done.stderr).split())

    def settings(self) -> Settings:
        """For what is asked from here, as the operator."""
        servers = self.cluster
        return Settings(
            nomad=NomadSettings(address=servers.nomad.address, token=SecretStr(self.management["NOMAD_TOKEN"])),
            consul=ConsulSettings(
                address=servers.consul.address, token=SecretStr(self.management["CONSUL_HTTP_TOKEN"])
            ),
            vault=VaultSettings(address=servers.vault.address, token=SecretStr(self.management["VAULT_TOKEN"])),
        )

    async def doctor(self) -> str:
        """What it says of the key."""
        client = VaultClient(self.settings().vault)
        try:
            return (await check_key(client, self.settings())).message
        finally:
            await client.close()

    async def deploy(self, code: int = 0) -> str:
        """Always the same program."""
        file = self.cluster.folder / "counted.py"
        text = PROGRAM.format(folder=self.seen, version="v1", name="counted", pause=0.05)
        text += "".join(SITE.format(site=site, **limits) for site, limits in SITES.items())
        await asyncio.to_thread(file.write_text, text)
        done = await self.cluster.cli("deploy", str(file), code=code)
        return " ".join((done.stderr + done.stdout).split())

    def load(self, router: Router, **how: Any) -> Load:
        """Clients of one router."""
        target = "counted-warm.localhost", int(router.url.rpartition(":")[2])
        return Load(lambda: target, numbers=self.numbers, **how)

    async def ask(self, router: Router, site: str) -> int:
        """The status of one counted request."""
        status, _ = await router.get(f"counted-{site}.localhost", f"/?{next(self.numbers)}")
        return status

    def record(self) -> dict[str, str]:
        """Of the key, as Vault has it."""
        return self.cluster.vault.read("secret", PATH)

    def marks(self, *, children: bool) -> dict[str, str]:
        """Job that is not over → by which key it was made."""
        jobs = self.cluster.nomad.state.jobs.values()
        living = [job for job in jobs if not job.get("Stop") and job["Status"] != "dead" and META_KEY in job["Meta"]]
        return {job["ID"]: job["Meta"][META_KEY] for job in living if ("/" in job["ID"]) is children}

    async def only(self, mark: str) -> None:
        """Returns when all replicas are made by that key."""
        await self.cluster.nomad.until(lambda state: set(self.marks(children=True).values()) == {mark})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "seen").mkdir()
    async with cluster(folder, acl=True, MODALNOMAD_ROUTER__RATE="0", MODALNOMAD_VAULT__ROTATION="0.3") as made:
        management = {
            "NOMAD_TOKEN": made.nomad.management,
            "CONSUL_HTTP_TOKEN": made.consul.management,
            "VAULT_TOKEN": made.vault.root_token,
        }
        yield World(made, folder / "seen", management)


async def test_a_deploy_takes_the_key_that_is_there_when_it_holds_the_app(world: World) -> None:
    described = world.cluster.folder / "described"
    os.mkfifo(described)
    file = world.cluster.folder / "slow.py"
    file.write_text(SLOW.format(described=described))
    deploy = world.cluster.tasks.spawn(world.cluster.cli("deploy", str(file)), "deploy")
    with await asyncio.to_thread(described.open, "w"):  # the program is being described: the deploy holds nothing yet
        for forget in (False, True):
            (step,) = [step async for step in change_key(world.settings(), forget=forget)]
            assert step.outcome == "changed"
    await deploy

    key = PlatformKeys(bytes.fromhex(world.record()[FIELD]))
    assert set(world.marks(children=False).values()) == {key.mark}, "no router knows a ticket of another"
    assert "the platform key is there" in await world.doctor()
    await world.cluster.cli("app", "stop", "slow", "--yes")
    async with Calls(world.cluster.nomad.address, world.management["NOMAD_TOKEN"]) as calls:
        await calls.call("DELETE", "/v1/job/slow.f.r1", namespace="modalnomad-main", purge=True)


async def test_routers_that_find_no_key_make_one_and_who_deploys_is_told_so(world: World) -> None:
    with world.cluster.vault.client() as root:
        root.secrets.kv.v2.delete_metadata_and_all_versions(PATH, mount_point="secret")
    told = await world.deploy(code=1)
    assert "Vault holds no platform key at secret/modalnomad-platform/key" in told
    assert "the first router makes it" in told

    starting = [world.router(serves_nodes=number == 0) for number in range(2)]
    routers = await asyncio.gather(*(each.__aenter__() for each in starting))
    try:
        assert set(world.record()) == {FIELD}
        await world.deploy()
        assert [await world.ask(router, "warm") for router in routers] == [200] * 2
    finally:
        await asyncio.gather(*(each.__aexit__(None, None, None) for each in starting))


async def test_a_key_is_replaced_under_requests(world: World) -> None:
    first = world.record()[FIELD]
    kept = Path(world.cluster.env["MODALNOMAD_HOME"]) / KEY_KEPT
    async with world.router(serves_nodes=True) as one, world.router() as two:
        leader, other = (one, two) if await leader_of((one, two)) is one else (two, one)
        assert await world.ask(one, "warm") == 200
        (old,) = set(world.marks(children=False).values())
        # One that other routers use all the time is let go after a minute: they rest now and then.
        async with world.load(leader) as load, world.load(other, clients=("kept", "pooled"), pace=0.5) as second:
            await load.until(20)
            assert "deploy every App again" in await world.setup("--rotate-key")
            assert world.record()[PREVIOUS] == first != world.record()[FIELD]
            await _refused_while_needed(world)
            assert await world.ask(one, "cold") == 200, "still of the old key, and new to this router"
            async with world.router() as later:
                assert [await world.ask(later, site) for site in SITES] == [200, 200]

            assert "Jobs registered anew, as they are made now: cold, warm." in await world.deploy()
            (new,) = set(world.marks(children=False).values())
            assert new != old
            await world.only(new)
            assert "nobody needs it" in await world.doctor()
            await world.setup("--forget-previous-key")
            assert set(world.record()) == {FIELD}
            await load.until(20)
            await second.until(5)
        found = verdict([load, second], world.seen)
        assert (found.lost, found.doubled) == ([], []), str(found)
        assert [await world.ask(router, site) for router in (one, two) for site in SITES] == [200] * 4
        said = "".join([*one.errors, *two.errors])
    assert first not in said
    assert world.record()[FIELD] not in said
    assert (kept.stat().st_mode & 0o777, kept.read_text()) == (0o600, world.record()[FIELD])
    (step,) = [step async for step in change_key(world.settings(), forget=True)]
    assert (step.outcome, step.detail) == ("there", "no previous one is kept")


async def _refused_while_needed(world: World) -> None:
    before = world.record()
    needed = "is still needed: counted (main) not deployed since; replicas of counted (main)"
    assert needed in await world.setup("--forget-previous-key", code=1)
    (step,) = [step async for step in change_key(world.settings(), forget=False)]
    assert step.outcome == "failed"
    assert needed in step.detail
    assert world.record() == before
    assert "counted (main) not deployed since" in await world.doctor()


async def test_apps_whose_records_are_elsewhere_need_the_key_too(world: World) -> None:
    """It is one for all of a Vault; and the prefix may be mistaken."""
    async with world.router(serves_nodes=True) as router:
        assert await world.ask(router, "warm") == 200
        await world.setup("--rotate-key")
        before = world.record()

        mistaken = {**world.management, "MODALNOMAD_CONSUL__PREFIX": "other"}
        done = await world.cluster.cli("setup", "--forget-previous-key", env=mistaken, code=1)
        said = " ".join(done.stdout.split())
        assert "replicas of counted (main) run with it; counted (main), deployed with another consul.prefix" in said
        assert "is this the right consul.prefix?" in said
        assert world.record() == before

        await world.deploy()
        (new,) = set(world.marks(children=False).values())
        await world.only(new)
        await world.setup("--forget-previous-key")


async def test_options_of_the_key_stand_alone_but_for_the_dry_run(world: World) -> None:
    before = world.record()
    for more in ("--forget-previous-key", "--env=main"):
        assert "each do one thing alone" in await world.setup("--rotate-key", more, code=1)
    assert "would change" in await world.setup("--rotate-key", "--dry-run")
    assert world.record() == before


async def test_who_does_not_see_the_jobs_of_an_app_forgets_nothing_it_needs(world: World) -> None:
    await world.deploy()
    await world.setup("--rotate-key")
    before = world.record()
    blind = {"NOMAD_TOKEN": world.cluster.nomad.token('namespace "modalnomad-staging" { policy = "read" }')}

    done = await world.cluster.cli("setup", "--forget-previous-key", env={**world.management, **blind}, code=1)
    assert "with which key counted (main) was deployed cannot be told" in " ".join(done.stdout.split())
    assert world.record() == before
    assert PREVIOUS in before


async def test_of_jobs_without_a_mark_it_is_not_said_by_which_key_they_were_made(world: World) -> None:
    await world.deploy()
    rotated = {FIELD: "5a" * 32, PREVIOUS: world.record()[FIELD]}
    with world.cluster.vault.client() as root:
        root.secrets.kv.v2.create_or_update_secret(PATH, rotated, mount_point="secret")
    said = "of an earlier modalnomad, do not say which key is theirs"
    assert said not in await world.doctor()
    for job in world.cluster.nomad.state.jobs.values():
        job["Meta"].pop(META_KEY, None)

    told = await world.doctor()
    assert "counted (main) not deployed since" in told
    assert said in told
