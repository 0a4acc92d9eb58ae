"""Consul as the settings name it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.model.errors import BackendRefused
from modalnomad.settings import ConsulSettings, VaultSettings


def test_the_address_and_the_token_are_the_settings() -> None:
    server = consul_server(ConsulSettings(address="https://consul.internal:8501/", token=SecretStr("t0ken")))

    assert (server.name, server.address) == ("Consul", "https://consul.internal:8501")
    assert server.headers() == {"X-Consul-Token": "t0ken"}
    assert "t0ken" not in repr(server)


def test_without_a_token_none_is_shown() -> None:
    assert consul_server(ConsulSettings()).headers() == {}


def test_a_token_s_file_counts_before_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-file\n")
    server = consul_server(ConsulSettings(token=SecretStr("other"), token_file=tmp_path / "token"))

    assert server.headers() == {"X-Consul-Token": "of-file"}
    assert server.token_setting == "consul.token_file"


def test_a_token_that_was_renewed_in_its_file_is_the_one_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    server = consul_server(ConsulSettings(token_file=file))

    file.write_text("second\n")
    assert server.headers() == {"X-Consul-Token": "second"}

    file.write_text("")  # about to be written
    assert server.headers() == {"X-Consul-Token": "second"}
    file.write_text("third\nand more")  # would be refused as a header, where nobody looks for that
    assert server.headers() == {"X-Consul-Token": "second"}
    file.unlink()
    assert server.headers() == {"X-Consul-Token": "second"}


def test_what_is_no_token_is_refused_unseen(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\nsecond")

    with pytest.raises(BackendRefused, match=r"\(consul\.token_file\) holds no token") as refused:
        consul_server(ConsulSettings(token_file=file))
    assert "first" not in str(refused.value)


@pytest.mark.parametrize("token", ["first\nsecond", "first second", "grün"])
def test_a_variable_that_holds_no_token_is_refused_unseen(token: str) -> None:
    with pytest.raises(BackendRefused, match=r"CONSUL_HTTP_TOKEN \(consul.token\) holds no token") as refused:
        consul_server(ConsulSettings(token=SecretStr(token)))
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://",
        "http://127.0.0.1:99999",
        "ftp://here:1",
        "unix:///run/it",
        "a:b",
        "http://a..b",
        f"http://{'a' * 64}",
    ],
)
def test_what_is_no_address_of_a_server_is_told_with_its_setting(address: str) -> None:
    with pytest.raises(BackendRefused) as refused:
        consul_server(ConsulSettings(address=address))
    with pytest.raises(BackendRefused) as also:
        VaultClient(VaultSettings(address=address))

    assert str(refused.value) == f"{address!r} is no address of a server: CONSUL_HTTP_ADDR (consul.address)"
    assert str(also.value) == f"{address!r} is no address of a server: VAULT_ADDR (vault.address)"


@pytest.mark.parametrize("field", ["token_file", "ca_cert"])
def test_a_file_that_cannot_be_read_is_named_with_its_setting(tmp_path: Path, field: str) -> None:
    with pytest.raises(BackendRefused, match=str(tmp_path / "none")) as refused:
        consul_server(ConsulSettings.model_validate({field: tmp_path / "none"}))

    assert f"consul.{field}" in (refused.value.hint or "")
