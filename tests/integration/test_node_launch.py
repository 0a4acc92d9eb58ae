"""What a task does on its node before it is a replica: environment, SDK, variables, and every way to fail."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import shutil
import signal
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk import contract as c
from modalnomad_sdk.node.prune import prune
from modalnomad_sdk.store import ImageStore

from tests.support.nodes import Node, node_at, shown

MARKER = {"kind": "run", "command": "touch $VIRTUAL_ENV/built-$$", "environment": {}, "workdir": ""}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with node_at(tmp_path, MARKER) as made:
        yield made


async def run(node: Node, what: str = "launch", **more: str) -> tuple[int, str, str]:
    """Beside the loop, which serves artifacts."""
    return await asyncio.to_thread(node.run, what, **more)


async def warm(node: Node) -> None:
    """Everything is there, and replicas show what they are given."""
    code, out, err = await run(node, "prewarm")
    assert code == 0, (out, err)
    node.show_runner()


async def replica(node: Node, **more: str) -> dict[str, Any]:
    """What a replica is given."""
    code, out, err = await run(node, **more)
    assert code == 0, (out, err)
    return shown(out)


def image(node: Node) -> Path:
    return node.store / "images" / node.variables[c.ENV_IMAGE]


def builds(node: Node) -> int:
    return len(list(image(node).glob("built-*")))


async def test_prewarming_makes_all_that_a_start_needs(node: Node) -> None:
    code, out, err = await run(node, "prewarm")

    assert (code, err) == (0, "")
    assert "making a virtual environment" in out
    assert out.splitlines()[-1].endswith("is ready on this node")
    assert builds(node) == 1
    assert stat.S_IMODE(node.store.stat().st_mode) == 0o700
    (sdk,) = (node.store / "sdk").glob("?" * 64)
    assert list(sdk.glob("modalnomad_sdk/runner/__pycache__/*.pyc")), "compiled"
    code, out, _ = await run(node, "prewarm", **{c.ENV_ARTIFACTS: "", c.ENV_PACK: ""})
    assert code == 0, "and once is enough"
    assert "virtual" not in out


async def test_everything_is_compiled_whatever_the_agents_variables_say(tmp_path: Path) -> None:
    command = 'echo x = 1 >"$(python -c "import sysconfig; print(sysconfig.get_path(\'purelib\'))")/made.py"'
    async with node_at(tmp_path, {**MARKER, "command": command}) as node:
        code, out, err = await run(node, "prewarm", PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX="/nowhere")

        assert code == 0, (out, err)
        assert list(image(node).glob("lib/*/site-packages/__pycache__/made.*.pyc"))
        assert list(node.store.glob("sdk/*/modalnomad_sdk/runner/__pycache__/gate.*.pyc"))


async def test_a_start_on_a_bare_node_makes_everything_and_becomes_the_runner(node: Node) -> None:
    code, out, err = await run(node, **{c.ENV_TICKET_SHA256: "0"})

    assert out.startswith("modalnomad: shop.f, revision rev-1, replica 0.1: queue: 14 waiting (request abc)\n")
    assert builds(node) == 1
    assert code == c.Exit.BAD_CONFIGURATION
    assert c.ENV_TICKET_SHA256 in err, "the runner's own words"


async def test_a_replica_is_what_the_environment_says(node: Node) -> None:
    await warm(node)

    found = await replica(node, NOMAD_PORT_http="20000", **{c.ENV_IMAGE_WORKDIR: "/root/data"})

    assert found["executable"] == str(image(node) / "bin" / "python")
    assert found["cwd"] == str(node.task / "root" / "data")
    environ = found["environ"]
    assert environ[c.ENV_BUNDLE] == str(node.task / "root")
    assert environ["VIRTUAL_ENV"] == str(image(node))
    assert (environ["NOMAD_PORT_http"], environ["CUDA_VISIBLE_DEVICES"]) == ("20000", "")
    assert "AGENT_SECRET" not in environ
    assert not {c.ENV_NODE_STORE, c.ENV_LAUNCH, c.ENV_ARTIFACTS, "NOMAD_SECRETS_DIR"} & environ.keys()


VALUES = {
    "PLAIN": "x",
    "EMPTY": "",
    "LINES": "one\ntwo\r\n\n",
    "QUOTES": "'\"`$HOME ${NOMAD_TASK_DIR} {{ x }} #%\\",
    "UNICODE": "ůñ✓ \U0001f511",
    "LONG": "x" * 30_000,
}


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "de_DE.ISO-8859-1"])
async def test_secrets_are_exact(node: Node, locale: str) -> None:
    await warm(node)
    node.secret("00-db.json", VALUES)
    node.secret("01-more.json", {"PLAIN": "later wins"})

    found = await replica(node, LC_ALL=locale, **{c.ENV_SECRET_FILES: "00-db.json,01-more.json"})

    environ = {name: value.encode("latin-1").decode() for name, value in found["environ"].items()}
    assert {name: environ[name] for name in VALUES} == {**VALUES, "PLAIN": "later wins"}


async def test_a_secret_that_cannot_be_variables_is_refused_unseen(node: Node) -> None:
    await warm(node)
    node.secret("00-db.json", {"LD_PRELOAD": "hidden"})

    code, out, err = await run(node, **{c.ENV_SECRET_FILES: "00-db.json"})

    assert code == c.Exit.BAD_CONFIGURATION
    assert "reserved" in err
    assert "hidden" not in out + err


async def test_a_secret_that_is_not_there_is_said(node: Node) -> None:
    await warm(node)

    code, _, err = await run(node, **{c.ENV_SECRET_FILES: "00-db.json"})

    assert (code, "00-db.json" in err) == (c.Exit.BAD_CONFIGURATION, True)


async def test_a_dispatch_by_hand_ends_with_a_reason(node: Node) -> None:
    code, _, err = await run(node, **{c.ENV_POOL: "", c.ENV_REPLICA: "."})

    assert code == c.Exit.BAD_CONFIGURATION
    assert "Dispatch button" in err
    assert not node.store.exists(), "nothing was made for it"


# --- several at once, and killed ones ---------------------------------------------------------------------------


async def test_two_at_once_build_once(node: Node) -> None:
    results = await asyncio.gather(*(run(node, "prewarm") for _ in range(3)))

    assert [code for code, _, _ in results] == [0, 0, 0], results
    assert builds(node) == 1
    assert sum("building image" in out for _, out, _ in results) == 1
    assert len(list((node.store / "sdk").glob("?" * 64))) == 1


async def test_a_kill_at_any_moment_leaves_a_node_that_works(tmp_path: Path) -> None:
    """At moments that are spread over a whole first start, in a store that each one finds as the last left it."""
    import time

    async with node_at(tmp_path / "timed") as timed:
        began = time.monotonic()
        assert (await run(timed, "prewarm"))[0] == 0
        whole = time.monotonic() - began
    async with node_at(tmp_path / "killed", MARKER) as node:
        for part in range(1, 9):
            with node.start("prewarm") as process:
                await asyncio.sleep(whole * part / 9)
                process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(process.communicate)
            for folder in (node.store / "sdk").glob("?" * 64):
                assert (folder / "modalnomad_sdk" / "runner" / "__main__.py").stat().st_size, "whole or not there"

        code, out, err = await run(node, "prewarm")

        assert code == 0, (out, err)
        assert builds(node) == 1
        assert not list(node.store.glob("*/.part-*"))
        assert not list(node.store.glob("images/.building-*"))


async def test_what_a_killed_one_left_is_not_used_and_goes(node: Node) -> None:
    part = node.store / "sdk" / ".part-1"
    (part / "modalnomad_sdk").mkdir(parents=True)
    half = node.store / "images" / node.variables[c.ENV_IMAGE] / "bin"
    half.mkdir(parents=True)
    (half / "python").symlink_to("/usr/bin/python3")  # without the mark that says that it is complete

    code, out, err = await run(node, "prewarm")

    assert code == 0, (out, err)
    assert builds(node) == 1
    assert not part.exists()


def test_what_killed_builds_of_other_images_left_goes_too(tmp_path: Path) -> None:
    """Nobody may ever build those again on this node; one that is being built stays."""
    images = tmp_path / "images"
    built = f".building-{'c' * 64}-1-ab"
    for name in (f".building-{'a' * 64}-1-ab", f".trash-{'b' * 64}-ab", built):
        (images / name / "lib").mkdir(parents=True)
    (tmp_path / "sdk").mkdir()
    with ImageStore(images).claim("c" * 64):
        assert prune(str(tmp_path), kept="d" * 64) == []

    assert [path.name for path in images.glob(".*-*")] == [built]


def test_a_kill_while_an_unused_runner_is_removed_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one would pass for it: every start of a version that needs it would fail on this node."""
    sdk = tmp_path / "sdk" / ("a" * 64)
    (sdk / "modalnomad_sdk").mkdir(parents=True)
    os.utime(sdk, (1000, 1000))

    class Killed(BaseException):
        pass

    def killed(path: object, **_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("modalnomad_sdk.node.prune.shutil.rmtree", killed)
        with pytest.raises(Killed):
            prune(str(tmp_path), kept="d" * 64)
    assert not sdk.exists()

    assert prune(str(tmp_path), kept="d" * 64) == []
    assert [path.name for path in sdk.parent.iterdir()] == [".lock"]


async def test_an_environment_whose_python_went_away_is_made_anew(node: Node) -> None:
    await warm(node)
    python = image(node) / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")

    code, out, _ = await run(node, "prewarm")

    assert code == 0
    assert "building image" in out


async def test_what_nobody_used_for_a_month_goes_when_something_new_is_made(node: Node) -> None:
    await warm(node)
    old, running = "a" * 64, "b" * 64
    for digest in (old, running):
        shutil.copytree(image(node), node.store / "images" / digest, symlinks=True)
        (node.store / "sdk" / digest).mkdir()
        os.utime(node.store / "sdk" / digest, (1000, 1000))
        os.utime(node.store / "images" / digest / "modalnomad-image.json", (1000, 1000))
    command = [
        str(node.store / "images" / running / "bin" / "python"),
        "-c",
        "input()",
        str(node.store / "sdk" / running),
    ]
    shutil.rmtree(image(node))
    user = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE)
    code, out, err = await run(node, "prewarm")
    await user.communicate(b"")

    assert (code, err) == (0, "")
    assert out.count("unused for a month: aaaaaaaaaaaa") == 2
    assert {path.name for path in (node.store / "sdk").glob("?" * 64)} == {running, node.variables[c.ENV_SDK]}
    assert {path.name for path in (node.store / "images").glob("?" * 64)} == {running, node.variables[c.ENV_IMAGE]}


async def test_a_variable_too_long_for_the_system_is_said(node: Node) -> None:
    await warm(node)
    node.secret("00-db.json", {"LONG": "x" * 140_000})

    code, out, err = await run(node, **{c.ENV_SECRET_FILES: "00-db.json"})

    assert code == c.Exit.ENVIRONMENT_FAILED
    assert "128 KiB" in err
    assert "x" * 20 not in out + err


# --- what cannot be made -----------------------------------------------------------------------------------------


async def refused(node: Node, **more: str) -> str:
    """The reason, with the code that says that it is the node's."""
    code, _, err = await run(node, **more)
    assert code == c.Exit.ENVIRONMENT_FAILED, err
    assert "Traceback" not in err
    assert not list(node.store.glob("images/" + "?" * 64))
    return err


async def test_a_pack_that_is_gone_is_said(node: Node) -> None:
    for file in (node.folder / "artifacts").iterdir():
        if file.name == node.variables[c.ENV_PACK]:
            file.unlink()

    assert "deploy the App again" in await refused(node)


async def test_a_pack_that_is_damaged_is_never_used(node: Node) -> None:
    file = node.folder / "artifacts" / node.variables[c.ENV_PACK]
    content = bytearray(file.read_bytes())
    content[600] ^= 1
    file.write_bytes(content)

    assert "something else than its name says" in await refused(node)


async def test_a_pack_of_another_image_is_refused(node: Node) -> None:
    assert "of another image" in await refused(node, **{c.ENV_IMAGE: "0" * 64})


async def test_no_server_is_said_with_its_address(node: Node) -> None:
    err = await refused(node, **{c.ENV_ARTIFACTS: "http://127.0.0.1:1"})

    assert "http://127.0.0.1:1/artifacts/" in err
    assert "artifacts.url" in err


async def test_a_node_without_uv_is_told_so(node: Node) -> None:
    assert "uv" in await refused(node, PATH="/usr/bin:/bin")


async def test_what_builds_packages_sees_none_of_the_agents_secrets(node: Node) -> None:
    """They run code of whoever made them."""
    uv = node.folder / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\nenv\nexit 3\n")
    uv.chmod(0o755)
    secret = {"VAULT_TOKEN": "hvs.agent", "NOMAD_TOKEN": "n0mad", "AWS_SECRET_ACCESS_KEY": "k3y"}

    code, out, err = await run(
        node, PATH=f"{uv.parent}:/usr/bin:/bin", UV_DEFAULT_INDEX="https://index.internal", LC_ALL="C.UTF-8", **secret
    )

    assert code == c.Exit.ENVIRONMENT_FAILED
    for word in ("UV_DEFAULT_INDEX=https://index.internal", f"HOME={node.folder}", "LC_ALL=C.UTF-8"):
        assert word in out
    assert not [value for value in (*secret.values(), "AGENT_SECRET") if value in out + err]


async def test_a_node_without_the_images_python_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import nodes

    usual = nodes.definition
    monkeypatch.setattr(nodes, "definition", lambda *steps: {**usual(*steps), "python": "3.10.99"})
    async with node_at(tmp_path) as node:
        err = await refused(node)

    assert "Python 3.10.99 is not installed" in err
    assert "installed: " in err


async def test_a_build_that_fails_shows_its_output(tmp_path: Path) -> None:
    step = {"kind": "run", "command": "echo of no use; exit 3", "environment": {}, "workdir": ""}
    async with node_at(tmp_path, step) as node:
        code, out, err = await run(node)

    assert code == c.Exit.ENVIRONMENT_FAILED
    assert "of no use" in out
    assert "exit status 3" in err


async def test_a_store_that_cannot_be_written_is_said(node: Node) -> None:
    node.store.write_text("a file")

    code, _, err = await run(node)

    assert code == c.Exit.ENVIRONMENT_FAILED
    assert str(node.store) in err
    assert "Traceback" not in err


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


@as_root
async def test_a_store_of_somebody_elses_is_not_believed(node: Node) -> None:
    """What lies in it runs as whoever the task runs as."""
    await warm(node)
    (sdk,) = (node.store / "sdk").glob("?" * 64)
    (sdk / "modalnomad_sdk" / "node" / "launch.py").write_text("import os; os.write(1, b'planted')")
    os.chown(node.store, 65534, -1)
    node.store.chmod(0o777)

    for what in ("launch", "prewarm"):
        code, out, err = await run(node, what)

        assert code == c.Exit.ENVIRONMENT_FAILED
        assert (out, "Traceback" in err) == ("", False)
        assert f"{node.store} belongs to user 65534" in err
        assert "nomad.node_store" in err
    assert stat.S_IMODE(node.store.stat().st_mode) == 0o777


@as_root
@pytest.mark.parametrize(("mode", "believed"), [(0o755, True), (0o775, False), (0o757, False)])
def test_of_roots_store_another_user_believes_what_only_root_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, believed: bool
) -> None:
    from modalnomad_sdk.node.__main__ import distrusted

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tmp_path.chmod(mode)

    assert (distrusted(str(tmp_path)) == "") is believed
    assert distrusted(str(tmp_path / "none")) == ""


@pytest.mark.parametrize("name", [c.ENV_SDK, c.ENV_IMAGE])
@pytest.mark.parametrize("value", ["", "../../etc", "A" * 64])
async def test_digests_are_checked_before_they_are_paths(node: Node, name: str, value: str) -> None:
    code, _, err = await run(node, **{name: value})

    assert code == c.Exit.BAD_CONFIGURATION
    assert name in err


async def test_another_archive_than_was_sent_is_not_unpacked(node: Node) -> None:
    code, _, err = await run(node, **{c.ENV_SDK: "0" * 64})

    assert code == c.Exit.BAD_CONFIGURATION
    assert "was sent" in err
    assert not list((node.store / "sdk").glob("?" * 64))


# --- files of the image, containers ------------------------------------------------------------------------------


def archive(folder: Path, **files: bytes) -> Path:
    """A `files` step's archive."""
    path = folder / "files.tar.gz"
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


async def test_the_images_files_lie_beside_the_bundle_which_wins(tmp_path: Path) -> None:
    path = archive(tmp_path, model_bin=b"m" * 2_000_000, data__words_txt=b"image", app_py=b"image")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    step = {"kind": "files", "archive": digest}
    async with node_at(tmp_path / "node", step, archives={digest: path}) as node:
        await warm(node)
        (node.task / "root" / "app.py").write_text("bundle")

        await replica(node)

        root = node.task / "root"
        assert (root / "app.py").read_text() == "bundle"
        assert (root / "data" / "words.txt").read_text() == "image"
        assert (root / "model.bin").stat().st_size == 2_000_000


async def test_in_a_container_there_is_nothing_to_make(node: Node) -> None:
    """The SDK lies unpacked in the image, and the interpreter is whoever runs it."""
    import zipfile

    from tests.support.nodes import SHOW

    sdk = node.folder / "sdk"
    with zipfile.ZipFile(node.archive) as content:
        content.extractall(sdk)
    (sdk / "modalnomad_sdk" / "runner" / "__main__.py").write_text(SHOW)
    shutil.move(node.archive, node.folder / "gone")
    node.archive = sdk
    node.secret("00-db.json", {"DB": "x"})

    found = await replica(node, OWN="image", **{c.ENV_NODE_STORE: "", c.ENV_SECRET_FILES: "00-db.json"})

    assert found["executable"] == node.command()[0]
    assert (found["environ"]["OWN"], found["environ"]["DB"]) == ("image", "x")
    assert not any(name.startswith("NOMAD_META") for name in found["environ"])
    assert not node.store.exists()


def test_one_archive_for_the_same_sources(tmp_path: Path) -> None:
    from modalnomad.hashicorp.sdk_archive import write_sdk_archive

    for name in ("a", "b"):
        write_sdk_archive(tmp_path / name)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_old_python_is_told_so() -> None:
    """Its own syntax must reach the message: no annotations that are evaluated, nothing newer than f-strings."""
    import ast

    from modalnomad.hashicorp.sdk_archive import ENTRY

    ast.parse(ENTRY.read_text("utf-8"), feature_version=(3, 6))
    assert "from __future__ import annotations" not in ENTRY.read_text("utf-8")
