"""What answers in the place of Consul or Vault may say anything: whoever looks at a token goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from modalnomad.hashicorp.consul.login import LoginRenewal
from modalnomad.hashicorp.http import Answer, HttpClient
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.renewal import AGAIN, TokenRenewal

DEEP = b"[" * 100_000 + b"]" * 100_000


class Odd:
    """One that gives the same answer to everything."""

    address = "http://127.0.0.1:1"

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def request(self, *asked: Any, **how: Any) -> Answer:
        return Answer(200, {}, self.body)


@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b"{}", b'{"data": []}', b'{"data": null}', b"{", DEEP])
async def test_whoever_renews_a_token_tells_it_once_and_goes_on(caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    renewal = TokenRenewal(cast(VaultClient, Odd(body)))
    assert [await renewal.look() for _ in range(2)] == [AGAIN, AGAIN]
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "its answer about the token cannot be read"
    ]


@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b'{"ExpirationTime": 7}', b"{", DEEP])
async def test_whoever_logs_in_anew_tells_it_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    login = LoginRenewal(cast(HttpClient, Odd(body)), tmp_path / "identity", "nomad-workloads")
    for _ in range(2):
        await login.look()
    assert len(caplog.records) == 1
