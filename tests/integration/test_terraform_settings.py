"""The settings file that Terraform's module `names` writes is one that modalnomad reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from modalnomad.settings import Settings
from tests.support.terraform import TERRAFORM, needs_terraform, run

pytestmark = needs_terraform

NASTY = 'it\'s <b>&amp; "quoted" \\u0041 \\ é 😀 \u2028 = # [x]'
"""Everything that JSON, TOML or Terraform would read as its own."""


def root(folder: Path, arguments: Mapping[str, object]) -> Path:
    """A root module that is `names` with these arguments, ready for `apply`."""
    source = os.path.relpath(TERRAFORM / "modules" / "names", folder)
    # A JSON configuration reads `${` as the beginning of a template, as HCL does.
    module = json.loads(json.dumps({"source": source, **arguments}).replace("${", "$${"))
    made = {"module": {"names": module}, "output": {"text": {"value": "${module.names.settings_toml}"}}}
    folder.mkdir()
    (folder / "main.tf.json").write_text(json.dumps(made))
    done = run(folder, "init", "-backend=false", "-no-color")
    assert done.returncode == 0, done.stderr
    return folder


def written(folder: Path, arguments: Mapping[str, object], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that Terraform's text stands for."""
    made = root(folder, arguments)
    done = run(made, "apply", "-auto-approve", "-no-color")
    assert done.returncode == 0, done.stderr
    file = folder / "config.toml"
    file.write_text(run(made, "output", "-raw", "text").stdout)
    monkeypatch.setenv("MODALNOMAD_CONFIG", str(file))
    return Settings()


def test_all_that_was_given_is_read_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "environment": "staging",
        "domain": "apps.example.org",
        "nomad_address": "https://nomad.internal:4646",
        "nomad_ca_cert": f"/etc/{NASTY}.pem",
        "nomad_tls_server_name": "server.global.nomad",
        "consul_address": "http://127.0.0.1:8500/?a=1&b=<2>",
        "consul_ca_cert": "/etc/consul.pem",
        "consul_tls_server_name": "server.dc1.consul",
        "vault_address": "https://vault.internal:8200",
        "vault_ca_cert": "/etc/vault ${ca}.pem",
        "vault_tls_server_name": "vault.internal",
        "artifacts_store": f"s3://bucket/{NASTY}",
        "artifacts_url": "http://routers.internal:8702",
    }
    names = {"mount": "kv/apps", "auth_mount": "nomad/jwt", "prefix": "platform/modalnomad"}
    settings = written(tmp_path / "one", {"environments": ["staging"], "settings": given, **names}, monkeypatch)
    assert settings.backend == "hashicorp"
    read = {
        "environment": settings.environment,
        "domain": settings.router.domain,
        "nomad_address": settings.nomad.address,
        "nomad_ca_cert": str(settings.nomad.ca_cert),
        "nomad_tls_server_name": settings.nomad.tls_server_name,
        "consul_address": settings.consul.address,
        "consul_ca_cert": str(settings.consul.ca_cert),
        "consul_tls_server_name": settings.consul.tls_server_name,
        "vault_address": settings.vault.address,
        "vault_ca_cert": str(settings.vault.ca_cert),
        "vault_tls_server_name": settings.vault.tls_server_name,
        "artifacts_store": settings.artifacts.store,
        "artifacts_url": settings.artifacts.url,
    }
    assert read == given
    mounts = {"mount": settings.vault.mount, "auth_mount": settings.vault.auth_mount, "prefix": settings.consul.prefix}
    assert mounts == names


def test_what_was_not_given_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above all the mounts and the prefix: Terraform's defaults are modalnomad's."""
    assert written(tmp_path / "one", {}, monkeypatch) == Settings.model_validate({"backend": "hashicorp"})


def test_tokens_are_comments_that_can_be_made_lines(tmp_path: Path) -> None:
    made = root(tmp_path / "one", {})
    assert run(made, "apply", "-auto-approve").returncode == 0
    text = run(made, "output", "-raw", "text").stdout
    assert text.count("\n# token_file = ") == 3
    file = tmp_path / "config.toml"
    file.write_text(text.replace("\n# token_file = ", "\ntoken_file = "))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODALNOMAD_CONFIG", str(file))
        settings = Settings()
    files = [settings.nomad.token_file, settings.consul.token_file, settings.vault.token_file]
    assert [file and file.suffix for file in files] == [".nomad", ".consul", ".vault"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"environments": ["Main"]}, "Names of environments are 1 to 63 of a-z, 0-9 and -"),
        ({"mount": "secret/"}, 'such as "secret" or "kv/modalnomad"; none at the ends'),
        ({"jwks_url": "nomad:4646"}, 'such as "https://nomad.internal:4646/.well-known/jwks.json"'),
        ({"router_namespace": "modalnomad-main"}, "who deploys there could replace the routers"),
        ({"settings": {"nomad_address": "nomad:4646"}}, 'are URLs such as "https://nomad.internal:4646"'),
        ({"settings": {"artifacts_store": "artifacts"}}, 'such as "s3://bucket/prefix"'),
        ({"settings": {"domain": "*.apps.example.org"}}, 'such as "apps.example.org"'),
        ({"settings": {"environment": "prod"}}, "is one of `environments`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refusal_says_what_to_write(tmp_path: Path, arguments: Mapping[str, object], said: str) -> None:
    done = run(root(tmp_path / "one", arguments), "plan", "-no-color")
    assert done.returncode == 1
    # Terraform breaks its lines where it likes.
    assert said in " ".join(done.stderr.split())
