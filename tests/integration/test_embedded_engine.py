"""What only the embedded engine does: limits of one machine, GPUs, its choice of networks, full disks."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from modalnomad_sdk import contract

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.bundles import compile_bundle
from modalnomad.embedded.engine import EmbeddedEngine
from modalnomad.embedded.gpus import Gpus
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.embedded.store import TEMPORARY_PREFIX
from modalnomad.model.errors import BackendRefused
from modalnomad.model.gpus import Gpu
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Endpoint, Resources, SecretRef
from modalnomad.model.replica import ReplicaState
from modalnomad.model.revision import BuiltImage
from modalnomad.settings import EmbeddedSettings
from tests.support.engines import (
    HELLO,
    IMAGE,
    Harness,
    embedded,
    eventually,
    open_descriptors,
    opened_since,
    processes_in,
    program,
    within,
)

ENVIRONMENT = program("import json, os; return json.dumps(dict(os.environ, cwd=os.getcwd())).encode()")
SERVER = """
import http.server, json, os, subprocess, sys
import modal
app = modal.App("app")

CODE = '''
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(os.environ)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8917), Handler).serve_forever()
'''

@app.function()
@modal.web_server(8917)
def site():
    subprocess.Popen([sys.executable, "-c", CODE])
"""
CARDS = (
    Gpu("GPU-1", "NVIDIA H100 80GB HBM3", 81_559),
    Gpu("GPU-2", "NVIDIA H100 80GB HBM3", 81_559),
    Gpu("GPU-3", "NVIDIA A100-SXM4-40GB", 40_960),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As a disk that fills up while a file is written, for this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A module imported meanwhile would leave a part of its bytecode, and no process could import it any more.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = before


def half_written(home: Path) -> list[Path]:
    return list(home.rglob(f"{TEMPORARY_PREFIX}*"))


# --- limits --------------------------------------------------------------------------------------------------------


async def test_the_limit_of_replicas_is_no_capacity(home: Path) -> None:
    async with embedded(home, EmbeddedSettings(max_replicas=1)) as h:
        revision = await h.revision(HELLO)
        first = await h.started(revision)
        assert (await h.engine.explain(revision)).answer == "not_now"

        replica = await h.replica(await h.start(revision, 1))
        await h.engine.kill(first)

        assert replica.failure is not None
        assert (replica.state, replica.failure.code) == (ReplicaState.FAILED, "no_capacity")
        assert "max_replicas" in replica.failure.reason
        assert (await h.ask(await h.started(revision, 2))).status == 200


async def test_ended_replicas_and_their_output_are_forgotten_in_time(home: Path) -> None:
    async with embedded(home, ended_kept=0.05) as h:
        key = await h.started(await h.revision(HELLO))
        await h.engine.kill(key)

        async for replicas in h.engine.watch():
            if not replicas:
                break
        assert [line async for line in h.engine.logs(None, follow=False)] == []


# --- what a process is given ----------------------------------------------------------------------------------------


async def test_the_image_comes_first_on_the_path_and_names_the_working_folder(home: Path) -> None:
    image = BuiltImage(digest=IMAGE, python="3.11", env=(("A", "b"),), workdir="/root/data")
    inherited = {"PATH": "/usr/bin", "HOME": "/h", "LC_ALL": "C.UTF-8", "SSH_AUTH_SOCK": "/s"}
    async with embedded(home, inherited=inherited) as h:
        seen = (await h.ask(await h.started(await h.revision(ENVIRONMENT, image=image)))).json()

    assert seen["PATH"].split(os.pathsep) == [str(Path(sys.prefix, "bin")), "/usr/bin"]
    assert (seen["A"], seen["HOME"], seen["LC_ALL"]) == ("b", "/h", "C.UTF-8")
    assert "SSH_AUTH_SOCK" not in seen
    assert seen["cwd"].endswith("/root/data")


async def test_public_urls_reach_the_program(home: Path) -> None:
    text = program("return site.get_web_url().encode()")
    async with embedded(home, web_urls=lambda revision: {"site": f"http://{revision.app}.localhost:1"}) as h:
        assert (await h.ask(await h.started(await h.revision(text)))).text == "http://app.localhost:1"


@pytest.mark.parametrize("network", ["auto", "exclusive"])
async def test_a_fixed_port_is_kept_apart_as_the_settings_say(home: Path, network: str) -> None:
    endpoint = Endpoint(name="site", kind="web_server", port=8917)
    async with embedded(home, EmbeddedSettings(network=network)) as h:
        revision = await h.revision(SERVER, endpoints=(endpoint,))
        prepared = h.engine._prepared[revision.id]  # type: ignore[attr-defined]
        key = await h.started(revision)
        assert (await h.ask(key)).status == 200
        second = await h.start(revision, 1)

        if prepared.network == "namespace":
            assert (await h.ask(second, contract.READY_PATH)).status == 200
        else:
            failure = (await h.until(second, ReplicaState.FAILED)).failure
            assert failure is not None
            assert failure.exit_code == contract.Exit.PORT_TAKEN
    assert network == "auto" or prepared.network == "exclusive"


async def test_namespaces_are_not_looked_for_without_a_fixed_port(home: Path) -> None:
    async with embedded(home) as h:
        revision = await h.revision(HELLO)
        engine = h.engine
        assert isinstance(engine, EmbeddedEngine)
        assert await engine.remarks([revision.function]) == ()
        assert engine._network.known is None
        assert not engine.shares_port(revision)


# --- GPUs ----------------------------------------------------------------------------------------------------------


async def visible(h: Harness, *wanted: str, number: int = 0) -> str:
    """CUDA_VISIBLE_DEVICES as an engine hands them out, by the process's own environment."""
    revision = await h.revision(ENVIRONMENT + f"# {wanted}", resources=Resources(gpu=wanted))
    key = await h.start(revision, number)
    await h.until(key, ReplicaState.STARTING, ReplicaState.FAILED)
    replica = await h.replica(key)
    if replica.failure is not None and replica.failure.code == "no_capacity":
        return "none free"

    def find() -> list[str]:
        # A process that is just being executed has no environment yet.
        environments = [psutil.Process(pid).environ() for pid in processes_in(h.home)]
        mine = (str(key.pool), key.name)
        return [
            e["CUDA_VISIBLE_DEVICES"]
            for e in environments
            if (e.get(contract.ENV_POOL), e.get(contract.ENV_REPLICA)) == mine
        ]

    return str((await eventually(find))[0])


async def test_gpus_are_handed_out_one_replica_at_a_time_and_come_back(home: Path) -> None:
    # The runner looks for the cards itself and would end at once: a program that only sleeps stands in for it.
    runner = home.parent / "sleep.py"
    runner.write_text("import time\ntime.sleep(3600)\n")
    gpus = Gpus(home, lambda: CARDS)
    async with embedded(home, gpus=gpus, runner=runner) as h:
        assert await visible(h) == ""
        assert await visible(h, "H100") == "GPU-1"
        assert await visible(h, "H100:2") == "none free"
        assert await visible(h, "H100:2", "A100") == "GPU-3"
        assert await visible(h, "ANY") == "GPU-2"
        assert await visible(h, "ANY", number=1) == "none free"
        all_taken = await h.revision(ENVIRONMENT, resources=Resources(gpu=("H100",)))
        assert (await h.engine.explain(all_taken)).answer == "not_now"

        elsewhere = Gpus(home, lambda: CARDS)
        assert not elsewhere.free(["H100"])
        await asyncio.gather(*(h.engine.kill(replica.key) for replica in await h.snapshot()))
        assert elsewhere.free(["H100:2"])
        assert (await h.engine.explain(all_taken)).answer == "yes"


async def test_a_gpu_this_machine_has_not_is_never(home: Path) -> None:
    async with embedded(home, gpus=Gpus(home, lambda: CARDS)) as h:
        for wanted in ("T4", "H100:3", "A100-80GB"):
            verdict = await h.engine.explain(await h.revision(HELLO, resources=Resources(gpu=(wanted,))))
            assert verdict.answer == "never"
            assert wanted in verdict.reason
            assert "2 × NVIDIA H100 80GB HBM3" in verdict.reason


# --- disks that fill up --------------------------------------------------------------------------------------------

BIG = HELLO + "\n# " + os.urandom(200_000).hex()


async def test_a_bundle_that_does_not_fit_is_refused_and_leaves_nothing(home: Path) -> None:
    async with embedded(home) as h:
        revision = await h.revision(BIG, prepare=False)
        before = open_descriptors()
        with files_no_larger_than(100_000), pytest.raises(BackendRefused, match="cannot unpack a bundle"):
            await h.engine.prepare(revision)

        assert list((home / "bundles").iterdir()) == []
        assert len(opened_since(before)) <= 3  # the run's own: its lock, its janitor
        await h.engine.prepare(revision)
        assert (await h.ask(await h.started(revision))).status == 200


async def test_a_working_copy_that_does_not_fit_is_a_failed_start_that_leaves_nothing(home: Path) -> None:
    async with embedded(home) as h:
        revision = await h.revision(BIG)
        before = open_descriptors()
        with files_no_larger_than(100_000):
            failure = (await h.until(await h.start(revision), ReplicaState.FAILED)).failure

        assert failure is not None
        assert "cannot copy the bundle" in failure.reason
        assert not opened_since(before)
        assert list((next((home / "run").iterdir()) / "replicas").iterdir()) == []


async def test_records_that_do_not_fit_are_refused_and_the_old_ones_stay(home: Path, tmp_path: Path) -> None:
    secrets, artifacts = EmbeddedSecrets(home), EmbeddedArtifacts(home)
    await secrets.create("s", "main", {"A": "old"})
    big = tmp_path / "big"
    big.write_bytes(b"x" * 100_000)

    with files_no_larger_than(10_000):
        with pytest.raises(BackendRefused) as refused:
            await secrets.create("s", "main", {"A": "n" * 20_000}, replace=True)
        with pytest.raises(BackendRefused):
            await artifacts.put(big)

    assert "n" * 20 not in str(refused.value)
    assert await secrets.resolve([SecretRef(name="s")], "main") == {"A": "old"}
    assert half_written(home) == []


# --- speed that is easy to lose ---------------------------------------------------------------------------------------


async def test_a_new_bundle_is_compiled_once_it_is_quiet(home: Path) -> None:
    async with embedded(home, compile_after=0.0) as h:
        revision = await h.revision(HELLO)
        compiled = home / "bundles" / revision.bundle / "__pycache__"
        await eventually(lambda: compiled.is_dir() and list(compiled.glob("prog.*.pyc")))

        assert (await h.ask(await h.started(revision))).status == 200


async def test_many_bundles_are_compiled_one_after_the_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `up` with a hundred Apps prepares them all when it starts."""
    running: list[Path] = []
    done: list[Path] = []
    gate = asyncio.Event()

    async def compile_slowly(bundle: Path, python: Path) -> None:
        running.append(bundle)
        await gate.wait()
        assert len(running) == 1
        done.append(running.pop())

    monkeypatch.setattr("modalnomad.embedded.bundles.compile_bundle", compile_slowly)
    async with embedded(home, compile_after=0.0) as h:
        await asyncio.gather(*(h.revision(f"{HELLO}\nNUMBER = {number}\n") for number in range(4)))
        for _ in range(10):
            await asyncio.sleep(0)
        await eventually(lambda: len(running) == 1)
        gate.set()
        await eventually(lambda: len(done) == 4)


async def test_what_is_compiled_while_its_revision_goes_is_whole_when_it_comes_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler makes the folder it writes into, also where a bundle was."""
    compiling, goes_on = asyncio.Event(), asyncio.Event()

    async def compile_slowly(bundle: Path, python: Path) -> None:
        compiling.set()
        await goes_on.wait()
        (bundle / "__pycache__").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("modalnomad.embedded.bundles.compile_bundle", compile_slowly)
    async with embedded(home, compile_after=0.0) as h:
        revision = await h.revision(HELLO)
        await within(compiling.wait())
        await h.engine.retire(revision.id)
        goes_on.set()
        await eventually(lambda: not list((home / "bundles").iterdir()), "the bundle is gone")

        await h.engine.prepare(revision)
        assert (await h.ask(await h.started(revision))).status == 200


async def test_a_compiler_makes_no_folder_where_its_bundle_was(tmp_path: Path) -> None:
    """Whoever started it may be killed, and the bundle removed by another process, while it works."""
    bundle, begun, goes_on = tmp_path / "bundle", tmp_path / "begun", tmp_path / "goes_on"
    bundle.mkdir()
    compiler = tmp_path / "python"
    compiler.write_text(
        f"""#!/bin/sh
        for folder do :; done
        echo > {begun}
        until [ -e {goes_on} ]; do sleep 0.01; done
        mkdir -p "$folder/__pycache__"
        """
    )
    compiler.chmod(0o700)
    compiling = asyncio.create_task(compile_bundle(bundle, compiler))
    await eventually(begun.exists)
    bundle.rmdir()
    goes_on.touch()
    await compiling
    assert not bundle.exists()


async def test_an_environment_that_is_not_here_can_never_run(home: Path) -> None:
    async with embedded(home) as h:
        unbuilt = BuiltImage(digest=Digest("2" * 64), python="3.11")
        verdict = await h.engine.explain(await h.revision(HELLO, image=unbuilt, prepare=False))

    assert verdict.answer == "never"
    assert "is not on this machine" in verdict.reason
