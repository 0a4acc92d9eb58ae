"""Secrets in a real OpenBao: exact values, what others did to them, and a server that does not do what it should."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.vault.client import VaultClient, VaultSealed
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.model.errors import (
    BackendConflict,
    BackendRefused,
    BackendUnreachable,
    ModalNomadError,
    SecretMissing,
    UserError,
)
from modalnomad.model.manifest import SecretRef
from modalnomad.settings import VaultSettings
from tests.support.openbao import OpenBao

DB = SecretRef(name="db")
HIDDEN = "hidden-value-7"


@pytest.fixture
def mount(openbao: OpenBao) -> str:
    return openbao.mount()


@pytest.fixture
async def secrets(openbao: OpenBao, mount: str) -> AsyncIterator[VaultSecrets]:
    async with opened(openbao, mount) as store:
        yield store


class opened:
    """A store with a token, closed at the end."""

    def __init__(self, bao: OpenBao, mount: str, token: str = "root", **settings: object) -> None:
        self.store = VaultSecrets(
            VaultSettings.model_validate(
                {"address": bao.address, "mount": mount, "token": SecretStr(token), **settings}, strict=False
            )
        )

    async def __aenter__(self) -> VaultSecrets:
        return self.store

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OpenBao]:
    """A server that this test may do harm to."""
    with OpenBao(tmp_path / "bao") as server:
        yield server


EXACT = {
    "newlines": "a\nb\r\nc\n",
    "quotes": "\"'`",
    "shell": "$HOME $(id) ${NOMAD_ALLOC_ID} %s \\n \\",
    "hash": "a#b # c",
    "blanks": "  a\t ",
    "empty": "",
    "template": '{{ with secret "x" }}{{ end }}',
    "unicode": "grün 🐎 \ufeff \u2028 \x7f \x01",
    "html": "<a&b>",
    "json": '{"a": [1, 2]}',
    "big": "é" * 30_000,
}


async def test_values_are_kept_to_the_byte(secrets: VaultSecrets, openbao: OpenBao, mount: str) -> None:
    await secrets.create("exact", "main", EXACT)

    assert openbao.read(mount, "modalnomad/main/exact") == EXACT


async def test_what_a_task_reads_is_not_above_the_limit_of_its_folder(secrets: VaultSecrets) -> None:
    full = {f"K{n}": "&" * 5_000 for n in range(23)}
    await secrets.create("full", "main", full)

    with pytest.raises(UserError, match="more than 700,000"):
        await secrets.create("over", "main", full | {"K": "&" * 5_000})


@pytest.mark.parametrize(
    ("values", "reason"),
    [({f"K{n}": HIDDEN for n in range(401)}, "401 keys, more than 400"), ({"A": HIDDEN + "\udcff"}, "A is not UTF-8")],
)
async def test_what_the_server_cannot_keep_is_refused_before_it_is_asked(
    secrets: VaultSecrets, values: dict[str, str], reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        await secrets.create("db", "main", values)

    assert HIDDEN not in str(refused.value)
    assert await secrets.list("main") == ()


async def test_as_many_keys_as_are_allowed_can_be_stored(secrets: VaultSecrets) -> None:
    assert len((await secrets.create("many", "main", {f"K{n}": "1" for n in range(400)})).keys) == 400


async def test_a_deleted_version_is_a_missing_secret_and_can_be_created_again(
    secrets: VaultSecrets, openbao: OpenBao, mount: str
) -> None:
    await secrets.create("db", "main", {"A": "1"})
    with openbao.client() as client:
        client.secrets.kv.v2.delete_latest_version_of_secret("modalnomad/main/db", mount_point=mount)

    assert await secrets.list("main") == ()
    assert await secrets.versions([DB], "main") == {}
    with pytest.raises(SecretMissing):
        await secrets.check([DB], "main")
    again = await secrets.create("db", "main", {"B": "2"})
    assert again.version == 2
    assert await secrets.list("main") == (again,)


async def test_delete_leaves_no_old_version(secrets: VaultSecrets, openbao: OpenBao, mount: str) -> None:
    for value in "123":
        await secrets.create("db", "main", {"A": value}, replace=True)
    await secrets.delete("db", "main")

    with openbao.client() as client:
        assert client.read(f"{mount}/metadata/modalnomad/main/db") is None
    assert (await secrets.create("db", "main", {"A": "1"})).version == 1


async def test_of_two_who_replace_at_once_the_later_is_told(
    secrets: VaultSecrets, openbao: OpenBao, mount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await secrets.create("db", "main", {"A": "1"})
    asked = VaultClient.request

    async def slower(self: VaultClient, method: str, path: str, *args: object, **options: object) -> object:
        if method == "POST":
            with openbao.client() as client:
                client.secrets.kv.v2.create_or_update_secret("modalnomad/main/db", secret={"A": "2"}, mount_point=mount)
        return await asked(self, method, path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(VaultClient, "request", slower)
    with pytest.raises(BackendConflict, match="somebody else at the same time"):
        await secrets.create("db", "main", {"A": "3"}, replace=True)

    assert openbao.read(mount, "modalnomad/main/db") == {"A": "2"}


async def test_anonymous_ones_can_be_found_and_removed(secrets: VaultSecrets) -> None:
    await secrets.create_anonymous("a" * 64, "main", {"A": "1"})
    await secrets.create_anonymous("b" * 64, "main", {"A": "2"})
    await secrets.remove_anonymous("a" * 64, "main")
    await secrets.remove_anonymous("a" * 64, "main")

    assert list(await secrets.anonymous("main")) == ["b" * 64]
    assert await secrets.anonymous("staging") == {}


async def test_values_that_are_pruned_while_a_deploy_stores_them_anew_are_stored(
    secrets: VaultSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was quicker did not write the same: it removed what was too old."""
    digest, write = "c" * 64, secrets._write
    await secrets.create_anonymous(digest, "main", {"A": "1"})

    async def after_pruning(path: str, values: Mapping[str, str], version: int) -> dict[str, Any] | None:
        await secrets.remove_anonymous(digest, "main")
        monkeypatch.undo()
        return await write(path, values, version)

    monkeypatch.setattr("modalnomad.hashicorp.vault.secrets.FRESH", -1.0)
    monkeypatch.setattr(secrets, "_write", after_pruning)
    await secrets.create_anonymous(digest, "main", {"A": "1"})

    await secrets.check([SecretRef(anonymous=digest)], "main")


async def test_what_others_keep_beside_is_not_shown(secrets: VaultSecrets, openbao: OpenBao, mount: str) -> None:
    with openbao.client() as client:
        for path in ("Not Ours", "folder/inside"):
            client.secrets.kv.v2.create_or_update_secret(
                f"modalnomad/main/{path}", secret={"A": "2"}, mount_point=mount
            )

    assert await secrets.list("main") == ()


# --- servers that do not do what they should -----------------------------------------------------------------


async def test_a_token_without_rights_is_told_with_where_it_comes_from(
    openbao: OpenBao, mount: str, tmp_path: Path
) -> None:
    poor = openbao.token(openbao.policy("nothing", 'path "nothing" { capabilities = ["read"] }'))
    file = tmp_path / "token"
    file.write_text(poor + "\n")

    async with opened(openbao, mount, poor) as store:
        with pytest.raises(BackendRefused, match="403: permission denied") as refused:
            await store.create("db", "main", {"A": HIDDEN})
    async with opened(openbao, mount, token_file=file) as store:
        with pytest.raises(BackendRefused) as from_file:
            await store.list("main")
    async with opened(openbao, mount, "") as store:
        with pytest.raises(BackendRefused) as without:
            await store.list("main")

    assert "VAULT_TOKEN (vault.token)" in str(refused.value.hint)
    assert str(file) in str(from_file.value.hint)
    assert "no token is given" in str(without.value.hint)
    assert_silent(refused, poor, HIDDEN)
    assert_silent(from_file, poor)


async def test_a_token_file_that_is_written_anew_is_read_again(openbao: OpenBao, mount: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("out-of-date")
    async with opened(openbao, mount, token_file=file) as store:
        with pytest.raises(BackendRefused):
            await store.list("main")
        file.write_text("root\n")
        assert await store.list("main") == ()


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff"], ids=["gone", "empty", "two", "bytes"])
async def test_a_token_file_that_went_bad_while_it_was_used_is_a_refusal_like_any_other(
    openbao: OpenBao, mount: str, tmp_path: Path, content: bytes | None
) -> None:
    """Whoever goes on when Vault refuses something goes on then, too."""
    file = tmp_path / "token"
    file.write_text("out-of-date")
    async with opened(openbao, mount, token_file=file) as store:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(BackendRefused, match="with 403") as refused:
            await store.list("main")
        assert f"{file} (vault.token_file)" in str(refused.value.hint)
        file.write_text("root\n")
        assert await store.list("main") == ()


@pytest.mark.parametrize("content", [b"two\nlines", b"with blank", b"\xff", "gr\u00fcn".encode()])
async def test_a_file_that_holds_no_token_is_refused_unseen(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)

    with pytest.raises(BackendRefused, match=r"\(vault\.token_file\) holds no token") as refused:
        VaultSecrets(VaultSettings(token_file=file))

    assert content.decode("utf-8", "replace") not in str(refused.value)


async def test_a_store_that_is_not_there_is_told_with_the_command(openbao: OpenBao) -> None:
    async with opened(openbao, "not-there") as store:
        for call in (store.list("main"), store.check([DB], "main"), store.create("db", "main", {"A": HIDDEN})):
            with pytest.raises(BackendRefused, match="no key-value store of version 2 at not-there") as refused:
                await call
            assert "modalnomad setup" in str(refused.value.hint)
            assert_silent(refused, HIDDEN)


async def test_namespaces_are_apart_and_an_unknown_one_is_told(openbao: OpenBao, mount: str) -> None:
    with openbao.client() as client:
        client.write_data("sys/namespaces/team", data={})
        client.adapter.namespace = "team"
        client.sys.enable_secrets_engine("kv", path=mount, options={"version": "2"})
    async with opened(openbao, mount) as store, opened(openbao, mount, namespace="team") as own:
        made = await own.create("db", "main", {"A": "1"})
        assert await own.list("main") == (made,)
        assert await store.list("main") == ()
    async with opened(openbao, mount, namespace="nowhere") as store:
        for call in (store.list("main"), store.create("db", "main", {"A": HIDDEN}), store.check([DB], "main")):
            with pytest.raises(BackendRefused, match="namespace not found") as refused:
                await call
            assert "VAULT_NAMESPACE (vault.namespace)" in str(refused.value.hint)


async def test_a_store_of_version_1_is_no_store(openbao: OpenBao) -> None:
    with openbao.client() as client:
        client.sys.enable_secrets_engine("kv", path="old", options={"version": "1"})
    async with opened(openbao, "old") as store:
        with pytest.raises(BackendRefused, match="version 2"):
            await store.create("db", "main", {"A": HIDDEN})
    with openbao.client() as client:
        assert client.list("old") is None


async def test_a_sealed_server_is_told_from_one_that_is_gone(own: OpenBao) -> None:
    mount = own.mount()
    async with opened(own, mount) as store:
        own.seal()
        with pytest.raises(VaultSealed, match="503") as sealed:
            await store.create("db", "main", {"A": HIDDEN})
        assert "operator unseal" in str(sealed.value.hint)
        own.unseal()
        await store.create("db", "main", {"A": HIDDEN})
        own.stop()
        with pytest.raises(BackendUnreachable, match="Connection refused") as gone:
            await store.versions([DB], "main")

    assert "VAULT_ADDR" in str(gone.value.hint)
    assert_silent(sealed, HIDDEN, "root")


async def test_a_server_that_hangs_is_given_up_and_the_write_is_not_claimed_undone(
    own: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(own, own.mount()) as store:
        await store.create("db", "main", {"A": "1"})
        asked = VaultClient.request

        async def hang_first(self: VaultClient, method: str, *args: object, **options: object) -> object:
            if method == "POST":
                own.hang()
                monkeypatch.setattr("modalnomad.hashicorp.vault.client.ANSWER_LIMIT", 0.3)
                while self._idle:  # the next connection has this limit
                    self._idle.pop().adapter.close()
            return await asked(self, method, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(VaultClient, "request", hang_first)
        with pytest.raises(BackendUnreachable, match="no answer in time; the values may have been stored") as hung:
            await store.create("db", "main", {"A": HIDDEN}, replace=True)
        own.resume()

    assert_silent(hung, HIDDEN)


async def test_certificates_are_verified(tmp_path: Path) -> None:
    with OpenBao(tmp_path / "bao", tls=True) as bao:
        mount = bao.mount()
        async with opened(bao, mount) as store:
            with pytest.raises(BackendUnreachable) as refused:
                await store.list("main")
        async with opened(bao, mount, ca_cert=bao.ca_cert) as store:
            await store.create("db", "main", {"A": "1"})
        async with opened(bao, mount, ca_cert=bao.ca_cert, address=bao.address.replace("https", "http")) as store:
            with pytest.raises(ModalNomadError):
                await store.list("main")

    assert "VAULT_CACERT (vault.ca_cert)" in str(refused.value.hint)
    with pytest.raises(BackendRefused, match="No such file"):
        VaultSecrets(VaultSettings(ca_cert=tmp_path / "none.pem"))


async def test_what_answers_but_is_no_vault_is_refused(own: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(own, own.mount()) as store:
        await store.create("db", "main", {"A": "1"})
        monkeypatch.setattr("modalnomad.hashicorp.http.Answer.json", lambda _: ["not", "ours"])
        with pytest.raises(BackendRefused, match="no Vault"):
            await store.versions([DB], "main")


async def test_no_value_and_no_token_is_logged(openbao: OpenBao, mount: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = openbao.token("root")
    async with opened(openbao, mount, token) as store:
        await store.create("db", "main", {"A": HIDDEN})
        await store.check([DB], "main")
        await store.list("main")

    assert HIDDEN not in caplog.text
    assert token not in caplog.text


def assert_silent(caught: pytest.ExceptionInfo[ModalNomadError], *hidden: str) -> None:
    """Neither the error nor anything it was raised from shows them."""
    error: BaseException | None = caught.value
    while error is not None:
        told = json.dumps([str(error), repr(error), str(getattr(error, "hint", ""))])
        assert not [value for value in hidden if value in told]
        error = error.__cause__ or error.__context__
