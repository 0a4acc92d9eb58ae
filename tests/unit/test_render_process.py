"""A replica's environment and command line."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from modalnomad_sdk import contract

from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Endpoint, Function, Scaling, Source
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.render.environment import contract_environment, orphan_after, ticket
from modalnomad.render.process import INHERITED, ProcessSpec, process_spec, working_folder

DIGEST = Digest("d" * 64)
BUNDLE = Path("/run/replicas/1/root")


def revision(
    *, env: tuple[tuple[str, str], ...] = (), workdir: str | None = None, mode: str = "script", **function: object
) -> Revision:
    return Revision.make(
        app="shop",
        environment="staging",
        function=Function.model_validate({"tag": "Server", **function}),
        source=Source.model_validate({"mode": mode, "entry": "pkg.web", "root": "/home/u", "module": "pkg.web"}),
        bundle=DIGEST,
        image=BuiltImage(digest=DIGEST, python="3.12", env=env, workdir=workdir),
    )


def variables(r: Revision, parameters: str = "", **options: object) -> dict[str, str]:
    settings = {"platform_key": b"k", "grace_period": 30.0, "orphan_factor": 3.0, "network": "host", **options}
    return contract_environment(r, ReplicaKey(PoolKey(r.id, parameters), 2, 5), **settings)  # type: ignore[arg-type]


def spec(
    r: Revision, inherited: dict[str, str] | None = None, secrets: dict[str, str] | None = None, **own: str
) -> ProcessSpec:
    return process_spec(
        r,
        ReplicaKey(PoolKey(r.id), 0, 1),
        image=Path("/images/x"),
        runner=Path("/sdk/runner/__main__.py"),
        bundle=BUNDLE,
        inherited=inherited or {},
        secrets=secrets or {},
        variables=own,
    )


def test_the_contract_of_a_replica() -> None:
    endpoints = (Endpoint(name="Server.web", kind="web_server", port=8000),)
    r = revision(mode="module", endpoints=endpoints, timeout=12.5, scaling=Scaling(max_inputs=4))

    found = variables(r, '{"root":"ů"}', network="namespace", gpus=2, web_urls={"Server.web": "http://x"})

    assert found[contract.ENV_CONTRACT] == "1"
    assert (found[contract.ENV_APP], found[contract.ENV_ENVIRONMENT]) == ("shop", "staging")
    assert (found[contract.ENV_FUNCTION], found[contract.ENV_SOURCE]) == ("Server", "module:pkg.web")
    assert (found[contract.ENV_REVISION], found[contract.ENV_REPLICA]) == (r.id, "2.5")
    assert found[contract.ENV_POOL].startswith(f"{r.id}-")
    assert (found[contract.ENV_TIMEOUT], found[contract.ENV_STARTUP_TIMEOUT]) == ("12.5", "12.5")
    assert (found[contract.ENV_MAX_INPUTS], found[contract.ENV_GRACE_PERIOD]) == ("4", "30")
    assert (found[contract.ENV_NETWORK], found[contract.ENV_WEB_PORTS]) == ("namespace", "8000")
    assert (found[contract.ENV_GPUS], found[contract.ENV_IMAGE]) == ("2", DIGEST)
    assert json.loads(found[contract.ENV_WEB_URLS]) == {"Server.web": "http://x"}
    encoded = found[contract.ENV_PARAMETERS]
    assert "=" not in encoded
    assert base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode() == '{"root":"ů"}'


def test_what_does_not_apply_is_left_out() -> None:
    found = variables(revision())

    assert not {contract.ENV_PARAMETERS, contract.ENV_WEB_PORTS, contract.ENV_WORKDIR} & set(found)


def test_the_replica_gets_the_hash_of_its_ticket_and_not_the_ticket() -> None:
    r = revision()
    found = variables(r, platform_key=b"secret")

    expected = hmac.new(b"secret", r.id.encode(), "sha256").hexdigest()
    assert ticket(b"secret", r.id) == expected
    assert found[contract.ENV_TICKET_SHA256] == hashlib.sha256(expected.encode()).hexdigest()
    assert expected not in found.values()


@pytest.mark.parametrize(("window", "seconds"), [(60, 180), (1, 30), (1200, 3600)])
def test_an_orphan_waits_some_windows_and_never_too_little(window: float, seconds: float) -> None:
    assert orphan_after(Function(tag="f", scaling=Scaling(scaledown_window=window)), 3.0) == seconds


def test_later_sources_win_and_nobody_forges_the_contract() -> None:
    r = revision(env=(("A", "image"), ("B", "image"), ("HOME", "/image"), ("MODALNOMAD_APP", "forged")))

    found = spec(
        r, {"HOME": "/me", "LANG": "C"}, {"B": "secret", "MODAL_IS_REMOTE": "0"}, MODALNOMAD_APP="shop"
    ).environment

    assert (found["A"], found["B"], found["HOME"], found["LANG"]) == ("image", "secret", "/image", "C")
    assert (found["MODALNOMAD_APP"], found["MODAL_IS_REMOTE"]) == ("shop", "1")


def test_only_a_short_list_is_inherited() -> None:
    private = {"PYTHONPATH": "/x", "PYTHONDONTWRITEBYTECODE": "1", "AWS_SECRET_ACCESS_KEY": "x"}
    found = spec(revision(), {**private, "LC_TIME": "C", "TZ": "CET"}).environment

    assert (found["LC_TIME"], found["TZ"]) == ("C", "CET")
    assert not private.keys() & found.keys()
    assert not any("KEY" in name or "TOKEN" in name for name in INHERITED)


def test_the_images_programs_come_first() -> None:
    assert spec(revision(), {"PATH": "/usr/bin"}).environment["PATH"] == "/images/x/bin:/usr/bin"
    assert spec(revision(env=(("PATH", "/opt"),)), {"PATH": "/u"}).environment["PATH"] == "/images/x/bin:/opt"
    assert spec(revision()).argv == ("/images/x/bin/python", "/sdk/runner/__main__.py")


@pytest.mark.parametrize(
    ("workdir", "inside"),
    [
        (None, None),
        ("/root", ""),
        ("/root/data", "data"),
        ("data", "data"),
        ("/srv/app", "srv/app"),
        ("/", ""),
        ("//srv", "srv"),
        ("../..", ""),
        ("/root/../etc", "etc"),
        ("/rooted", "rooted"),
    ],
)
def test_a_working_folder_lies_in_the_replicas_own(workdir: str | None, inside: str | None) -> None:
    expected = None if inside is None else BUNDLE / inside

    assert working_folder(workdir, BUNDLE) == expected
    assert spec(revision(workdir=workdir)).cwd == (expected or BUNDLE)


def test_values_of_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(spec(revision(), secrets={"A": "hidden"}))
