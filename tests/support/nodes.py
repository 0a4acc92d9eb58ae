"""A node of a cluster as a launcher sees it: a task's folder, variables, a store, and an artifact server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modalnomad_sdk import contract as c
from modalnomad_sdk.store import definition_digest, find_python

from modalnomad.hashicorp.artifact_server import ArtifactServer
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.hashicorp.packs import write_pack
from modalnomad.hashicorp.sdk_archive import sdk_archive, write_sdk_archive
from modalnomad.settings import ArtifactSettings

PYTHON = os.path.realpath(sys.executable)
"""Outside virtual environments, as a node's."""
LONG = 60.0
"""Seconds after which a test has failed."""


def definition(*steps: Mapping[str, object]) -> dict[str, object]:
    """Of an environment that needs nothing from anywhere."""
    found = find_python(None)
    return {
        "schema": 1,
        "python": found.version,
        "implementation": found.implementation,
        "platform": found.platform,
        "steps": list(steps),
        "sources": {"environment": {}, "arguments": []},
    }


@dataclass
class Node:
    """One node, and the task that `launch` starts on it."""

    folder: Path
    archive: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def task(self) -> Path:
        """NOMAD_TASK_DIR."""
        return self.folder / "local"

    def environment(self, **more: str) -> dict[str, str]:
        """What Nomad gives the task; empty values of `more` take a variable away."""
        agent = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(self.folder), "AGENT_SECRET": "x"}
        merged = {**agent, **self.variables, **more}
        return {name: value for name, value in merged.items() if value}

    def command(self, what: str = "launch") -> list[str]:
        """As the rendered task has it."""
        return [PYTHON, "-I", "-S", str(self.archive), what]

    def start(self, what: str = "launch", **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(what),
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, what: str = "launch", **more: str) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        with self.start(what, **more) as process:
            out, err = process.communicate(timeout=LONG)
            return process.returncode, out, err

    def secret(self, name: str, content: object) -> None:
        """A file that Nomad's template wrote."""
        folder = self.folder / "secrets"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")

    def show_runner(self) -> None:
        """Replicas started here only print what they were given: the unpacked runner is another program."""
        (sdk,) = (self.store / "sdk").glob("?" * 64)
        (sdk / "modalnomad_sdk" / "runner" / "__main__.py").write_text(SHOW)


SHOW = """
import json, os, sys
names = {os.fsencode(n).decode("latin-1"): os.fsencode(v).decode("latin-1") for n, v in os.environ.items()}
print("REPLICA " + json.dumps({"environ": names, "cwd": os.getcwd(), "argv": sys.argv, "executable": sys.executable}))
"""


def shown(output: str) -> dict[str, object]:
    """What such a runner printed; names and values as their bytes."""
    (line,) = [line for line in output.splitlines() if line.startswith("REPLICA ")]
    found: dict[str, object] = json.loads(line.removeprefix("REPLICA "))
    return found


@contextlib.asynccontextmanager
async def node_at(
    folder: Path, *steps: Mapping[str, object], archives: Mapping[str, Path] | None = None
) -> AsyncIterator[Node]:
    """A node whose store is empty, and the artifacts of one image made of `steps`."""
    from modalnomad_sdk.store import Inputs

    artifacts = ObjectArtifacts(ArtifactSettings(store=str(folder / "artifacts")), folder)
    wanted = definition(*steps)
    write_pack(wanted, Inputs(archives=dict(archives or {})), folder / "pack")
    node = Node(folder, folder / "modalnomad.pyz")
    write_sdk_archive(node.archive)
    (node.task / "root").mkdir(parents=True)
    server = ArtifactServer(artifacts, "127.0.0.1", 0)
    await server.start()
    try:
        node.variables = {
            c.ENV_LAUNCH: str(c.VERSION),
            c.ENV_CONTRACT: str(c.VERSION),
            c.ENV_APP: "shop",
            c.ENV_FUNCTION: "f",
            c.ENV_REVISION: "rev-1",
            c.ENV_POOL: "rev-1",
            c.ENV_REPLICA: "0.1",
            c.ENV_IMAGE: definition_digest(wanted),
            c.ENV_PACK: await artifacts.put(folder / "pack"),
            c.ENV_SDK: await sdk_archive(artifacts),
            c.ENV_ARTIFACTS: f"http://127.0.0.1:{server.port}",
            c.ENV_NODE_STORE: str(node.store),
            c.ENV_BUNDLE: str(node.task / "root"),
            "NOMAD_TASK_DIR": str(node.task),
            "NOMAD_SECRETS_DIR": str(folder / "secrets"),
            "NOMAD_META_reason": "queue: 14 waiting",
            "NOMAD_META_request_id": "abc",
        }
        yield node
    finally:
        await server.close()
