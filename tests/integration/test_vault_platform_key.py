"""The platform's key in a real OpenBao, and what is kept of it while that is away."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.platform_key import PATH, make_key, platform_keys, read_keys
from modalnomad.model.errors import BackendRefused, BackendUnreachable, NotFound
from modalnomad.settings import VaultSettings
from tests.support.openbao import OpenBao


@pytest.fixture
async def client(openbao: OpenBao) -> AsyncIterator[VaultClient]:
    opened = VaultClient(VaultSettings(address=openbao.address, mount=openbao.mount(), token=SecretStr("root")))
    yield opened
    await opened.close()


async def test_of_many_who_make_it_one_does_and_all_read_the_same(client: VaultClient, tmp_path: Path) -> None:
    made = await asyncio.gather(*(make_key(client) for _ in range(6)))

    assert made.count(True) == 1
    keys = await platform_keys(client, tmp_path / "a" / "key")
    assert len(keys.key) == 32
    assert keys.all == (keys.key,)
    assert await read_keys(client) == keys
    assert stat.S_IMODE((tmp_path / "a" / "key").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key"]


async def test_without_setup_the_command_is_named(client: VaultClient, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        await platform_keys(client, tmp_path / "key")

    assert "modalnomad setup" in str(missing.value.hint)
    assert not (tmp_path / "key").exists()


async def test_a_deleted_key_is_not_silently_made_anew(client: VaultClient, openbao: OpenBao) -> None:
    await make_key(client)
    with openbao.client() as root:
        root.secrets.kv.v2.delete_latest_version_of_secret(PATH, mount_point=client.settings.mount)

    with pytest.raises(BackendRefused, match="was deleted, and older versions"):
        await make_key(client)


@pytest.mark.parametrize("content", [{}, {"key": "hidden-stuff"}, {"key": "ab" * 31}])
async def test_what_is_no_key_is_refused_unseen(client: VaultClient, openbao: OpenBao, content: dict[str, str]) -> None:
    with openbao.client() as root:
        root.secrets.kv.v2.create_or_update_secret(
            PATH, secret=content or {"other": "1"}, mount_point=client.settings.mount
        )

    with pytest.raises(BackendRefused, match="is no platform key") as refused:
        await read_keys(client)

    assert not [value for value in content.values() if value in str(refused.value)]


async def test_while_vault_is_away_the_kept_one_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "key"
    with OpenBao(tmp_path / "bao") as bao:
        client = VaultClient(VaultSettings(address=bao.address, mount=bao.mount(), token=SecretStr("root")))
        await make_key(client)
        keys = await platform_keys(client, cache)
        bao.seal()
        sealed = await platform_keys(client, cache)
        bao.stop()
        stopped = await platform_keys(client, cache)
        cache.unlink()
        with pytest.raises(BackendUnreachable):
            await platform_keys(client, cache)
        await client.close()

    assert sealed == stopped == keys
    assert "sealed" in caplog.text
    assert "Connection refused" in caplog.text
    assert keys.key.hex() not in caplog.text


async def test_a_token_without_the_right_gets_no_kept_key(openbao: OpenBao, tmp_path: Path) -> None:
    mount, cache = openbao.mount(), tmp_path / "key"
    settings = VaultSettings(address=openbao.address, mount=mount, token=SecretStr("root"))
    client = VaultClient(settings)
    await make_key(client)
    await platform_keys(client, cache)
    client.token = "unknown"

    with pytest.raises(BackendRefused, match="403"):
        await platform_keys(client, cache)
    await client.close()


async def test_a_cache_that_cannot_be_written_is_told_and_the_key_serves(
    client: VaultClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await make_key(client)
    (tmp_path / "file").touch()

    assert await platform_keys(client, tmp_path / "file" / "key")
    assert "cannot be written" in caplog.text
