"""The routers' own job: Nomad takes it, and what it names is what `setup` makes and what settings there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modalnomad.hashicorp.setup.platform import platform
from modalnomad.settings import STANDARD, UP_ADMIN_PORT, UP_PORT, ArtifactSettings, RouterSettings, Settings
from tests.support.repository import ROOT

FILE = ROOT / "jobspecs" / "router.nomad.hcl"
VARIABLES = ("-var", "vault_address=http://127.0.0.1:8200", "-var", "artifacts_store=s3://bucket/prefix")


def nomad(*arguments: str, code: int = 0) -> str:
    """What it prints; it has to end with `code`. No agent runs where it looks for one."""
    if shutil.which("nomad") is None:
        pytest.skip("nomad is not on PATH")
    done = subprocess.run(
        ["nomad", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={"PATH": "/usr/bin:/bin", "NOMAD_ADDR": "http://127.0.0.1:1"},
        executable=shutil.which("nomad"),
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


def rendered(*variables: str) -> dict[str, Any]:
    """The job as JSON."""
    found: dict[str, Any] = json.loads(nomad("job", "run", "-output", *VARIABLES, *variables, str(FILE)))["Job"]
    return found


@pytest.mark.parametrize("login", ["identity", "variable", "none"])
def test_nomad_takes_it(login: str) -> None:
    assert "Job validation successful" in nomad(
        "job", "validate", *VARIABLES, "-var", f"consul_login={login}", str(FILE)
    )


def test_what_is_no_login_is_refused_in_words() -> None:
    assert "Write identity, variable or none." in nomad(
        "job", "validate", *VARIABLES, "-var", "consul_login=token", str(FILE), code=1
    )


def test_it_names_what_setup_makes() -> None:
    """And what Terraform makes: both from the same data."""
    made = platform()
    wanted: Any = made["router_job"]
    task = rendered()["TaskGroups"][0]["Tasks"][0]

    assert rendered()["ID"] == wanted["name"]
    assert rendered()["Namespace"] == "modalnomad"
    assert rendered("-var", "namespace=other")["Namespace"] == "other"
    assert task["Vault"]["Role"] == wanted["vault_role"]["name"]
    identities = {identity["Name"]: identity for identity in task["Identities"]}
    assert identities["consul_default"]["Audience"] == wanted["consul_auth_method"]["config"]["BoundAudiences"]
    (consul,) = (policy for policy in made["consul_policies"] if policy["name"] in wanted["consul_role"]["policies"])
    assert rendered()["TaskGroups"][0]["Services"][0]["Name"] in consul["rules"]["service"]
    agent = next(policy for policy in made["consul_policies"] if policy["name"] == "modalnomad-nomad-agent")
    assert any(wanted["name"].startswith(prefix) for prefix in agent["rules"]["service_prefix"])
    assert set(re.findall(r"modalnomad-[a-z-]+", FILE.read_text())) == {wanted["name"]}


def test_no_token_of_nomad_or_vault_is_in_its_environment_and_none_of_nomad_s_is_for_ever() -> None:
    """A process keeps the environment it was started with: what is renewed has to be read from files."""
    task = rendered("-var", "identity_ttl=5m")["TaskGroups"][0]["Tasks"][0]
    own = next(identity for identity in task["Identities"] if identity["Name"] == "router")

    assert not task["Identity"], "this one cannot end"
    assert not task["Vault"]["Env"]
    assert (own["File"], own["Env"], own["ChangeMode"], own["TTL"]) == (True, False, "noop", 300 * 10**9)
    files = {name: value for name, value in task["Env"].items() if name.endswith("TOKEN_FILE") and value}
    assert files == {
        "MODALNOMAD_NOMAD__TOKEN_FILE": "${NOMAD_SECRETS_DIR}/nomad_router.jwt",
        "MODALNOMAD_VAULT__TOKEN_FILE": "${NOMAD_SECRETS_DIR}/vault_token",
    }


def test_settings_of_the_node_s_user_count_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks have the HOME of Nomad's agent. A deployer's token there took the place of the one Nomad got them."""
    settings = tmp_path / ".config" / "modalnomad" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[consul]\ntoken_file = "/home/ana/deployer.consul"\n[router]\nbody_limit = 1\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert Settings().router.body_limit == 1
    for name, value in rendered()["TaskGroups"][0]["Tasks"][0]["Env"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{NOMAD_PORT_\w+\}", "8700", value))

    found = Settings()

    assert found.consul.token_file is None
    assert found.router.body_limit == RouterSettings().body_limit


def test_variables_of_operators_count_before_its_own() -> None:
    own = rendered()["TaskGroups"][0]["Tasks"][0]["Env"]
    more = ("-var", 'env={VAULT_CACERT="/etc/vault-ca.pem", NOMAD_ADDR="http://127.0.0.1:1"}')
    others = rendered("-var", "consul_address=http://127.0.0.1:2", *more)["TaskGroups"][0]["Tasks"][0]["Env"]

    changed = {name: value for name, value in others.items() if own.get(name) != value}
    assert changed == {
        "VAULT_CACERT": "/etc/vault-ca.pem",
        "NOMAD_ADDR": "http://127.0.0.1:1",
        "CONSUL_HTTP_ADDR": "http://127.0.0.1:2",
    }


def test_each_variable_is_a_setting() -> None:
    variables = re.findall(r"^ +([A-Z]+_[A-Z_]+) +=", FILE.read_text(), re.MULTILINE)
    assert len(variables) > 10
    for name in variables:
        if name in STANDARD or name == "MODALNOMAD_CONFIG":
            continue
        group, _, field = name.removeprefix("MODALNOMAD_").lower().partition("__")
        assert group in Settings.model_fields, name
        if field:
            kind: Any = Settings.model_fields[group].annotation
            assert field in kind.model_fields, name


def test_its_knobs_fit_each_other_and_the_defaults() -> None:
    job = rendered()

    (group,) = job["TaskGroups"]
    (task,) = group["Tasks"]
    ports = {port["Label"]: port["Value"] for port in group["Networks"][0]["ReservedPorts"]}
    assert (job["Type"], group["Count"]) == ("service", 2)
    assert ports == {"http": UP_PORT, "admin": UP_ADMIN_PORT, "artifacts": ArtifactSettings().port}
    assert task["KillTimeout"] / 1e9 > float(task["Env"]["MODALNOMAD_ROUTER__DRAIN_TIMEOUT"])
    assert float(task["Env"]["MODALNOMAD_ROUTER__DRAIN_TIMEOUT"]) == RouterSettings().drain_timeout
    (service,) = group["Services"]
    (check,) = service["Checks"]
    assert (check["Path"], check["PortLabel"]) == ("/readyz", "admin")
    assert task["Consul"], "Nomad logs in"
    assert not task.get("Templates")


@pytest.mark.parametrize(
    ("user", "uid", "perms"), [("", -1, "0400"), ("modalnomad", -1, "0444"), ("modalnomad", 987, "0400")]
)
def test_a_token_of_consul_is_for_the_routers_user_alone_where_its_number_is_known(
    user: str, uid: int, perms: str
) -> None:
    variables = {"consul_login": "variable", "user": user, "uid": uid}
    given = [word for name, value in variables.items() for word in ("-var", f"{name}={value}")]
    (task,) = rendered(*given)["TaskGroups"][0]["Tasks"]

    (template,) = task["Templates"]
    assert (template["Uid"], template["Perms"]) == (uid, perms)


@pytest.mark.parametrize(
    ("login", "templates", "file"), [("variable", 1, "${NOMAD_SECRETS_DIR}/consul.token"), ("none", 0, "")]
)
def test_without_a_login_to_consul(login: str, templates: int, file: str) -> None:
    group = rendered("-var", f"consul_login={login}", "-var", "instances=3")["TaskGroups"][0]
    (task,) = group["Tasks"]

    assert group["Count"] == 3
    assert not task["Consul"]
    assert [identity["Name"] for identity in task["Identities"]] == ["router"]
    assert len(task.get("Templates") or []) == templates
    assert task["Env"]["CONSUL_HTTP_TOKEN_FILE"] == file
