"""From an image's chain to an environment, with the real uv and the package index uv is set up for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk.store import Child, ImageStore, find_uv
from modalnomad_sdk.store import images as store_images
from modalnomad_sdk.store.uv import uv_environment

from modalnomad.deploy.image_admin import prune_images
from modalnomad.deploy.images import Images, check_images, resolve_and_build
from modalnomad.deploy.resolve import RESOLVED
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.errors import BackendRefused, ImageBuildFailed, ManifestInvalid, Problem, UserError
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Function, Image, ImageStep, Mount, Source
from modalnomad.model.revision import BuiltImage, Revision
from tests.support.images import pip_image

DPKG = Path("/var/lib/dpkg/status")


def step(kind: str, files: tuple[str, ...] = (), **arguments: Any) -> ImageStep:
    return ImageStep(kind=kind, arguments=arguments, files=files, where=f"app.py:{kind}")


def python(store: ImageStore, built: BuiltImage, code: str) -> str:
    path = store.path(built.digest)
    assert path is not None
    return said(str(path / "bin" / "python"), "-I", "-c", textwrap.dedent(code))


def said(*command: str) -> str:
    """What a command writes. It fails the test when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=uv_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """One for all of this file: most tests ask for what another one has built."""
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture
def fresh(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def lines() -> list[str]:
    return []


async def test_no_image_has_what_serves_requests(store: ImageStore, lines: list[str]) -> None:
    built = await resolve_and_build(None, store=store, report=lines.append)
    assert built.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert python(store, built, "import fastapi, httptools, multipart, uvicorn, websockets; print('ok')") == "ok"
    assert any(line.startswith("resolving packages") for line in lines)
    assert any("built in" in line for line in lines)


async def test_console_scripts_and_modules_work_where_they_were_moved_to(store: ImageStore) -> None:
    built = await resolve_and_build(None, store=store, report=print)
    path = store.path(built.digest)
    assert path is not None
    for command in ([str(path / "bin" / "uvicorn")], [str(path / "bin" / "python"), "-m", "uvicorn"]):
        assert "uvicorn" in said(*command, "--version")
    assert b".building" not in b"".join(p.read_bytes() for p in (path / "bin").iterdir() if not p.is_symlink())


async def test_the_same_image_again_starts_no_uv(store: ImageStore, lines: list[str]) -> None:
    image = pip_image("six", "itsdangerous")
    first = await resolve_and_build(image, store=store, report=lines.append)
    lines.clear()
    without_uv = ImageStore(store.root, uv=Path("/nonexistent/uv"))
    assert await resolve_and_build(image, store=without_uv, report=lines.append) == first
    assert lines == []


async def test_another_process_finds_it_without_starting_any(store: ImageStore, tmp_path: Path) -> None:
    first = await resolve_and_build(pip_image("six", "itsdangerous"), store=store, report=print)
    code = f"""
        import subprocess, sys
        from pathlib import Path
        def refuse(*a, **k): raise AssertionError("a process was started")
        subprocess.Popen.__init__ = refuse
        from modalnomad.deploy.images import resolve_and_build_here
        from modalnomad_sdk.store import ImageStore
        from tests.support.images import pip_image
        store = ImageStore(Path({str(store.root)!r}))
        print(resolve_and_build_here(pip_image("six", "itsdangerous"), store, print).digest)
    """
    assert said(sys.executable, "-c", textwrap.dedent(code)) == first.digest


async def test_the_users_pins_win(store: ImageStore) -> None:
    """FastAPI follows: the runner asks for no version of its own."""
    built = await resolve_and_build(pip_image("pydantic<2", "typing_extensions==4.12.2"), store=store, report=print)
    told = python(
        store,
        built,
        """
        import fastapi, importlib.metadata as m
        print(m.version("pydantic").split(".")[0], m.version("typing_extensions"))
        app = fastapi.FastAPI()
        @app.get("/")
        def f(x: int): return x
        """,
    )
    assert told == "1 4.12.2"


async def test_a_conflict_is_told_in_the_resolvers_words_and_leaves_nothing(fresh: ImageStore) -> None:
    with pytest.raises(ImageBuildFailed) as caught:
        await resolve_and_build(pip_image("six<1.16", "six>=1.16"), store=fresh, report=print)
    assert "six<1.16" in caught.value.output
    assert "unsatisfiable" in caught.value.output
    assert fresh.list() == ()
    assert [entry.name for entry in fresh.root.iterdir()] == ["pythons.json"]


async def test_a_conflict_with_what_serves_requests_says_so(fresh: ImageStore) -> None:
    with pytest.raises(ImageBuildFailed) as caught:
        await resolve_and_build(pip_image("uvicorn<0.1"), store=fresh, report=print)
    assert "uvicorn<0.1" in caught.value.output
    assert caught.value.hint is not None
    assert "what serves requests needs uvicorn>=" in caught.value.hint


async def test_a_package_that_does_not_exist(fresh: ImageStore) -> None:
    with pytest.raises(ImageBuildFailed) as caught:
        await resolve_and_build(pip_image("modalnomad-no-such-package-17"), store=fresh, report=print)
    assert "modalnomad-no-such-package-17" in caught.value.output


async def test_a_password_of_an_index_is_never_shown(fresh: ImageStore, lines: list[str]) -> None:
    image = pip_image("six", index_url="http://me:pa55word@127.0.0.1:9/simple")
    with pytest.raises(ImageBuildFailed) as caught:
        await resolve_and_build(image, store=fresh, report=lines.append)
    error = caught.value
    told = "\n".join([error.output, error.message, repr(error), str(error.__cause__), *lines])
    assert "127.0.0.1:9" in told
    assert "pa55word" not in told
    for path in fresh.root.rglob("*"):
        assert not path.is_file() or b"pa55word" not in path.read_bytes(), path


async def test_hashes_the_user_wrote_are_kept(fresh: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("six==1.17.0 --hash=sha256:" + "0" * 64 + "\n", "utf-8")
    image = Image(steps=(step("pip_install_from_requirements", (str(path),)),))
    with pytest.raises(ImageBuildFailed, match=r"no file of six==1\.17\.0 has one of the hashes"):
        await resolve_and_build(image, store=fresh, report=print)


async def test_packages_without_their_dependencies(store: ImageStore) -> None:
    built = await resolve_and_build(pip_image("flask", extra_options="--no-deps"), store=store, report=print)
    told = python(
        store, built, "import importlib.util as u; print(*(bool(u.find_spec(n)) for n in ('flask', 'werkzeug')))"
    )
    assert told == "True False"


async def test_a_locked_project(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.10"\ndependencies = ["six<1.17"]\n'
        '[dependency-groups]\ndev = ["rich"]\nmore = ["itsdangerous"]\n',
        "utf-8",
    )
    said(str(find_uv()), "lock", "--project", str(tmp_path), "--quiet")
    files = (str(tmp_path / "pyproject.toml"), str(tmp_path / "uv.lock"))
    image = Image(steps=(step("uv_sync", files, uv_project_dir=str(tmp_path), groups=["more"]),))
    built = await resolve_and_build(image, store=store, report=print)
    told = python(
        store,
        built,
        """
        import importlib.util as u, importlib.metadata as m
        print(m.version("six"), *(bool(u.find_spec(n)) for n in ("itsdangerous", "rich", "mine")))
        """,
    )
    assert told == "1.16.0 True False False"

    # The project says something else than its lock, and the lock is not to be taken as it is.
    (tmp_path / "pyproject.toml").write_text(
        (tmp_path / "pyproject.toml").read_text().replace("<1.17", "<1.16"), "utf-8"
    )
    strict = Image(steps=(step("uv_sync", files, uv_project_dir=str(tmp_path), not_frozen=True),))
    with pytest.raises(ImageBuildFailed, match=r"the lock of .* cannot be used"):
        await resolve_and_build(strict, store=store, report=print)


async def test_a_python_that_is_not_there_is_a_clear_word(fresh: ImageStore) -> None:
    with pytest.raises(UserError, match=r"Python 3\.77 is not installed on this machine \(installed: "):
        await resolve_and_build(Image(python_version="3.77"), store=fresh, report=print)


async def test_commands_run_with_the_images_variables_and_files(
    store: ImageStore, tmp_path: Path, lines: list[str]
) -> None:
    (tmp_path / "data.txt").write_text("of the image", "utf-8")
    image = Image(
        steps=(
            step("pip_install", packages=["six"]),
            step("env", vars={"GREETING": "hello"}),
            step("add_local_file", (str(tmp_path / "data.txt"),), remote="/root/sub/data.txt"),
            step("workdir", path="sub"),
            step(
                "run_commands", commands=["echo $GREETING $(cat data.txt)", "python -c 'import six'", "pip --version"]
            ),
        )
    )
    built = await resolve_and_build(image, store=store, report=lines.append)
    assert "hello of the image" in lines
    assert built.env == (("GREETING", "hello"),)
    assert built.workdir == "/root/sub"

    (tmp_path / "data.txt").write_text("changed", "utf-8")
    again = await resolve_and_build(image, store=store, report=lines.append)
    assert again.digest != built.digest
    assert "hello changed" in lines


@pytest.mark.skipif(not DPKG.exists(), reason="no dpkg on this machine")
async def test_debian_packages_are_checked_and_missing_ones_named(fresh: ImageStore) -> None:
    image = Image(steps=(step("apt_install", packages=["dpkg", "modalnomad-nothing", "modalnomad-neither"]),))
    with pytest.raises(ManifestInvalid) as caught:
        await resolve_and_build(image, store=fresh, report=print)
    assert [problem.path for problem in caught.value.problems] == ["app.py:apt_install"] * 2
    assert "modalnomad-nothing is not installed" in str(caught.value)
    assert "dpkg is not" not in str(caught.value)
    assert caught.value.hint == "install them: sudo apt-get install modalnomad-nothing modalnomad-neither"


async def test_two_at_once_in_one_process_build_once(fresh: ImageStore, lines: list[str]) -> None:
    one, two = await asyncio.gather(
        *(resolve_and_build(pip_image("six"), store=fresh, report=lines.append) for _ in range(2))
    )
    assert one == two
    assert sum("building image" in line and "another" not in line for line in lines) == 1


async def test_cancelling_a_build_leaves_nothing(fresh: ImageStore, tmp_path: Path) -> None:
    started = asyncio.Event()

    def told(line: str) -> None:
        if line == "started":
            started.set()

    image = Image(steps=(step("run_commands", commands=["echo started; sleep 300"]),))
    building = asyncio.ensure_future(resolve_and_build(image, store=fresh, report=told))
    await started.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert fresh.list() == ()
    assert not [entry for entry in fresh.root.iterdir() if entry.name.startswith(".building")]


async def test_problems_of_all_images_are_told_before_anything_is_built() -> None:
    outside = Mount(kind="dir", local="/src", remote="/data", where="app.py:7")
    functions = (
        Function(tag="a", image=Image(base="from_registry", where="app.py:1")),
        Function(tag="b", image=Image(base="from_registry", where="app.py:1", mounts=(outside,))),
        Function(tag="c", image=Image(steps=(step("cmd", commands=[]),))),
    )
    problems, notices = check_images(functions)
    assert [problem.path for problem in problems] == ["app.py:1", "app.py:7"]
    assert [notice.code for notice in notices] == ["no_effect"]


async def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises((BackendRefused, ImageBuildFailed), match="file"):
        await resolve_and_build(None, store=ImageStore(tmp_path / "file" / "images"), report=print)


class OneApp:
    """A discovery that knows one App, which was stopped."""

    def __init__(self, revision: Revision) -> None:
        version = AppVersion(number=1, revisions=(revision,))
        self.record = AppRecord(app="a", environment="main", serial=1, versions=(version,), stopped_at=1.0)

    async def apps(self) -> tuple[AppRecord, ...]:
        return (self.record,)

    async def problems(self) -> tuple[Problem, ...]:
        return ()


async def test_prune_keeps_what_a_deployed_app_needs_and_forgets_the_rest(fresh: ImageStore) -> None:
    source = Source(mode="script", entry="app.py", root="", module="app")
    images = Images(fresh)
    kept = await images(pip_image("six"), print)
    gone = await images(pip_image("itsdangerous"), print)
    revision = Revision.make(
        app="a", environment="main", function=Function(tag="f"), source=source, bundle=Digest("0" * 64), image=kept
    )
    discovery: Any = OneApp(revision)
    assert (await prune_images(fresh, discovery, unused_for=3600)).removed == ()
    # As long as a `serve` has use for it, its replicas may be asleep: nothing of its images goes.
    assert (await prune_images(fresh, discovery)).busy == (gone.digest,)
    images.close()
    assert (await prune_images(fresh, discovery)).removed == (gone.digest,)
    assert [image.digest for image in fresh.list()] == [kept.digest]
    assert len(list((fresh.root / RESOLVED).iterdir())) == 1


async def test_who_looks_whether_an_image_is_in_use_holds_up_no_event_loop(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever prunes has it over several steps of perhaps the same one."""
    monkeypatch.setattr(store_images, "LOOK_LIMIT", 60.0)
    built = await resolve_and_build(None, store=store, report=print)
    images, asked, hold = Images(store), threading.Event(), ImageStore.hold

    def told(*arguments: Any) -> AbstractContextManager[Path]:
        asked.set()
        return hold(*arguments)

    monkeypatch.setattr(ImageStore, "hold", told)
    async with asyncio.timeout(30):
        with store.claim(built.digest) as got:
            assert got
            given_up = asyncio.ensure_future(images(None, print))
            assert await asyncio.to_thread(asked.wait, 20)
            given_up.cancel()
            await asyncio.wait([given_up])
            waiting = asyncio.ensure_future(images(None, print))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        assert await waiting == built
    images.close()


@pytest.fixture(autouse=True)
def _no_child_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every command of these tests was run by the one place that ends what it starts."""
    running: list[str] = []
    original = Child.run

    def counted(self: Child, command: Any, **more: Any) -> str:
        running.append(str(command))
        try:
            return original(self, command, **more)
        finally:
            running.remove(str(command))

    monkeypatch.setattr(Child, "run", counted)
    yield
    assert running == []
