"""Containers from deploy to answer, on a real Docker engine and a real Nomad; skipped where there is none.

DOCKER_HOST names the engine, TEST_DOCKER_BASE an image with Python that it has (default: python:3.x-slim), and
TEST_DOCKER_REGISTRY a registry it may push to (default: none, images stay on the engine).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from modalnomad.hashicorp.docker.engine import DockerEngine
from modalnomad.model.errors import BackendError
from modalnomad.settings import DockerSettings
from tests.support.cluster import cluster

BASE = os.environ.get("TEST_DOCKER_BASE", DockerSettings().base)
PROGRAM = """
import modal, os, sys, pathlib
image = (
    modal.Image.debian_slim()
    .pip_install("six")
    .env({"GREETING": "hi $USER ${NOMAD_JOB_ID}"})
    .run_commands("mkdir /srv/made && echo made >/srv/made/file && mkdir /root/both && echo baked >/root/both/baked")
    .workdir("/srv/made")
    .add_local_file(pathlib.Path(__file__).parent / "late.txt", "/root/both/late")
)
app = modal.App("boxed", image=image)

@app.function(scaledown_window=2, secrets=[modal.Secret.from_name("db")])
@modal.fastapi_endpoint()
def show():
    import six
    return {
        "password": os.environ["PASSWORD"], "greeting": os.environ["GREETING"],
        "late": pathlib.Path("/root/both/late").read_text(),
        "baked": pathlib.Path(os.environ["MODALNOMAD_BUNDLE"], "both/baked").read_text(),
        "made": pathlib.Path("file").read_text(),
        "cwd": os.getcwd(), "six": six.__version__, "python": sys.executable, "version": "VERSION",
    }
"""
BROKEN = """
import modal
app = modal.App("boxed", image=modal.Image.debian_slim().run_commands("echo before; exit 7"))

@app.function()
@modal.fastapi_endpoint()
def show():
    return 1
"""


async def _missing() -> str:
    if shutil.which("nomad") is None:
        return "nomad is not on PATH"
    try:
        base = BASE.replace("{python}", f"{sys.version_info[0]}.{sys.version_info[1]}")
        return "" if await DockerEngine().image(base) else f"the Docker engine has no {base}"
    except BackendError as error:
        return f"no Docker engine answers: {error.message}"


@pytest.mark.timeout(300)  # the first push of a base takes as long as the engine packs it
async def test_a_container_is_built_pulled_woken_and_replaced_by_a_new_version(tmp_path: Path) -> None:
    if why := await _missing():
        pytest.skip(why)
    settings: dict[str, Any] = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    settings |= {
        "MODALNOMAD_NOMAD__DRIVER": "docker",
        "MODALNOMAD_DOCKER__BASE": BASE,
        "MODALNOMAD_DOCKER__REGISTRY": os.environ.get("TEST_DOCKER_REGISTRY", ""),
    }
    plugin = {"gc": [{"image": False}]} | ({"endpoint": host} if (host := settings.get("DOCKER_HOST")) else {})
    async with cluster(tmp_path, real=True, acl=True, plugins={"docker": plugin}, **settings) as c:
        await c.cli("secret", "create", "db", "PASSWORD=p $w")
        program = tmp_path / "boxed.py"
        (tmp_path / "late.txt").write_text("late")
        program.write_text(PROGRAM.replace("VERSION", "one"))
        async with c.router() as router:
            await c.cli("deploy", str(program))
            status, text = await router.get("boxed-show.localhost")
            assert status == 200, text
            answer = json.loads(text)
            assert answer["password"] == "p $w"
            assert answer["greeting"] == "hi $USER ${NOMAD_JOB_ID}"
            assert (answer["made"], answer["cwd"]) == ("made\n", "/srv/made")
            assert (answer["late"], answer["baked"]) == ("late", "baked\n")
            assert answer["python"] == "/opt/modalnomad/env/bin/python"

            program.write_text(BROKEN)
            failed = await c.cli("deploy", str(program), code=None)
            assert failed.code != 0
            assert "exit status 7" in failed.stdout + failed.stderr
            status, text = await router.get("boxed-show.localhost")
            assert (status, json.loads(text)["version"]) == (200, "one")

            program.write_text(PROGRAM.replace("VERSION", "two"))
            await c.cli("deploy", str(program))
            status, text = await router.get("boxed-show.localhost")
            assert (status, json.loads(text)["version"]) == (200, "two")
