"""What Nomad and Vault say, in words for people, without folders of a machine."""

from __future__ import annotations

from typing import Any

import pytest

from modalnomad.hashicorp.nomad.shapes import Allocation, allocation_of
from modalnomad.hashicorp.nomad.words import Placement, failure_of, placement, says_what_runs, shown, trouble

FETCH = f'failed to download artifact "http://h:1/artifacts/{"ab" * 32}.tar.gz": getter subprocess failed: '
SHORT = f"http://h:1/artifacts/{'ab' * 6}….tar.gz"
DEPLOY = "`modalnomad deploy` puts it there again"


def allocation(*events: tuple[str, str] | tuple[str, str, dict[str, str]], client: str = "pending") -> Allocation:
    shapes = [
        {"Type": event[0], "DisplayMessage": event[1], "Details": event[2] if len(event) > 2 else {}, "Time": 1}
        for event in events
    ]
    return allocation_of(
        {
            "ID": "a",
            "JobID": "j",
            "NodeName": "n1",
            "ClientStatus": client,
            "TaskStates": {"app": {"State": "pending", "Failed": False, "Events": shapes}},
        }
    )


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("Killing", "Template failed: vault.read(secret/data/modalnomad/main/db): no secret exists at secret/data/…",
         "the secret db does not exist, or not any more"),
        ("Template", "Missing: vault.read(secret/data/modalnomad/main/_anonymous/abc)",
         "n1 could not read an anonymous secret: it is not there, or Vault refuses it or does not answer"),
        ("Killing", "Template failed: vault.read(secret/data/modalnomad/main/sealed): no secret exists at secret/…",
         "the secret sealed does not exist, or not any more"),
        ("Killing", 'Template failed: vault.read(secret/data/modalnomad/main/db): Code: 403. Errors:\n* no',
         "Vault does not let it read the secret db"),
        ("Killing", 'Vault: failed to derive vault token: Code: 400. Errors: role "x" could not be found',
         "Vault does not know the role it reads secrets with (`modalnomad setup` makes it)"),
        ("Killing", 'Vault: failed to derive vault token: claim "nomad_namespace" does not match any bound claim',
         "Vault refuses its identity: it belongs to another environment"),
        ("Killing", "Vault: failed to derive vault token: failed to login with JWT: dial tcp: connection refused",
         "a secret cannot be read: Vault does not answer"),
        ("Killing", "Vault: failed to derive vault token: Code: 503. Errors: * Vault is sealed",
         "a secret cannot be read: Vault is sealed"),
        ("Killing", "Template failed: (dynamic): execute: map has no entry for key \"X\"", "a secret lacks a key"),
        ("Driver Failure", 'failed to launch: rpc error: code = Unknown desc = binary "python9" could not be found',
         "n1 has no program python9 (the setting nomad.python)"),
        ("Driver Failure", "Failed to pull `shop:1`: denied", "n1 could not start it: Failed to pull `shop:1`: denied"),
        ("Failed Artifact Download", f"{FETCH}exit status 1: failed to download artifact: bad response code: 404",
         f"n1 could not fetch its code from {SHORT}: bad response code: 404 ({DEPLOY})"),
        ("Failed Artifact Download", f"{FETCH}exit status 1: failed to download artifact: Checksums did not match for "
         f"/alloc/archive.\nExpected: {'0' * 64}\nGot: {'1' * 64}\n*sha256.Digest",
         f"n1 could not fetch its code: {SHORT} is not what was deployed (another checksum; {DEPLOY})"),
        ("Failed Artifact Download", f'{FETCH}exit status 1: failed to download artifact: Get "http://h:1/artifacts/'
         f'{"ab" * 32}.tar.gz": dial tcp 127.0.0.1:1: connect: connection refused',
         f"n1 could not fetch its code from {SHORT}: dial tcp 127.0.0.1:1: connect: connection refused"),
        ("Failed Artifact Download", "some other text", "n1 could not fetch its code: some other text"),
        ("Failed Validation", "1 error occurred:\n\t* bad key\n\n", "n1 refused it: 1 error occurred: * bad key"),
    ],
)  # fmt: skip
def test_why_a_task_will_never_run(kind: str, text: str, said: str) -> None:
    assert trouble(allocation(("Received", "Task received by client"), (kind, text))) == said


def test_a_login_that_is_refused_is_told_once_though_nomad_tells_it_twice() -> None:
    text = (
        'failed to derive Vault token for identity vault_default: Code: 400. Errors:\n\n* role "x" could not be found'
    )
    told = (("Killing", f"Vault: failed to derive vault token: {text}"), ("Task hook failed", f"vault: {text}"))

    said = "Vault does not know the role it reads secrets with (`modalnomad setup` makes it)"
    assert (
        trouble(allocation(*told))
        == trouble(allocation(*told, ("Not Restarting", "Policy allows no restarts")))
        == said
    )
    assert trouble(allocation(("Task hook failed", "consul: no"))) == "n1 could not prepare it: consul: no"


def test_what_is_usual_is_no_trouble() -> None:
    usual = allocation(
        ("Received", "Task received by client"),
        ("Task Setup", "Building Task Directory"),
        ("Template", "Template with change_mode noop rendered"),
        ("Killing", "Sent interrupt. Waiting 5s before force killing"),
    )

    assert trouble(usual) is None


def test_an_end_is_read_from_its_exit_code() -> None:
    def ended(code: int, **details: str) -> Allocation:
        return allocation(("Terminated", "", {"exit_code": str(code), **details}), client="failed")

    assert "SIGSEGV" in failure_of(ended(139), "").reason
    assert failure_of(ended(137, oom_killed="true"), "out").reason == "it was killed at its memory limit"
    assert "often: out of memory" in failure_of(ended(137, oom_killed="false"), "").reason
    assert failure_of(ended(75), "").exit_code == 75
    assert failure_of(allocation(client="failed"), "").reason == "Nomad says that it failed, and not why"


@pytest.mark.parametrize(
    ("metric", "code", "said"),
    [
        ({"NodesEvaluated": 2, "NodesExhausted": 1, "NodesFiltered": 1, "DimensionExhausted": {"memory": 1},
          "ConstraintFiltered": {"missing drivers": 1}}, "no_capacity", "memory"),
        ({"NodesEvaluated": 1, "NodesExhausted": 1, "DimensionExhausted": {"devices: no devices match request": 1,
          "cpu": 1}}, "no_capacity", "GPUs, CPU"),
        ({"NodesEvaluated": 1, "NodesExhausted": 1,
          "DimensionExhausted": {"network: reserved port collision web8000=8000": 1}}, "no_capacity",
         "ports (reserved port collision web8000=8000)"),
        ({"NodesEvaluated": 0, "NodePool": "gpu"}, "unplaceable", "none in node pool gpu"),
        ({"NodesEvaluated": 3, "NodesFiltered": 3, "ConstraintFiltered": {"computed class ineligible": 2,
          "${attr.consul.version} semver >= 1.8.0": 1}}, "unplaceable", "no node reaches Consul"),
        ({"NodesEvaluated": 3, "ConstraintFiltered": {"missing devices": 1, "${attr.vault.version} semver > 0.6": 2}},
         "unplaceable", "no node has the GPU it asks for, or none reaches Vault"),
        ({"NodesEvaluated": 1, "ConstraintFiltered": None}, "unplaceable", "no node fits its constraints"),
    ],
)  # fmt: skip
def test_why_no_node_takes_it(metric: dict[str, Any], code: str, said: str) -> None:
    found = placement(metric)

    assert isinstance(found, Placement)
    assert found.code == code
    assert said in found.reason


def test_folders_of_a_machine_are_not_shown() -> None:
    text = "open /var/lib/nomad/alloc/8f/app/secrets/00-db.json: no such file\n(http://10.0.0.1:8702/artifacts/abc)"

    assert shown(text) == "open …/00-db.json: no such file (http://10.0.0.1:8702/artifacts/abc)"
    assert len(shown("x" * 1000)) == 301


def test_the_cause_at_the_end_of_a_long_text_is_shown() -> None:
    """As Docker engines from 29 on say that an image is not in its registry."""
    image = f"registry.internal.example.org:5000/platform/modalnomad/images@sha256:{'b9' * 32}"
    text = f'Failed to pull `{image}`: Error response from daemon: failed to resolve reference "{image}": {image}: gone'

    found = shown(text)

    assert found.startswith("Failed to pull `registry.internal.example.org:5000/platform/modalnomad/images@sha256:b9")
    assert found.endswith(": gone")
    assert len(found) <= 301


def test_the_first_line_of_a_task_is_known() -> None:
    assert says_what_runs(f"modalnomad: shop.resize, revision {'0a' * 16}, replica 0.1: requests: 1 waiting")
    assert not says_what_runs("modalnomad: the runner cannot be unpacked")
