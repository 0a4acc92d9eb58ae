"""The routers' own job: Nomad takes it, and what it names is what `setup` makes and what settings there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from modalnomad.hashicorp.setup.platform import wanted
from modalnomad.settings import STANDARD, UP_ADMIN_PORT, UP_PORT, ArtifactSettings, RouterSettings, Settings
from tests.support.repository import ROOT

FILE = ROOT / "jobspecs" / "router.nomad.hcl"
VARIABLES = ("-var", "vault_address=http://127.0.0.1:8200", "-var", "artifact_store=s3://bucket/prefix")


def nomad(*arguments: str) -> str:
    """What it prints. No agent runs where it looks for one."""
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
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(*variables: str) -> dict[str, Any]:
    """The job as JSON."""
    found: dict[str, Any] = json.loads(nomad("job", "run", "-output", *VARIABLES, *variables, str(FILE)))["Job"]
    return found


def test_nomad_takes_it() -> None:
    assert "Job validation successful" in nomad("job", "validate", *VARIABLES, str(FILE))
    assert "Job validation successful" in nomad("job", "validate", *VARIABLES, "-var", "consul_acl=false", str(FILE))


def test_it_names_what_setup_makes() -> None:
    text = FILE.read_text()
    made = wanted(Settings(), ["main"])

    role = "modalnomad-router"
    assert role in {policy.name for policy in made.nomad_policies}
    assert role in {policy.name for policy in made.consul_policies}
    assert role in {policy.name for policy in made.vault_policies}
    assert f"auth/{made.auth_mount}/role/{role}" in text
    assert f'"token_policies": "{role}"' in text
    (consul,) = (policy for policy in made.consul_policies if policy.name == role)
    assert role in consul.rules["service"], "the name under which routers are registered"
    agent = next(policy for policy in made.consul_policies if policy.name == "modalnomad-nomad-agent")
    assert any(role.startswith(prefix) for prefix in agent.rules["service_prefix"])
    assert set(re.findall(r"modalnomad-[a-z-]+", text)) <= {role, f"{role}-job"}
    assert not re.search(r'namespace = "modalnomad-', text), "such a namespace is an environment"


def test_each_variable_is_a_setting() -> None:
    variables = re.findall(r"^ +([A-Z]+_[A-Z_]+) +=", FILE.read_text(), re.MULTILINE)
    assert len(variables) > 10
    for name in variables:
        if name in STANDARD:
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
    assert task["Env"]["CONSUL_HTTP_TOKEN_FILE"] == "${NOMAD_SECRETS_DIR}/consul.token"
    without = rendered("-var", "consul_acl=false", "-var", "instances=3")["TaskGroups"][0]
    assert without["Count"] == 3
    assert not without["Tasks"][0].get("Templates")
    assert without["Tasks"][0]["Env"]["CONSUL_HTTP_TOKEN_FILE"] == ""
