"""A process that logs in to Consul anew, by its identity, when its token ends."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.consul import login
from modalnomad.hashicorp.consul.login import LoginRenewal
from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.http import HttpClient
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.settings import ConsulSettings, NomadSettings, Settings
from tests.support.consul import Consul, fake_consul
from tests.support.fakes.nomad.server import FakeNomad

METHOD = "nomad-workloads"
ALLOCATION = {"ID": "11111111-2222-3333-4444-555555555555", "TaskGroup": "router"}
JOB = {"Namespace": "modalnomad", "ID": "modalnomad-router"}


@dataclass
class Router:
    """What of a router talks to Consul, its identity in a file."""

    consul: Consul
    nomad: FakeNomad
    http: HttpClient
    renewal: LoginRenewal
    file: Path

    @property
    def token(self) -> str:
        return self.http.server.headers()["X-Consul-Token"]

    @property
    def logins(self) -> int:
        return sum(asked.startswith("POST /v1/acl/login") for asked in self.consul.fake.requests)

    def sign(self, **identity: Any) -> None:
        """Nomad puts a fresh identity into the file."""
        claims = {"name": "consul_default", "audience": ("consul.io",)} | identity
        self.file.write_text(self.nomad.signer.identity(ALLOCATION, JOB, "router", **claims))

    async def may_read(self) -> bool:
        return (await self.http.request("GET", "/v1/kv/modalnomad/x", ok=(403, 404))).status == 404


@asynccontextmanager
async def router(folder: Path, token: str = "") -> AsyncIterator[Router]:
    """With a token that a login gave, or with `token`; ACLs are on and prepared."""
    async with FakeNomad() as nomad, fake_consul(acl=True) as consul:
        admin = ConsulSettings(address=consul.address, token=SecretStr(consul.fake.management))
        settings = Settings(nomad=NomadSettings(address=nomad.address), consul=admin)
        made = [one async for one in set_up(settings, (), router_job="modalnomad", only=["consul"])]
        assert {one.outcome for one in made} == {"made"}
        given = token or str(consul.fake.acl.add_token([], roles=("modalnomad-router",))["SecretID"])
        http = HttpClient(consul_server(ConsulSettings(address=consul.address, token=SecretStr(given))))
        file = folder / "nomad_consul_default.jwt"
        one = Router(consul, nomad, http, LoginRenewal(http, file, METHOD), file)
        one.sign()
        try:
            yield one
        finally:
            await one.renewal.close()
            await http.close()


async def test_a_token_that_lives_is_left_alone(tmp_path: Path) -> None:
    async with router(tmp_path) as one:
        given = one.token

        await one.renewal.look()

        assert (one.token, one.logins) == (given, 0)
        await one.renewal.close()
        assert given in one.consul.fake.acl.tokens


async def test_a_token_that_ended_is_replaced_and_the_new_one_logged_out(tmp_path: Path) -> None:
    async with router(tmp_path) as one:
        del one.consul.fake.acl.tokens[one.token]
        assert not await one.may_read()

        await one.renewal.look()

        assert await one.may_read()
        own = one.consul.fake.acl.tokens[one.token]
        assert [role["Name"] for role in own["Roles"]] == ["modalnomad-router"]
        await one.renewal.look()
        assert one.logins == 1
        await one.renewal.close()
        assert own["SecretID"] not in one.consul.fake.acl.tokens


async def test_a_token_is_replaced_before_it_ends(tmp_path: Path) -> None:
    async with router(tmp_path) as one:
        for seconds, logins in ((60, 0), (40, 1)):
            end = datetime.now(UTC) + timedelta(seconds=seconds)
            # As Go writes it.
            text = end.strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
            one.consul.fake.acl.tokens[one.token]["ExpirationTime"] = text
            await one.renewal.look()
            assert one.logins == logins


class Ahead(datetime):
    """A clock that was never set."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Ahead:
        return super().now(tz) + timedelta(hours=2)


async def test_a_clock_that_is_ahead_does_not_end_what_it_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with router(tmp_path) as one:
        one.consul.fake.acl.methods[METHOD]["MaxTokenTTL"] = "1h0m0s"
        del one.consul.fake.acl.tokens[one.token]
        monkeypatch.setattr(login, "datetime", Ahead)
        for _ in range(3):
            await one.renewal.look()
        assert one.logins == 1

        for seconds, logins in ((3540, 1), (3570, 2), (3570, 2)):
            monkeypatch.setattr(login, "monotonic", lambda seconds=seconds: time.monotonic() + seconds)
            await one.renewal.look()
            assert one.logins == logins


async def test_what_keeps_it_from_logging_in_is_told_once_without_the_identity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modalnomad.consul")
    async with router(tmp_path, "00000000-1111-2222-3333-444444444444") as one:
        method = one.consul.fake.acl.methods.pop(METHOD)
        for _ in range(2):
            await one.renewal.look()
        one.file.unlink()
        await one.renewal.look()
        one.consul.fake.acl.methods[METHOD] = method
        one.sign(ttl=-3600.0)
        await one.renewal.look()
        identity = one.file.read_text()
        one.sign()
        await one.renewal.look()
        assert await one.may_read()
        own = one.token

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4, told
    assert f'auth method "{METHOD}" not found' in told[0]
    assert f"cannot use {one.file}" in told[1]
    assert "token is expired (exp)" in told[2]
    assert told[3].startswith("logged in to Consul anew")
    assert not [secret for secret in (identity, own) if secret in caplog.text]


async def test_while_consul_is_away_or_without_acls_nothing_is_done(tmp_path: Path) -> None:
    async with router(tmp_path) as one:
        given = one.token
        async with one.consul.fake.gone():
            await one.renewal.look()
        one.consul.fake.acl.enabled = False
        await one.renewal.look()

        assert (one.token, one.logins) == (given, 0)
