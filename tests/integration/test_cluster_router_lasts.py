"""What goes on beside a router's requests, and fails in a way that nobody foresaw, does not end it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.consul.leader import Leader
from modalnomad.hashicorp.consul.login import LoginRenewal
from modalnomad.hashicorp.consul.routers import RouterPresence
from modalnomad.hashicorp.vault.key_watch import KeyWatch
from modalnomad.hashicorp.vault.renewal import TokenRenewal
from modalnomad.hashicorp.vault.rotation import Rotation
from modalnomad.settings import ConsulSettings, NomadSettings, Settings, VaultSettings
from modalnomad.wiring import lasting
from modalnomad.wiring.routing import open_router
from modalnomad.wiring.scheduler import Scheduler
from tests.support.cluster import PATIENCE
from tests.support.consul import fake_consul
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.openbao import OpenBao

LOOPS = {
    "leader": (Leader, "_hold"),
    "login": (LoginRenewal, "look"),
    "presence": (RouterPresence, "tell"),
    "platform key": (KeyWatch, "look"),
    "token of Vault": (TokenRenewal, "look"),
    "rotation": (Rotation, "look"),
    "schedules": (Scheduler, "_save"),
}


class Failures:
    """The first call of each ends with an error that is none of ours, the others do what they should."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.again = asyncio.Event()
        """Each was called again."""

    def of(self, name: str, right: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def once(*given: Any) -> Any:
            self.calls[name] += 1
            if self.calls[name] == 1:
                raise RuntimeError(f"{name}: can't start new thread")
            if min(self.calls[name] for name in LOOPS) > 1:
                self.again.set()
            return await right(*given)

        return once


async def test_each_of_its_loops_begins_again(
    tmp_path: Path, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lasting, "FIRST", 0.0)
    failures = Failures()
    for name, (kind, method) in LOOPS.items():
        monkeypatch.setattr(kind, method, failures.of(name, getattr(kind, method)))
    async with FakeNomad() as nomad, fake_consul() as consul, asyncio.timeout(PATIENCE):
        settings = Settings.model_validate(
            {
                "home": tmp_path,
                "nomad": NomadSettings(address=nomad.address),
                "consul": ConsulSettings(address=consul.address, login_file=tmp_path / "identity"),
                "vault": VaultSettings(
                    address=openbao.address, token=SecretStr("root"), mount=openbao.mount(), rotation=0.05
                ),
                "artifacts": {"host": "127.0.0.1", "port": 0},
                "router": {"port": 0, "admin_host": ""},
            }
        )
        async with open_router(settings) as parts:
            parts.keys.ask()
            await failures.again.wait()
            assert not parts.death.future.done()
            assert parts.router.unready == ()
    told = [record.getMessage() for record in caplog.records if "background loop" in record.getMessage()]
    assert len(told) == len(LOOPS), told
