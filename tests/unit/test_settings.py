"""What settings files, variables and the servers' own variables come to together."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalnomad.settings import Settings


def test_an_empty_variable_takes_back_the_file_of_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[nomad]\ntoken_file = "/tokens/ana.nomad"\n[vault]\nca_cert = ""\n')
    monkeypatch.setenv("MODALNOMAD_CONFIG", str(file))
    monkeypatch.setenv("NOMAD_TOKEN", "of-management")
    assert Settings().nomad.token_file == Path("/tokens/ana.nomad")
    monkeypatch.setenv("MODALNOMAD_NOMAD__TOKEN_FILE", "")
    settings = Settings()
    assert settings.nomad.token_file is None
    assert settings.nomad.token.get_secret_value() == "of-management"
    assert settings.vault.ca_cert is None
