"""The environment of a replica on a node: the same as on the machine of `up`, as far as the two can be the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from modalnomad_sdk import contract as c
from modalnomad_sdk.node import variables
from modalnomad_sdk.node.refused import Refused

from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Endpoint, Function, Source
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.render.environment import contract_environment, modal_environment, revision_environment
from modalnomad.render.process import process_spec, working_folder

DIGEST = Digest("d" * 64)
AGENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "HTTPS_PROXY": "http://proxy",
    "NOMAD_TOKEN": "of the agent",
    "VAULT_TOKEN": "of the agent",
    "AWS_SECRET_ACCESS_KEY": "of the agent",
    "MODALNOMAD_HOME": "of the operator",
    "PYTHONPATH": "/agent",
}
NOMAD = {"NOMAD_PORT_http": "20000", "NOMAD_IP_http": "10.0.0.1", "NOMAD_ALLOC_ID": "a-b"}


def revision(env: tuple[tuple[str, str], ...] = (), workdir: str | None = None) -> Revision:
    return Revision.make(
        app="shop",
        environment="staging",
        function=Function(tag="Server", endpoints=(Endpoint(name="Server.web", kind="web_server", port=8000),)),
        source=Source(mode="script", entry="app.py", root="/home/u", module="app"),
        bundle=DIGEST,
        image=BuiltImage(digest=DIGEST, python="3.12", env=env, workdir=workdir),
    )


@pytest.mark.parametrize("env", [(), (("A", "image"), ("PATH", "/opt/bin"), ("HOME", "/image"))])
@pytest.mark.parametrize("workdir", [None, "/root", "data", "/srv/app"])
@pytest.mark.parametrize("parameters", ["", '{"size":"l"}'])
def test_both_ways_give_the_same(env: tuple[tuple[str, str], ...], workdir: str | None, parameters: str) -> None:
    r = revision(env, workdir)
    key = ReplicaKey(PoolKey(r.id, parameters), 2, 5)
    bundle = Path("/alloc/app/local/root")
    secrets = {"A": "secret", "LINES": "one\ntwo"}
    told = contract_environment(
        r, key, platform_key=b"k", grace_period=30, orphan_factor=3, network="namespace", web_urls={"Server.web": "u"}
    )
    here = process_spec(
        r,
        key,
        image=Path("/store/images/x"),
        runner=Path("/runner"),
        bundle=bundle,
        inherited=AGENT,
        secrets=secrets,
        variables={**told, "CUDA_VISIBLE_DEVICES": ""},
    )

    there = variables.on_node(
        {**AGENT, **NOMAD, **told, **modal_environment(r, key), c.ENV_LAUNCH: "1", c.ENV_NODE_STORE: "/store"},
        image="/store/images/x",
        image_env=dict(env),
        secrets=secrets,
        bundle=str(bundle),
        workdir=variables.working_folder(workdir, str(bundle)),
    )

    assert there == {**here.environment, **NOMAD}


def test_everything_a_revision_says_is_passed_on() -> None:
    said = revision_environment(revision(), ticket_sha256="x", grace_period=1, orphan_factor=3, network="host")

    assert set(said) <= set(variables.PASSED)


def test_nothing_says_where_to_listen_but_nomad() -> None:
    made = variables.on_node(
        {c.ENV_LISTEN: "fd:3", c.ENV_CGROUPS: "/x"},
        image="/i",
        image_env={c.ENV_LISTEN: "port:1", c.ENV_LIFELINE: "fd:0"},
        secrets={},
        bundle="/b",
        workdir=None,
    )

    assert not {c.ENV_LISTEN, c.ENV_LIFELINE, c.ENV_CGROUPS} & made.keys()


@pytest.mark.parametrize(
    ("wanted", "given", "seen"),
    [
        ("0", None, ""),
        ("0", "GPU-1", ""),
        ("", "all", ""),
        ("1", "GPU-1", "GPU-1"),
        ("2", "GPU-1,GPU-2", "GPU-1,GPU-2"),
        ("1", None, ""),
        ("1", "none", ""),
        ("1", "void", ""),
        ("1", "all", None),
    ],
)
def test_cuda_sees_what_nomad_gave(wanted: str, given: str | None, seen: str | None) -> None:
    environ = {c.ENV_GPUS: wanted, "CUDA_VISIBLE_DEVICES": "7"}
    if given is not None:
        environ["NVIDIA_VISIBLE_DEVICES"] = given

    made = variables.on_node(environ, image="/i", image_env={}, secrets={}, bundle="/b", workdir=None)

    assert made.get("CUDA_VISIBLE_DEVICES") == seen


def test_a_container_keeps_its_variables_and_loses_nomads() -> None:
    environ = {
        "PATH": "/opt/venv/bin",
        "OWN": "1",
        "NOMAD_TOKEN": "x",
        "VAULT_TOKEN": "x",
        "NVIDIA_VISIBLE_DEVICES": "GPU-1",
        c.ENV_APP: "shop",
        c.ENV_SECRET_FILES: "00-db.json",
        c.ENV_GPUS: "1",
    }

    made = variables.in_container(environ, secrets={"DB": "x"}, bundle="/local/root", workdir="/work")

    assert made == {
        "PATH": "/opt/venv/bin",
        "OWN": "1",
        "NVIDIA_VISIBLE_DEVICES": "GPU-1",
        "DB": "x",
        "PYTHONUNBUFFERED": "1",
        c.ENV_APP: "shop",
        c.ENV_GPUS: "1",
        c.ENV_BUNDLE: "/local/root",
        c.ENV_WORKDIR: "/work",
    }


@pytest.mark.parametrize(
    "workdir",
    [None, "", "/root", "/root/data", "data", "/srv/app", "/", "//srv", "../..", "/root/../etc", "/rooted", "a/../b"],
)
def test_the_working_directory_is_the_same_folder(workdir: str | None) -> None:
    expected = working_folder(workdir, Path("/b/root"))

    assert variables.working_folder(workdir, "/b/root") == (None if expected is None else str(expected))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {c.ENV_POOL: "", c.ENV_REPLICA: "."},
        {c.ENV_POOL: "rev-1", c.ENV_REPLICA: "."},
        {c.ENV_POOL: "${NOMAD_META_pool}", c.ENV_REPLICA: "${NOMAD_META_number}.${NOMAD_META_epoch}"},
        {c.ENV_POOL: "rev-1", c.ENV_REPLICA: "0."},
    ],
)
def test_a_dispatch_without_its_meta_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(Refused, match="Dispatch") as refused:
        variables.check_dispatch(environ)

    assert refused.value.code == c.Exit.BAD_CONFIGURATION


def test_the_first_line_of_a_log_is_one_line() -> None:
    environ = {
        c.ENV_APP: "shop",
        c.ENV_FUNCTION: "f",
        c.ENV_REVISION: "3f2a",
        c.ENV_REPLICA: "0.1",
        "NOMAD_META_reason": "queue:\n14 waiting",
        "NOMAD_META_request_id": "abc",
    }

    assert variables.first_line(environ) == "shop.f, revision 3f2a, replica 0.1: queue: 14 waiting (request abc)"
