"""The secrets port, whatever keeps the values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.hashicorp.vault.secrets import VaultSecrets
from modalnomad.model.errors import BackendConflict, ModalNomadError, NotFound, SecretMissing, UserError
from modalnomad.model.manifest import SecretRef
from modalnomad.ports.secrets import Secrets
from modalnomad.settings import VaultSettings
from tests.support.openbao import OpenBao

ANONYMOUS = "a" * 64
WRITE_ONLY = """
path "{mount}/data/modalnomad/*" {{ capabilities = ["create", "update"] }}
path "{mount}/subkeys/modalnomad/*" {{ capabilities = ["read"] }}
path "{mount}/metadata/modalnomad/*" {{ capabilities = ["read", "list", "delete"] }}
"""


@pytest.fixture(params=["embedded", "openbao"])
async def secrets(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Secrets]:
    """A store of each kind, empty. OpenBao: a real server, and a token with the rights of a deployer."""
    if request.param == "embedded":
        yield EmbeddedSecrets(tmp_path / "home")
        return
    bao: OpenBao = request.getfixturevalue("openbao")
    mount = bao.mount()
    token = bao.token(bao.policy(f"writer-{mount}", WRITE_ONLY.format(mount=mount)))
    store = VaultSecrets(VaultSettings(address=bao.address, mount=mount, token=SecretStr(token)))
    yield store
    await store.close()


def ref(name: str, *keys: str, environment: str | None = None) -> SecretRef:
    return SecretRef(name=name, required_keys=keys, environment=environment)


async def test_what_was_created_is_listed_without_values(secrets: Secrets) -> None:
    before = time.time()
    info = await secrets.create("db", "main", {"B": "hidden-1", "A": "hidden-2"})
    await secrets.create("api", "main", {"KEY": "hidden-3"})

    listed = await secrets.list("main")

    assert [found.name for found in listed] == ["api", "db"]
    assert listed[1] == info
    assert (info.keys, info.version, info.environment) == (("A", "B"), 1, "main")
    assert before - 1 <= info.created_at == info.updated_at <= time.time() + 1
    assert "hidden" not in repr(listed)


async def test_environments_are_apart(secrets: Secrets) -> None:
    await secrets.create("db", "main", {"A": "1"})

    assert await secrets.list("staging") == ()
    with pytest.raises(SecretMissing, match="db"):
        await secrets.check([ref("db")], "staging")


async def test_a_secret_of_another_environment_is_found_or_refused(secrets: Secrets) -> None:
    await secrets.create("db", "main", {"A": "1"})
    foreign = [ref("db", environment="main")]

    if isinstance(secrets, EmbeddedSecrets):
        await secrets.check(foreign, "staging")
    else:
        with pytest.raises(UserError, match=r"environment staging cannot use .* db of main"):
            await secrets.check(foreign, "staging")
    assert await secrets.versions(foreign, "staging") == {"db": 1}


async def test_creating_again_needs_to_be_asked_for(secrets: Secrets) -> None:
    first = await secrets.create("db", "main", {"A": "1"})
    with pytest.raises(BackendConflict, match="db exists already"):
        await secrets.create("db", "main", {"A": "2"})

    second = await secrets.create("db", "main", {"B": "2"}, replace=True)

    assert (second.version, second.keys, second.created_at) == (2, ("B",), first.created_at)
    assert await secrets.versions([ref("db"), ref("none")], "main") == {"db": 2}


async def test_of_many_creators_at_once_one_wins(secrets: Secrets) -> None:
    tries = [secrets.create("db", "main", {"A": str(n)}) for n in range(8)]
    results = await asyncio.gather(*tries, return_exceptions=True)

    assert sum(isinstance(result, BackendConflict) for result in results) == 7
    assert (await secrets.versions([ref("db")], "main")) == {"db": 1}


async def test_deleted_is_gone_and_deleting_it_again_is_not_found(secrets: Secrets) -> None:
    await secrets.create("db", "main", {"A": "1"})
    await secrets.delete("db", "main")

    assert await secrets.list("main") == ()
    with pytest.raises(NotFound, match="db"):
        await secrets.delete("db", "main")


async def test_every_missing_secret_and_key_is_named_at_once_with_the_command(secrets: Secrets) -> None:
    await secrets.create("there", "main", {"A": "hidden-1", "B": "hidden-2"})
    refs = [ref("gone-1", "X", "Y"), ref("there", "A", "C", "D"), ref("gone-2", environment="staging")]

    with pytest.raises(SecretMissing) as missing:
        await secrets.check(refs, "main")

    message, hint = str(missing.value), missing.value.hint or ""
    for said in ("gone-1", "gone-2", "staging", "C, D", "A, B"):
        assert said in message
    assert "modalnomad secret create gone-1 X=VALUE Y=VALUE" in hint
    assert "modalnomad secret create gone-2 KEY=VALUE --env staging" in hint
    assert "hidden" not in message + hint


async def test_present_secrets_and_keys_pass(secrets: Secrets) -> None:
    await secrets.create("db", "main", {"A": "1", "B": ""})

    await secrets.check([], "main")
    await secrets.check([ref("db"), ref("db", "A", "B")], "main")


async def test_anonymous_secrets_are_checked_and_not_listed(secrets: Secrets) -> None:
    anonymous = SecretRef(anonymous=ANONYMOUS)
    with pytest.raises(SecretMissing):
        await secrets.check([anonymous], "main")

    await secrets.create_anonymous(ANONYMOUS, "main", {"A": "1"})
    await secrets.create_anonymous(ANONYMOUS, "main", {"A": "1"})

    await secrets.check([anonymous], "main")
    assert await secrets.list("main") == ()


@pytest.mark.parametrize("name", ["", "Upper", "-a", "_a", "a" * 64, "a b", "a/b", "..", "a.b", "a\n"])
async def test_bad_names_are_refused_and_cannot_exist(secrets: Secrets, name: str) -> None:
    with pytest.raises(UserError):
        await secrets.create(name, "main", {"A": "1"})
    with pytest.raises(UserError):
        await secrets.delete(name, "main")
    with pytest.raises(SecretMissing):
        await secrets.check([ref(name)], "main")


@pytest.mark.parametrize("environment", ["", "..", "A", "a/b", "a" * 64])
async def test_bad_environments_are_refused(secrets: Secrets, environment: str) -> None:
    with pytest.raises(UserError):
        await secrets.create("db", environment, {"A": "1"})
    with pytest.raises(UserError):
        await secrets.list(environment)


@pytest.mark.parametrize(
    "key", ["", "1A", "A-B", "A=B", "A B", "PATH", "LD_PRELOAD", "NOMAD_X", "VAULT_X", "MODALNOMAD_X"]
)
async def test_bad_and_reserved_keys_are_refused(secrets: Secrets, key: str) -> None:
    with pytest.raises(UserError) as refused:
        await secrets.create("db", "main", {"GOOD": "hidden-1", key: "hidden-2"})

    assert "hidden" not in str(refused.value)
    assert await secrets.list("main") == ()


@pytest.mark.parametrize("key", ["A", "_", "a1", "PATHS", "XLD_A", "A" * 200])
async def test_good_keys_are_taken(secrets: Secrets, key: str) -> None:
    assert (await secrets.create("db", "main", {key: "1"})).keys == (key,)


@pytest.mark.parametrize("value", ["x" * 32_769, "nul\0", "\ud800", "🐎" * 32_768])
async def test_values_no_environment_can_hold_are_refused_without_showing_them(secrets: Secrets, value: str) -> None:
    with pytest.raises(UserError) as refused:
        await secrets.create("db", "main", {"BIG": value})

    assert "BIG" in str(refused.value)
    assert value[:3] not in str(refused.value)


async def test_every_problem_with_the_values_is_told_at_once(secrets: Secrets) -> None:
    with pytest.raises(UserError) as refused:
        await secrets.create("db", "main", {"1": "a", "PATH": "b", "BIG": "x" * 40_000})

    for said in ("'1'", "PATH", "BIG", "40,000", "32,768"):
        assert said in str(refused.value)


async def test_errors_are_of_the_platform_tree(secrets: Secrets) -> None:
    with pytest.raises(ModalNomadError):
        await secrets.create_anonymous("../../etc/passwd", "main", {"A": "1"})
