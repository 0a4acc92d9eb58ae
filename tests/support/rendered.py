"""Made-up revisions of every sort and the jobs they become: `jobspecs/rendered/`, written by `scripts/rendered`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Function, Source
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.render.nomad import Rendering, dispatch_body, one_of, parent_job, prewarm_job
from modalnomad.settings import NomadSettings, VaultSettings
from tests.support.repository import ROOT

FOLDER = ROOT / "jobspecs" / "rendered"
BUNDLE, IMAGE, PACK, SDK = (Digest(letter * 64) for letter in "b1ac")
CONTAINER = f"registry.internal:5000/modalnomad/shop@sha256:{'d' * 64}"
PROGRAM = "import modal\n\napp = modal.App('shop')\n"


def revision(
    *,
    env: tuple[tuple[str, str], ...] = (),
    workdir: str | None = None,
    reference: str | None = None,
    environment: str = "main",
    entry: str = "shop.py",
    **function: Any,
) -> Revision:
    """Of a Function `resize` in App `shop`, unless it says otherwise."""
    return Revision.make(
        app="shop",
        environment=environment,
        function=Function.model_validate({"tag": "resize", "endpoints": [endpoint("resize")], **function}),
        source=Source(mode="script", entry=entry, root="/home/ana", module="shop"),
        bundle=BUNDLE,
        image=BuiltImage(digest=IMAGE, python="3.12", env=env, workdir=workdir, reference=reference, pack=PACK),
    )


def endpoint(name: str, kind: str = "fastapi_endpoint", **more: Any) -> dict[str, Any]:
    """One endpoint as a manifest has it."""
    return {"name": name, "kind": kind, **more}


def rendering(revision: Revision, *, vault: Mapping[str, Any] | None = None, **nomad: Any) -> Rendering:
    """As a deploy of version 17 would have it."""
    names = [each.name for each in revision.function.endpoints]
    return Rendering(
        nomad=NomadSettings(**nomad),
        vault=VaultSettings(**(vault or {})),
        artifacts_url="http://router.internal:8702",
        orphan_factor=3.0,
        sdk=SDK,
        ticket_sha256="e" * 64,
        web_urls={name: f"https://shop-{name.lower().replace('.', '-')}.example.com" for name in names},
        version=17,
        deployed_at=1_760_000_000.0,
        deployed_by="ana@laptop",
        source=PROGRAM,
    )


def cases() -> dict[str, tuple[Revision, Rendering]]:
    """Name → what is rendered."""
    secrets = [{"name": "db"}, {"anonymous": "f" * 64}, {"name": "api-key", "required_keys": ["KEY"]}]
    web = endpoint("resize", "web_server", port=8000)
    docker = {"driver": "docker"}
    found: dict[str, tuple[Revision, dict[str, Any]]] = {
        "plain": (revision(), {}),
        "class_with_parameters": (
            revision(
                tag="Model",
                is_class=True,
                endpoints=[endpoint("Model.ask", method_name="ask"), endpoint("Model.tell", method_name="tell")],
                parameters=[{"name": "size", "type": "str"}],
                scaling={"min_containers": 1, "max_containers": 4, "max_inputs": 20, "scaledown_window": 300},
            ),
            {},
        ),
        "image_variables": (revision(env=(("GREETING", "it's ${HOME} & more"),), workdir="/srv/app"), {}),
        "limits": (
            revision(resources={"cpu": [0.5, 2.0], "memory": [512, 1024], "ephemeral_disk": 20_000}),
            {"grace_period": 120.0, "log_files": 5},
        ),
        "gpu_one": (revision(resources={"gpu": ["H100:2"], "cpu": [8.0, None], "memory": [65_536, None]}), {}),
        "gpu_list": (revision(resources={"gpu": ["H100", "A100-80GB", "L40S"]}), {}),
        "gpu_any": (revision(resources={"gpu": ["A100", "ANY"]}), {}),
        "gpu_memory": (revision(resources={"gpu": ["A100-40GB:2", "A100-80GB:2"]}), {}),
        "secrets": (revision(secrets=secrets, environment="staging"), {"vault": {"mount": "kv", "namespace": "team"}}),
        "web_server": (revision(endpoints=[web]), {}),
        "docker": (revision(reference=CONTAINER, secrets=secrets[:1]), docker),
        "docker_gpu": (revision(reference=CONTAINER, resources={"gpu": ["H100"]}, workdir="/srv"), docker),
        "docker_web_server": (revision(reference=CONTAINER, endpoints=[web], startup_timeout=90.0), docker),
        "schedule": (revision(endpoints=[], schedule={"kind": "cron", "cron": "0 4 * * *"}), {}),
        "placed": (
            revision(),
            {"region": "global", "datacenters": ("fra1", "ams*"), "node_pool": "web", "python": "/usr/bin/python3.12"},
        ),
    }
    return {name: (made, rendering(made, **settings)) for name, (made, settings) in found.items()}


def bodies() -> dict[str, dict[str, Any]]:
    """Every job: the parents, and one each of what belongs to one."""
    known = cases()
    plain = known["plain"]
    return {
        **{name: parent_job(*case) for name, case in known.items()},
        "one_of_plain": one_of(parent_job(*plain)),
        "prewarm": prewarm_job(*plain),
        "prewarm_docker": prewarm_job(*known["docker"]),
    }


def dispatches() -> dict[str, dict[str, Any]]:
    """What starts replicas."""
    plain, model = (cases()[name][0].id for name in ("plain", "class_with_parameters"))
    return {
        "dispatch": dispatch_body(
            ReplicaKey(PoolKey(plain), 0, 1),
            reason="requests: 14 waiting, 1 running",
            request_id="q7f3k2-0c1d",
            secrets="db=3",
            started_by="router-1",
            decision={"waiting": 14, "running": 1, "wanted": 2},
        ),
        "dispatch_parameters": dispatch_body(
            ReplicaKey(PoolKey(model, '{"size":"ů"}'), 12, 3), reason="min_containers=1"
        ),
    }


def files() -> dict[str, str]:
    """File name → content."""
    found = bodies() | dispatches()
    return {f"{name}.json": json.dumps(body, indent=2, ensure_ascii=False) + "\n" for name, body in found.items()}


def write(folder: Path) -> None:
    """Those files and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    written = files()
    for path in folder.glob("*.json"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
