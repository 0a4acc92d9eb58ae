"""What a revision becomes as Nomad's jobs, and what it cannot become."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from typing import Any

import pytest
from modalnomad_sdk import contract

from modalnomad.model.errors import UserError
from modalnomad.model.gpus import Gpu, parse_choice
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.render.cluster import CHILD_META, META_SPEC, key_of
from modalnomad.render.nomad import dispatch_body, one_of, parent_job, prewarm_job
from modalnomad.render.nomad_devices import devices
from modalnomad.render.nomad_words import escaped, launch_prefix
from tests.support.rendered import CONTAINER, bodies, cases, endpoint, rendering, revision


def job(made: Revision, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = parent_job(made, rendering(made, **settings))["Job"]
    return found


def task(made: Revision, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = job(made, **settings)["TaskGroups"][0]["Tasks"][0]
    return found


def spec(made: Revision, **changes: Any) -> str:
    found: str = parent_job(made, dataclasses.replace(rendering(made), **changes))["Job"]["Meta"][META_SPEC]
    return found


def test_the_same_input_gives_the_same_text() -> None:
    assert json.dumps(bodies()) == json.dumps(bodies())


def test_a_failed_start_is_reported_and_nothing_is_tried_again() -> None:
    group = job(revision())["TaskGroups"][0]

    assert group["RestartPolicy"] == {"Attempts": 0, "Mode": "fail"}
    assert group["ReschedulePolicy"] == {"Attempts": 0, "Unlimited": False}
    assert (group["Count"], "Scaling" in group, "Update" in group) == (1, False, False)


def test_kill_comes_after_the_grace_period() -> None:
    found = task(revision(), grace_period=12.5)

    assert (found["KillSignal"], found["KillTimeout"]) == ("SIGTERM", 17_500_000_000)
    assert found["Env"][contract.ENV_GRACE_PERIOD] == "12.5"


@pytest.mark.parametrize(
    ("resources", "cpu", "memory", "most"),
    [
        ({}, 150, 300, -1),
        ({"cpu": [0.125, None]}, 312, 300, -1),
        ({"cpu": [0.0001, None]}, 1, 300, -1),
        ({"memory": [1024, None]}, 150, 1024, -1),
        ({"memory": [1024, 2048]}, 150, 1024, 2048),
        ({"memory": [4, 8]}, 150, 10, 10),
    ],
)
def test_cores_become_mhz_and_a_limit_of_memory_is_one(
    resources: dict[str, Any], cpu: int, memory: int, most: int
) -> None:
    found = task(revision(resources=resources), cpu=150, memory=300, core_mhz=2500)["Resources"]

    assert found == {"CPU": cpu, "MemoryMB": memory, "MemoryMaxMB": most}


@pytest.mark.parametrize(
    ("disk", "files", "size"), [(None, 3, 300), (1000, 3, 1000), (None, 50, 1100), (500, 50, 1100)]
)
def test_logs_fit_on_the_disk(disk: int | None, files: int, size: int) -> None:
    group = job(revision(resources={"ephemeral_disk": disk}), log_files=files)["TaskGroups"][0]

    assert group["EphemeralDisk"] == {"SizeMB": size}
    assert group["Tasks"][0]["LogConfig"] == {"MaxFiles": files, "MaxFileSizeMB": 10}


CARDS = (
    Gpu("h", "NVIDIA H100 80GB HBM3", 81_559),
    Gpu("a", "NVIDIA A100-SXM4-40GB", 40_960),
    Gpu("b", "NVIDIA A100 80GB PCIe", 81_920),
    Gpu("l", "NVIDIA L40S", 46_068),
    Gpu("t", "Tesla T4", 15_360),
    Gpu("g", "NVIDIA A10G", 23_028),
    Gpu("r", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 97_887),
)


def placed(request: dict[str, Any], card: Gpu) -> bool:
    """As Nomad decides it: all constraints hold. Go's expressions used here mean the same to Python."""
    for constraint in request.get("Constraints", ()):
        if constraint["LTarget"] == "${device.model}":
            assert constraint["Operand"] == "regexp"
            if not re.search(constraint["RTarget"], card.name):
                return False
        else:
            assert (constraint["LTarget"], constraint["Operand"]) == ("${device.attr.memory}", ">=")
            amount, unit = constraint["RTarget"].split(" ")
            assert unit == "MiB"
            if card.memory < int(amount):
                return False
    return True


@pytest.mark.parametrize(
    "wanted",
    [
        ["H100"],
        ["h100!"],
        ["A100"],
        ["A100-40GB"],
        ["A100-80GB"],
        ["A10"],
        ["L4"],
        ["any"],
        ["ANY-40GB"],
        ["H100", "A100-80GB"],
        ["H100-80GB", "A100-80GB"],
        ["A100-40GB", "A100-80GB"],
        ["T4", "A100-40GB", "L40S"],
        ["T4", "ANY"],
        ["RTX-PRO-6000"],
        ["L4", "RTX PRO 6000"],
        ["PRO-H100"],
    ],
    ids=" ".join,
)
def test_the_cards_nomad_gives_are_those_that_fit_here(wanted: list[str]) -> None:
    (request,) = devices(wanted)

    fitting = {card.uuid for card in CARDS if any(parse_choice(text).fits(card) for text in wanted)}
    assert {card.uuid for card in CARDS if placed(request, card)} == fitting


def test_earlier_choices_are_preferred_and_all_cards_are_asked_for_at_once() -> None:
    (request,) = devices(["H100:2", "A100:2", "ANY:2"])

    assert (request["Name"], request["Count"], "Constraints" in request) == ("nvidia/gpu", 2, False)
    made = revision(resources={"gpu": ["H100:2", "A100:2"]})
    assert task(made)["Env"][contract.ENV_GPUS] == "2"


def liking(request: dict[str, Any], card: Gpu) -> float:
    """As Nomad reckons it: the weights of what holds, of all weights."""
    all_of = request.get("Affinities", [])
    held = sum(int(a["Weight"]) for a in all_of if re.search(a["RTarget"], card.name))
    return held / (sum(abs(int(a["Weight"])) for a in all_of) or 1)


@pytest.mark.parametrize(
    ("wanted", "likings"),
    [
        (["H100", "A100"], {"h": 1, "a": 0, "b": 0}),
        (["A100", "H100"], {"h": 0, "a": 1, "b": 1}),
        (["A100-80GB", "A100"], {"a": 0, "b": 1}),
        (["H100", "A100", "T4"], {"h": 1, "a": 0.5, "b": 0.5, "t": 0}),
        (["T4", "L40S", "A10G", "H100", "any"], {"t": 1, "l": 0.75, "g": 0.5, "h": 0.25, "a": 0, "b": 0, "r": 0}),
        (["any", "H100"], dict.fromkeys("hablgtr", 0)),
        (["H100", "H100"], {"h": 0}),
    ],
    ids=str,
)
def test_each_choice_is_liked_less_than_the_one_before(wanted: list[str], likings: dict[str, float]) -> None:
    """In steps as large as can be: Nomad weighs them against how full nodes are."""
    (request,) = devices(wanted)

    assert {card.uuid: liking(request, card) for card in CARDS if placed(request, card)} == likings
    # Without an affinity for nodes Nomad weighs two nodes, and one with a better card may be a third.
    (group,) = job(revision(resources={"gpu": wanted}))["TaskGroups"]
    assert ("Affinities" in group) == ("Affinities" in request)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [(["H100:2", "A100:4"], "the same number of cards"), (["..."], "there is no type in it")],
)
def test_gpus_nomad_cannot_be_asked_for(wanted: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        devices(wanted)
    assert told.value.hint


def test_secrets_come_as_files_in_the_order_of_merging() -> None:
    found = task(cases()["secrets"][0])

    assert found["Env"][contract.ENV_SECRET_FILES] == "00-db.json,01-anonymous.json,02-api-key.json"
    assert [template["DestPath"] for template in found["Templates"]] == [
        "secrets/00-db.json",
        "secrets/01-anonymous.json",
        "secrets/02-api-key.json",
    ]
    assert 'secret "secret/data/modalnomad/staging/_anonymous/' in found["Templates"][1]["EmbeddedTmpl"]
    assert not any(template["Envvars"] for template in found["Templates"])
    assert found["Vault"]["Role"] == "modalnomad-staging"


def test_without_secrets_nothing_asks_vault() -> None:
    assert not {"Vault", "Templates", "Identities"} & task(revision()).keys()


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ({"name": "db", "environment": "prod"}, "is of environment 'prod'.*its own environment's secrets only"),
        ({"name": "../prod/db"}, "secret name '../prod/db'"),
        ({"anonymous": "../db"}, "secret name '../db'"),
        ({}, "secret name None"),
    ],
)
def test_a_secret_no_task_could_read(ref: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        job(revision(secrets=[ref]))


@pytest.mark.parametrize(
    ("made", "variable"),
    [
        (revision(entry="${attr.kernel.name}.py"), contract.ENV_SOURCE),
        (revision(workdir="/srv/${NOMAD_ALLOC_ID}"), contract.ENV_IMAGE_WORKDIR),
        (revision(tag="${x}"), contract.ENV_FUNCTION),
    ],
)
def test_what_nomad_would_replace_is_refused(made: Revision, variable: str) -> None:
    with pytest.raises(UserError, match=rf"{variable} would be .*Nomad replaces") as told:
        job(made)
    assert told.value.hint


def test_the_images_variables_are_out_of_nomads_reach() -> None:
    found = task(revision(env=(("A", "${NOMAD_ALLOC_ID}"), ("B", "ů\n"))))["Env"][contract.ENV_IMAGE_ENV]

    assert json.loads(base64.urlsafe_b64decode(found + "=" * (-len(found) % 4))) == [
        ["A", "${NOMAD_ALLOC_ID}"],
        ["B", "ů\n"],
    ]


@pytest.mark.parametrize(
    "reference",
    ["shop", "shop:latest", "registry:5000/shop:17", "registry:5000/shop@sha256:12", f"${{x}}@sha256:{'a' * 64}"],
)
def test_a_container_is_pinned(reference: str) -> None:
    with pytest.raises(UserError, match="is not pinned by a digest"):
        job(revision(reference=reference), driver="docker")


@pytest.mark.parametrize("reference", [CONTAINER, f"sha256:{'a' * 64}"])
def test_a_pinned_container_shares_its_nodes_network_and_runs_no_shell(reference: str) -> None:
    found = task(revision(reference=reference), driver="docker")

    assert found["Config"]["image"] == reference
    assert (found["Config"]["network_mode"], found["Config"]["command"]) == ("host", contract.CONTAINER_PYTHON)
    assert [artifact["RelativeDest"] for artifact in found["Artifacts"]] == ["local/root"]
    assert contract.ENV_NODE_STORE not in found["Env"]


@pytest.mark.parametrize(("reference", "driver"), [(None, "docker"), (CONTAINER, "raw_exec")])
def test_an_image_for_the_other_driver_is_refused(reference: str | None, driver: str) -> None:
    with pytest.raises(UserError, match="container image") as told:
        job(revision(reference=reference), driver=driver)
    assert told.value.hint is not None
    assert "nomad.driver" in told.value.hint


@pytest.mark.parametrize(("startup", "limit"), [(90.0, "90s"), (0.5, "1s"), (3600.0, "300s")])
def test_no_image_is_pulled_for_longer_than_a_start_may_take(startup: float, limit: str) -> None:
    found = task(revision(reference=CONTAINER, startup_timeout=startup), driver="docker")

    assert found["Config"]["image_pull_timeout"] == limit


def test_a_fixed_port_is_kept_apart() -> None:
    web = [endpoint("resize", "web_server", port=8000)]
    process, container = (
        job(revision(endpoints=web)),
        job(revision(endpoints=web, reference=CONTAINER), driver="docker"),
    )

    (own,), (shared,) = (found["TaskGroups"][0]["Networks"] for found in (process, container))
    assert "ReservedPorts" not in own
    assert shared["ReservedPorts"] == [{"Label": "web8000", "Value": 8000}]
    environments = [found["TaskGroups"][0]["Tasks"][0]["Env"] for found in (process, container)]
    assert [env[contract.ENV_NETWORK] for env in environments] == ["namespace", "exclusive"]


def test_the_hash_is_of_what_runs() -> None:
    made = revision()

    texts = {"deployed_at": 1.0, "deployed_by": "eva", "source": "x = 2\n"}
    assert spec(made) == spec(made, **texts)
    assert spec(made) != spec(made, artifacts_url="http://elsewhere:1")
    assert spec(made) != spec(made, version=18)
    assert spec(made) != spec(revision(timeout=1.0))


@pytest.mark.parametrize("tag", ["a b", "a/b", "", "x" * 600])
def test_a_name_that_no_job_can_have(tag: str) -> None:
    made = revision(tag=tag)
    if tag == "":
        made = made.model_copy(update={"app": " "})

    with pytest.raises(UserError, match="cannot be a job of Nomad"):
        job(made)


def test_markdown_of_users_means_itself() -> None:
    made = revision()
    found = parent_job(made, dataclasses.replace(rendering(made), deployed_by="<b>*ana*</b>\n# [x](http://y) `z`"))

    assert r"\<b\>\*ana\*\<\/b\> \# \[x\]\(http\:\/\/y\) \`z\`" in found["Job"]["UI"]["Description"]
    assert len(escaped("*" * 1000)) <= 240


def test_a_long_program_is_cut_and_says_so() -> None:
    made = revision()
    source = parent_job(made, dataclasses.replace(rendering(made), source="x" * 2_000_000))["Submission"]["Source"]

    assert len(source) < 501_000
    assert source.endswith("# … cut here: 2000000 characters in all\n")


def test_a_program_with_values_of_secrets_in_it_is_not_shown() -> None:
    open_, closed = revision(secrets=[{"name": "db"}]), revision(secrets=[{"anonymous": "f" * 64}])
    text = "modal.Secret.from_dict({'K': 'tell-nobody'})"
    shown, hidden = (
        parent_job(made, dataclasses.replace(rendering(made), source=text))["Submission"]["Source"]
        for made in (open_, closed)
    )

    assert text in shown
    assert "tell-nobody" not in hidden
    assert "is not shown" in hidden


def test_one_of_a_revision_is_a_plain_job_and_leaves_the_body_alone() -> None:
    body = parent_job(*cases()["plain"])
    before = json.dumps(body)
    found = one_of(body)["Job"]
    found["TaskGroups"][0]["Count"] = 7

    assert json.dumps(body) == before
    assert (found["ID"], "ParameterizedJob" in found, "revision" in found["Meta"]) == (
        "shop.resize.r17.one",
        False,
        False,
    )
    assert found["TaskGroups"][0]["Tasks"] == body["Job"]["TaskGroups"][0]["Tasks"]


def test_a_prewarming_job_is_no_revision_and_one_for_all_functions_with_its_image() -> None:
    made = revision(secrets=[{"name": "db"}], resources={"gpu": ["H100"]})
    found = prewarm_job(made, rendering(made))

    (only,) = found["Job"]["TaskGroups"][0]["Tasks"]
    assert (found["Job"]["Type"], "revision" in found["Job"]["Meta"]) == ("sysbatch", False)
    assert only["Config"]["args"][-1] == "prewarm"
    assert not {"Templates", "Vault"} & only.keys()
    assert "Devices" not in only["Resources"]
    other = revision(tag="other")
    assert prewarm_job(other, rendering(other)) == found


def test_a_dispatch_gives_the_replica_its_key() -> None:
    made = revision()
    key = ReplicaKey(PoolKey(made.id, '{"size":"${HOME}"}'), 3, 2)
    body = dispatch_body(key, reason="requests: 14 waiting", request_id="AB-12", decision={"waiting": 14})

    assert tuple(body["Meta"]) == CHILD_META
    assert key_of({"revision": made.id, **body["Meta"]}) == key
    assert "${" not in json.dumps(body)
    assert json.loads(base64.b64decode(body["Payload"])) == {"waiting": 14}
    assert body["IdPrefixTemplate"] == "003-requests-ab12"


def test_parameters_that_consul_would_not_take_stay_out_of_it() -> None:
    short, long = (
        dispatch_body(ReplicaKey(PoolKey(revision().id, "x" * size), 0, 1), reason="")["Meta"] for size in (384, 385)
    )

    assert len(short["parameters_short"]) == 512
    assert long["parameters_short"] == ""
    assert len(long["parameters"]) > 512


def test_a_record_that_is_too_long_is_left_out() -> None:
    key = ReplicaKey(PoolKey(revision().id), 0, 1)

    assert dispatch_body(key, reason="", decision={"x": "y" * 16 * 1024})["Payload"] == ""
    assert dispatch_body(key, reason="")["Payload"] == ""


@pytest.mark.parametrize(
    ("number", "reason", "request_id", "prefix"),
    [
        (0, "requests: 1 waiting", "q7f3k2", "000-requests-q7f3k2"),
        (12, "min_containers=1", "", "012-min"),
        (1234, "3 requests", "../../ETC", "1234-requests-etc"),
        (7, "…", "", "007"),
        (7, "incomprehensibilities", "x" * 40, "007-incomprehens-xxxxxxxx"),
    ],
)
def test_the_name_of_a_launch(number: int, reason: str, request_id: str, prefix: str) -> None:
    assert launch_prefix(number, reason, request_id) == prefix


def test_the_hash_in_meta_is_of_the_job_itself() -> None:
    found = job(revision())
    rest = {name: value for name, value in found.items() if name not in {"UI", "Meta"}}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))

    assert found["Meta"][META_SPEC] == hashlib.sha256(canonical.encode()).hexdigest()
