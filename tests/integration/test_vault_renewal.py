"""Tokens of a real OpenBao that are kept alive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.http import Answer
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.renewal import AGAIN, LATEST, TokenRenewal
from modalnomad.settings import VaultSettings
from tests.support.openbao import OpenBao


def opened(bao: OpenBao, token: str) -> VaultClient:
    return VaultClient(VaultSettings(address=bao.address, token=SecretStr(token)))


def made(bao: OpenBao, **options: Any) -> str:
    with bao.client() as client:
        return str(client.auth.token.create(policies=["default"], no_parent=True, **options)["auth"]["client_token"])


def told(bao: OpenBao, token: str) -> dict[str, Any]:
    with bao.client() as client:
        return dict(client.auth.token.lookup(token)["data"])


async def test_a_token_with_a_period_is_renewed_again_and_again(
    openbao: OpenBao, caplog: pytest.LogCaptureFixture
) -> None:
    token = made(openbao, period="90s")
    client = opened(openbao, token)
    renewal = TokenRenewal(client)

    assert told(openbao, token).get("last_renewal_time") is None
    assert await renewal.look() == 30.0
    assert told(openbao, token)["last_renewal_time"] > 0
    assert await renewal.look() == 30.0
    assert not caplog.records
    await client.close()


async def test_a_token_whose_longest_life_is_nearly_over_is_told_once(
    openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = iter([3600, 1700, 1600, 3600])

    async def request(self: VaultClient, method: str, path: str, data: object = None) -> Answer:
        content = {"data": {"ttl": 3000, "renewable": True, "creation_ttl": 3600}}
        renewed = {"auth": {"lease_duration": next(left)}} if method == "POST" else content
        return Answer(200, {}, json.dumps(renewed).encode())

    monkeypatch.setattr(VaultClient, "request", request)
    client = opened(openbao, "root")
    renewal = TokenRenewal(client)

    assert [await renewal.look() for _ in range(4)] == [1200, 1700 / 3, 1600 / 3, 1200]
    assert [record.message.endswith("its longest life is nearly over") for record in caplog.records] == [True]
    await client.close()


async def test_a_token_that_cannot_be_renewed_is_told_once(openbao: OpenBao, caplog: pytest.LogCaptureFixture) -> None:
    client = opened(openbao, made(openbao, ttl="60s", renewable=False))
    renewal = TokenRenewal(client)
    assert [await renewal.look() <= 20.0 for _ in range(2)] == [True, True]

    assert [record.message.endswith("and cannot be renewed") for record in caplog.records] == [True]
    await client.close()


async def test_a_token_without_an_end_is_left(openbao: OpenBao) -> None:
    client = opened(openbao, "root")

    assert await TokenRenewal(client).look() == LATEST
    await client.close()


async def test_failures_are_told_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with OpenBao(tmp_path / "bao") as bao:
        client = opened(bao, made(bao, period="90s"))
        renewal = TokenRenewal(client)
        bao.seal()
        assert [await renewal.look() for _ in range(2)] == [AGAIN, AGAIN]
        bao.unseal()
        assert await renewal.look() == 30.0
        client.token = "unknown"
        assert [await renewal.look() for _ in range(2)] == [AGAIN, AGAIN]
        bao.stop()
        assert [await renewal.look() for _ in range(2)] == [AGAIN, AGAIN]
        await client.close()

    assert len(caplog.records) == 3
    assert "unknown, ended" in caplog.records[1].message
