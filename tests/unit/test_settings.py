"""What settings files, variables and the servers' own variables come to together."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalnomad.settings import Settings


@pytest.mark.parametrize("variable", ["NOMAD_TOKEN", "MODALNOMAD_NOMAD__TOKEN"])
def test_a_token_in_a_variable_counts_more_than_a_file_that_the_settings_file_names(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has a deployer's settings and exports the tokens of management for `setup` or `doctor` means these."""
    _settings_file(
        tmp_path, monkeypatch, '[nomad]\ntoken_file = "/tokens/a.nomad"\n[vault]\ntoken_file = "/tokens/a.vault"\n'
    )
    monkeypatch.setenv(variable, "of-management")
    settings = Settings()
    assert settings.nomad.token.get_secret_value() == "of-management"
    assert settings.nomad.token_file is None
    assert settings.vault.token_file == Path("/tokens/a.vault")


def test_a_token_file_in_a_variable_counts_more_than_a_token_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings_file(tmp_path, monkeypatch, '[nomad]\ntoken_file = "/tokens/a.nomad"\n')
    monkeypatch.setenv("NOMAD_TOKEN", "of-a-task")
    monkeypatch.setenv("MODALNOMAD_NOMAD__TOKEN_FILE", "/secrets/router.jwt")
    assert Settings().nomad.token_file == Path("/secrets/router.jwt")


def test_an_empty_variable_takes_back_the_file_of_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings_file(tmp_path, monkeypatch, '[nomad]\ntoken_file = "/tokens/a.nomad"\n[vault]\nca_cert = ""\n')
    assert Settings().nomad.token_file == Path("/tokens/a.nomad")
    monkeypatch.setenv("MODALNOMAD_NOMAD__TOKEN_FILE", "")
    settings = Settings()
    assert settings.nomad.token_file is None
    assert settings.vault.ca_cert is None


def _settings_file(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = folder / "config.toml"
    file.write_text(text)
    monkeypatch.setenv("MODALNOMAD_CONFIG", str(file))
