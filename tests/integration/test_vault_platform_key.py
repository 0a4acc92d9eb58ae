"""The platform's key in a real OpenBao, and what is kept of it while that is away."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import hvac.exceptions
import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.setup.platform import wanted
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.key_watch import KeyWatch
from modalnomad.hashicorp.vault.platform_key import (
    FIELD,
    PATH,
    PlatformKeys,
    forget_previous,
    make_key,
    platform_keys,
    read_keys,
    rotate_key,
)
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendConflict, BackendRefused, BackendUnreachable, NotFound
from modalnomad.settings import Settings, VaultSettings
from tests.support.openbao import OpenBao

DENIED = r"403: .*permission denied"


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


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"key": "hidden-stuff"},
        {"key": "ab" * 31},
        {"key": "ab" * 32, "previous": ""},
        {"key": "ab" * 32, "previous": "cd"},
    ],
)
async def test_what_is_no_key_is_refused_unseen(client: VaultClient, openbao: OpenBao, content: dict[str, str]) -> None:
    with openbao.client() as root:
        root.secrets.kv.v2.create_or_update_secret(
            PATH, secret=content or {"other": "1"}, mount_point=client.settings.mount
        )

    with pytest.raises(BackendRefused, match="is no platform key") as refused:
        await read_keys(client)

    assert not [value for value in content.values() if len(value) > 2 and value in str(refused.value)]


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


# --- the right to make it --------------------------------------------------------------------------------------------


def role(openbao: OpenBao, client: VaultClient, name: str) -> str:
    """A token with one of the policies that `setup` makes, for the client's store."""
    settings = Settings(vault=client.settings)
    (policy,) = [each for each in wanted(settings, ["main"]).vault_policies if each.name == f"modalnomad-{name}"]
    return openbao.token(openbao.policy(f"{name}-{client.settings.mount}", policy.text))


@pytest.mark.parametrize("cas", [None, 0, 1])
@pytest.mark.parametrize("state", ["there", "deleted", "destroyed"])
async def test_the_routers_right_makes_the_first_and_never_another(
    client: VaultClient, openbao: OpenBao, state: str, cas: int | None
) -> None:
    mount, path = client.settings.mount, f"{client.settings.mount}/data/{PATH}"
    client.token = role(openbao, client, "router")
    body = {"data": {FIELD: "ab" * 32}, "options": {} if cas is None else {"cas": cas}}
    if cas != 1:
        await client.request("POST", path, body)
    else:
        await make_key(client)
    with openbao.client() as root:
        if state != "there":
            root.secrets.kv.v2.delete_latest_version_of_secret(PATH, mount_point=mount)
        if state == "destroyed":
            root.secrets.kv.v2.destroy_secret_versions(PATH, [1], mount_point=mount)

    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(BackendRefused, match=DENIED):
            await client.request(method, path, body)
    for other in (f"delete/{PATH}", f"undelete/{PATH}", f"destroy/{PATH}", f"metadata/{PATH}"):
        with pytest.raises(BackendRefused, match=DENIED):
            await client.request("POST", f"{mount}/{other}", {"versions": [1]})
    kind = {"Content-Type": "application/merge-patch+json"}
    with openbao.client(client.token) as router, pytest.raises(hvac.exceptions.Forbidden):
        router.adapter.request("patch", f"/v1/{path}", json=body, headers=kind)


async def test_of_many_routers_that_start_at_once_one_makes_it(
    client: VaultClient, openbao: OpenBao, tmp_path: Path
) -> None:
    client.token = role(openbao, client, "router")
    starts = (platform_keys(client, tmp_path / str(number), make=True) for number in range(8))
    found = await asyncio.gather(*starts)

    assert {keys.all for keys in found} == {found[0].all}
    assert {keys.version for keys in found} == {1}


async def test_a_router_whose_policy_is_older_says_what_makes_it(
    client: VaultClient, openbao: OpenBao, tmp_path: Path
) -> None:
    client.token = role(openbao, client, "deployer")

    with pytest.raises(BackendRefused, match="this token may not make it") as refused:
        await platform_keys(client, tmp_path / "key", make=True)
    assert "modalnomad setup --only vault" in str(refused.value.hint)
    with pytest.raises(NotFound) as missing:
        await platform_keys(client, tmp_path / "key")
    assert "modalnomad router" in str(missing.value.hint)


# --- another one -----------------------------------------------------------------------------------------------------


async def test_a_new_one_keeps_the_one_before_until_that_is_forgotten(
    client: VaultClient, openbao: OpenBao, tmp_path: Path
) -> None:
    await make_key(client)
    first = await platform_keys(client, tmp_path / "key")
    await rotate_key(client, first)
    second = await platform_keys(client, tmp_path / "key")

    assert second.previous == first.key != second.key
    assert second.mark != first.mark
    assert second.since > first.since
    for change in (rotate_key, forget_previous):
        with pytest.raises(BackendConflict, match="somebody else changed"):
            await change(client, first)
    openbao.seal()
    try:
        assert await platform_keys(client, tmp_path / "key") == second
    finally:
        openbao.unseal()

    await forget_previous(client, second)
    third = await platform_keys(client, tmp_path / "key")
    assert (third.key, third.previous) == (second.key, None)
    assert (tmp_path / "key").read_text() == third.key.hex()
    for keys in (first, second, third):
        assert not [key for key in keys.all if key.hex() in repr(keys) or repr(key) in repr(keys)]


async def test_one_who_watches_hears_of_it_once_and_keeps_it(
    client: VaultClient, openbao: OpenBao, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, told = tmp_path / "key", list[PlatformKeys]()
    await make_key(client)
    known = await platform_keys(client, cache)
    watch = KeyWatch(client, cache, known, told.append, every=3600)
    await watch.look()
    assert told == []

    await rotate_key(client, known)
    for _ in range(2):
        await watch.look()
    assert [keys.all for keys in told] == [(told[0].key, known.key)]
    assert cache.read_text().split() == [key.hex() for key in told[0].all]

    with openbao.client() as root:
        root.secrets.kv.v2.delete_metadata_and_all_versions(PATH, mount_point=client.settings.mount)
    for _ in range(2):
        await watch.look()
    client.token = "unknown"
    await watch.look()
    assert len(told) == 1
    assert [record.levelname for record in caplog.records if "new platform key" in record.message] == ["WARNING"]
    assert not [key for key in told[0].all if key.hex() in caplog.text]


async def test_one_who_watches_goes_on_where_the_token_s_file_is_gone(
    client: VaultClient, openbao: OpenBao, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the watch the router would end, which has the key that it needs."""
    file = tmp_path / "token"
    file.write_text("ended")
    await make_key(client)
    first = await platform_keys(client, tmp_path / "key")
    await rotate_key(client, first)
    told = list[PlatformKeys]()
    own = VaultClient(client.settings.model_copy(update={"token_file": file}))
    watch = KeyWatch(own, tmp_path / "key", first, told.append, every=3600)
    file.unlink()
    await watch.look()
    assert "with 403" in caplog.text
    file.write_text("root")
    await watch.look()
    await own.close()

    assert [keys.previous for keys in told] == [first.key]


async def test_one_who_watches_looks_when_asked_to(client: VaultClient, tmp_path: Path) -> None:
    await make_key(client)
    known = await platform_keys(client, tmp_path / "key")
    heard = asyncio.get_running_loop().create_future()
    watch = KeyWatch(client, tmp_path / "key", known, heard.set_result, every=3600)
    async with Tasks("test") as tasks:
        tasks.guard(watch.run(), "watch")
        await rotate_key(client, known)
        watch.ask()
        assert (await heard).previous == known.key
