"""A cluster whose servers speak TLS: from setting up to stopping an App by the real commands, with Nomad and Consul
asking for clients' certificates; and what is said when it cannot be."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr

from modalnomad.hashicorp.checks.examine import examine_cluster
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.hashicorp.setup.steps import Step
from modalnomad.kit.finding import Finding
from modalnomad.settings import NomadSettings, Settings, VaultSettings
from tests.support.certificates import Authority, Pair
from tests.support.cluster import cluster
from tests.support.cluster_tls import CONSUL_NAME, NOMAD_NAME, Secured
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.openbao import OpenBao

PROGRAM = """
import modal, os
app = modal.App("shop")
@app.function(scaledown_window=2, secrets=[modal.Secret.from_name("db")])
@modal.fastapi_endpoint()
def show():
    print("shown")
    return os.environ["PASSWORD"]
"""
SERVERS = ("nomad", "consul", "vault")
NO = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"
GO_SAYS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path / "certificates")


@pytest.mark.parametrize(("kind", "mutual"), [("fake", True), ("real", True), ("real", False)])
async def test_everything_works_with_tls(kind: str, mutual: bool, tmp_path: Path) -> None:
    """Commands are told by variables, the router by a file of settings. `mutual`: clients show certificates, too."""
    secured = Secured(tmp_path / "certificates", mutual=mutual)
    if kind == "real" and shutil.which("nomad") is None:
        pytest.skip("nomad is not on PATH")
    file = tmp_path / "shop.py"
    file.write_text(PROGRAM)
    async with cluster(tmp_path, real=kind == "real", acl=True, secured=secured) as made:
        made.env["VAULT_TOKEN"] = await asyncio.to_thread(made.vault.token, "modalnomad-deployer", "default")
        made.router_env["VAULT_TOKEN"] = await asyncio.to_thread(made.vault.token, "modalnomad-router", "default")
        await made.cli("secret", "create", "db", "PASSWORD=žluť")
        await made.cli("plan", str(file))
        await made.cli("deploy", str(file))
        async with made.router(env=by_file(tmp_path, secured, made.env)) as router:
            doctor = await made.cli("doctor", "--json")
            assert await router.get("shop-show.localhost") == (200, '"žluť"')
            await made.logged("shown", "shop")
            await made.cli("app", "stop", "shop", "--yes")
            assert (await router.get("shop-show.localhost"))[0] == 404

    found = {each["check"]: each for each in doctor.records()}
    assert not [each for each in found.values() if each["level"] == "problem"]
    assert {found[name]["level"] for name in (*SERVERS, "jwks", "routers", "clock")} == {"ok"}


def by_file(folder: Path, secured: Secured, env: dict[str, str]) -> dict[str, str]:
    """Variables of a router that has its TLS from a file."""
    names = {"nomad": NOMAD_NAME, "consul": CONSUL_NAME}
    own = f'client_cert = "{secured.own.cert}"\nclient_key = "{secured.own.key}"\n' if secured.mutual else ""
    groups = [
        f'[{group}]\nca_cert = "{secured.authority.cert}"\ntls_server_name = "{name}"\n{own}'
        for group, name in names.items()
    ]
    file = folder / "router.toml"
    file.write_text("".join([*groups, f'[vault]\nca_cert = "{env["VAULT_CACERT"]}"\n']))
    ends = ("_CACERT", "_CLIENT_CERT", "_CLIENT_KEY", "_TLS_SERVER_NAME")
    return dict.fromkeys((name for name in env if name.endswith(ends)), "") | {"MODALNOMAD_CONFIG": str(file)}


# --- what goes wrong -----------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(context: ssl.SSLContext | None, answer: bytes = b"") -> AsyncIterator[str]:
    """Something that takes connections and answers this → `127.0.0.1:port`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except (OSError, EOFError):
            pass
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def examined(address: str, **settings: Any) -> list[Finding]:
    """Of each server, at this address: the first thing that `doctor` says."""
    group = {"address": address, **settings}
    found = await examine_cluster(Settings(nomad=group, consul=group, vault=group))
    return [next(each for each in found if each.check == server) for server in SERVERS]


def say(found: Sequence[Finding], message: str, *fixes: str) -> None:
    """All of them, in their fix with the names of their own settings in place of X and x."""
    for server, each in zip(SERVERS, found, strict=True):
        assert each.level == "problem"
        assert message in each.message
        for fix in fixes:
            assert fix.replace("X_", f"{server.upper()}_").replace("(x.", f"({server}.") in each.fix


async def test_a_certificate_of_somebody_unknown(tmp_path: Path, secured: Secured) -> None:
    other = Authority(tmp_path, "other")
    async with listening(secured.authority.issue("server").listener()) as at:
        none = await examined(f"https://{at}")
        wrong = await examined(f"https://{at}", ca_cert=other.cert)
    say(none, "its certificate is not trusted: ", "X_CACERT (x.ca_cert), a PEM file; none is given")
    say(wrong, "its certificate is not trusted", "X_CACERT (x.ca_cert), a PEM file; the one given is another's")


async def test_a_certificate_that_has_expired(secured: Secured) -> None:
    async with listening(secured.authority.issue("server", expired=True).listener()) as at:
        found = await examined(f"https://{at}", ca_cert=secured.authority.cert)
    say(found, "its certificate is not trusted: certificate has expired", "does the clock of this machine go wrong?")


async def test_a_certificate_for_other_names(secured: Secured) -> None:
    trusts = {"ca_cert": secured.authority.cert}
    context = secured.authority.issue(NOMAD_NAME, also=()).listener()
    async with listening(context, NO) as at:
        other = await examined(f"https://{at}", **trusts)
        same = await examined(f"https://{at}", **trusts, tls_server_name=NOMAD_NAME)
    say(other, "certificate is not valid for '127.0.0.1'", "give that name as X_TLS_SERVER_NAME (x.tls_server_name)")
    assert not [each for each in same if "does not answer" in each.message]


async def test_a_certificate_of_ours_is_wanted(tmp_path: Path, secured: Secured) -> None:
    trusts = {"ca_cert": secured.authority.cert}
    other = Authority(tmp_path, "other").issue("client")
    async with listening(secured.listener("server"), NO) as at:
        none = await examined(f"https://{at}", **trusts)
        strange = await examined(f"https://{at}", **trusts, client_cert=other.cert, client_key=other.key)
        own = {"client_cert": secured.own.cert, "client_key": secured.own.key}
        ours = await examined(f"https://{at}", **trusts, **own)
    assert not [each for each in ours if "does not answer" in each.message]
    say(none, "does not answer", "clients' certificates: X_CLIENT_CERT (x.client_cert), X_CLIENT_KEY (x.client_key)")
    say(strange, "does not answer", f"may not take {other.cert}, X_CLIENT_CERT (x.client_cert)")


async def test_plain_http_to_tls(secured: Secured) -> None:
    """What Go answers to that. It counts as no answer: nothing more is tried."""
    async with listening(None, GO_SAYS) as at:
        found = await examined(f"http://{at}")
        steps = [step async for step in set_up(of(f"http://{at}"), ["main"])]
    say(found, "it speaks TLS there, and was asked in plain HTTP", "make it https:// in X_")
    assert [step.outcome for step in steps].count("failed") == len(SERVERS)


def of(address: str) -> Settings:
    """With every server there."""
    return Settings(nomad={"address": address}, consul={"address": address}, vault={"address": address})


def unreadable(pair: Pair, other: Pair, folder: Path) -> dict[str, tuple[dict[str, Path], str, str]]:
    """Files that cannot be used → what is said of them."""
    nothing, locked = folder / "nothing.pem", folder / "locked.pem"
    nothing.write_text("nothing")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pem, format = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(pem, format, serialization.BestAvailableEncryption(b"word")))
    mine = {"client_cert": pair.cert}
    return {
        "no CA": ({"ca_cert": folder / "no.pem"}, f"cannot use {folder}/no.pem: No such file", "X_CACERT (x.ca_cert)"),
        "empty CA": ({"ca_cert": nothing}, f"{nothing} holds no certificate", "X_CACERT (x.ca_cert)"),
        "no key": (mine | {"client_key": folder / "no.pem"}, f"cannot use {folder}/no.pem", "X_CLIENT_KEY"),
        "cert alone": (mine, f"{pair.cert} holds no key", "give a PEM file: X_CLIENT_KEY (x.client_key)"),
        "key alone": ({"client_key": pair.key}, f"{pair.key} is the key of a certificate that is", "X_CLIENT_CERT"),
        "no cert": (
            {"client_cert": nothing, "client_key": pair.key},
            f"{nothing} holds no certificate",
            "X_CLIENT_CERT",
        ),
        "another's": (
            mine | {"client_key": other.key},
            f"{other.key} is not the key of {pair.cert}",
            "belong together",
        ),
        "passphrase": (mine | {"client_key": locked}, f"{locked} has a passphrase", "give one without: X_CLIENT_KEY"),
    }


async def test_files_that_cannot_be_used(tmp_path: Path, secured: Secured) -> None:
    """Nobody is asked for a passphrase."""
    cases = unreadable(secured.own, secured.authority.issue("other"), tmp_path)
    for files, message, fix in cases.values():
        say(await examined("https://127.0.0.1:9", **files), message, fix)


# --- Nomad's keys --------------------------------------------------------------------------------------------


@asynccontextmanager
async def nomad_of(context: ssl.SSLContext, openbao: OpenBao, mount: str, ca_cert: Path) -> AsyncIterator[Settings]:
    """A Nomad with this TLS and a part of an OpenBao."""
    async with FakeNomad(tls=context) as nomad:
        yield Settings(
            nomad=NomadSettings(address=nomad.address, ca_cert=ca_cert),
            vault=VaultSettings(
                address=openbao.address, token=SecretStr("root"), mount=mount, auth_mount=f"jwt-{mount}"
            ),
        )


async def keys_step(settings: Settings) -> Step:
    """Vault told where to read them."""
    steps = [step async for step in set_up(settings, ["main"], only=["nomad", "vault"])]
    (found,) = [step for step in steps if step.what.startswith("keys of login")]
    return found


OTHERS = {"default_role": "nomad-workloads", "bound_issuer": "nomad"}
"""Of a login that others had before."""


def rewrite(openbao: OpenBao, path: str, more: dict[str, str]) -> None:
    """Add these fields."""
    with openbao.client() as client:
        client.write_data(path, data={**client.read(path)["data"], **more})


async def test_vault_is_told_who_signed_nomads_certificate_and_told_anew_when_that_changes(
    tmp_path: Path, secured: Secured, openbao: OpenBao
) -> None:
    mount = await asyncio.to_thread(openbao.mount)
    ca_cert = tmp_path / "nomad-ca.pem"
    first, second = secured.authority.cert.read_text(), Authority(tmp_path, "second").cert.read_text()
    ca_cert.write_text(f"Of žluť.\n{first}")
    async with nomad_of(secured.authority.issue(NOMAD_NAME).listener(), openbao, mount, ca_cert) as settings:
        outcomes = [(await keys_step(settings)).outcome for _ in range(2)]
        ca_cert.write_text(first + second)
        await asyncio.to_thread(rewrite, openbao, f"auth/jwt-{mount}/config", OTHERS)
        outcomes += [(await keys_step(settings)).outcome for _ in range(2)]
        ca_cert.write_text(first)
        outcomes.append((await keys_step(settings)).outcome)

    assert outcomes == ["made", "there", "changed", "there", "there"]
    with openbao.client() as client:
        config = client.read(f"auth/jwt-{mount}/config")["data"]
    assert config == config | OTHERS | {"jwks_ca_pem": first + second}


async def test_vault_has_no_certificate_to_show_to_nomad(secured: Secured, openbao: OpenBao) -> None:
    mount = await asyncio.to_thread(openbao.mount)
    ca_cert = secured.authority.cert
    async with nomad_of(secured.listener(NOMAD_NAME), openbao, mount, ca_cert) as settings:
        step = await keys_step(settings)
        found = await examine_cluster(settings)

    assert step.outcome == "failed"
    assert "Vault cannot read Nomad's public keys at https://127.0.0.1" in step.detail
    assert "must not want a certificate from it (verify_https_client)" in step.fix
    assert "signed by who is in NOMAD_CACERT (nomad.ca_cert)" in step.fix
    (jwks,) = [each for each in found if each.check == "jwks"]
    assert jwks.level == "warning"
    assert "without a certificate of the reader's: vault.jwks_url" in jwks.fix
