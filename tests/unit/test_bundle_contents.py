"""What a bundle holds, and the clear words for what it cannot hold."""

from __future__ import annotations

import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest

from modalnomad.deploy import archive
from modalnomad.deploy.bundle import make_bundle, missing_sources, watch_set
from modalnomad.model.errors import ManifestInvalid, UserError
from modalnomad.model.manifest import Description, Function, Image, ImageStep, Manifest, Mount, Source


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def script(folder: Path) -> Source:
    return Source(mode="script", entry="app.py", root=str(folder), module="app")


def names(source: Source, target: Path, *functions: Function) -> dict[str, str | None]:
    make_bundle(source, functions or (Function(tag="f"),), target)
    with tarfile.open(target) as tar:
        return {m.name: (f.read().decode() if (f := tar.extractfile(m)) else None) for m in tar.getmembers()}


def with_mounts(*mounts: Mount, steps: tuple[ImageStep, ...] = (), **more: Any) -> Function:
    return Function(tag="f", where="app.py:3", image=Image(mounts=mounts, steps=steps), **more)


def test_script_mode_takes_the_file_alone(tmp_path: Path) -> None:
    tree(tmp_path / "src", {"app.py": "x = 1", "helper.py": "y = 2", "data.txt": "z"})
    assert names(script(tmp_path / "src"), tmp_path / "b.tar.gz") == {"app.py": "x = 1"}


def test_module_mode_takes_the_whole_top_level_package(tmp_path: Path) -> None:
    tree(
        tmp_path / "src",
        {
            "pkg/__init__.py": "",
            "pkg/inner/mod.py": "m",
            "pkg/page.html": "<p>",
            "pkg/__pycache__/mod.cpython-311.pyc": "c",
            "other/x.py": "o",
            "beside.py": "b",
        },
    )
    source = Source(mode="module", entry="pkg.inner.mod", root=str(tmp_path / "src"), module="pkg.inner.mod")
    assert names(source, tmp_path / "b.tar.gz") == {
        "pkg": None,
        "pkg/__init__.py": "",
        "pkg/inner": None,
        "pkg/inner/mod.py": "m",
        "pkg/page.html": "<p>",
    }


def test_local_files_folders_and_python_source_land_under_the_root(tmp_path: Path) -> None:
    src = tree(
        tmp_path / "src", {"app.py": "", "one.py": "1", "lib/a.py": "a", "lib/a.txt": "t", "d/x": "x", "d/y": "y"}
    )
    function = with_mounts(
        Mount(kind="python", local=str(src / "one.py"), remote="/root/one"),
        Mount(kind="python", local=str(src / "lib"), remote="/root/lib"),
        Mount(kind="dir", local=str(src / "d"), remote="/root/deep/er", ignore=("y",)),
        Mount(kind="file", local=str(src / "d" / "y"), remote="/root/./copied/"),
        steps=(ImageStep(kind="workdir", arguments={"path": "/root/work"}),),
    )
    found = names(script(src), tmp_path / "b.tar.gz", function)
    assert {name for name, text in found.items() if text is not None} == {
        *("app.py", "one.py", "lib/a.py", "deep/er/x", "copied/y")
    }
    assert found["work"] is None


def test_files_copied_into_the_image_are_in_the_bundle_too(tmp_path: Path) -> None:
    src = tree(tmp_path / "src", {"app.py": "", "data.txt": "d"})
    copied = ImageStep(kind="add_local_file", arguments={"remote": "/root/data.txt"}, files=(str(src / "data.txt"),))
    assert names(script(src), tmp_path / "b", with_mounts(steps=(copied,)))["data.txt"] == "d"


def test_without_source(tmp_path: Path) -> None:
    src = tree(tmp_path / "src", {"app.py": ""})
    assert names(script(src), tmp_path / "b", Function(tag="f", include_source=False)) == {".modalnomad": ""}


def test_all_problems_at_once_with_their_places(tmp_path: Path) -> None:
    src = tree(tmp_path / "src", {"app.py": "", "a": "1", "b": "2"})
    function = with_mounts(
        Mount(kind="file", local=str(src / "a"), remote="/data/a", where="app.py:1"),
        Mount(kind="dir", local=str(src / "nowhere"), remote="/root/n", where="app.py:2"),
        Mount(kind="file", local=str(src / "a"), remote="/root/same", where="app.py:3"),
        Mount(kind="file", local=str(src / "b"), remote="/root/same", where="app.py:4"),
        Mount(kind="file", local=str(src / "a"), remote="/root/../etc/passwd", where="app.py:5"),
    )
    with pytest.raises(ManifestInvalid) as caught:
        make_bundle(script(src), [function], tmp_path / "b")
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert sorted(problems) == ["app.py:1", "app.py:2", "app.py:4", "app.py:5"]
    assert "'/data/a'" in problems["app.py:1"]
    assert "under /root" in problems["app.py:1"]
    assert "docker driver" in problems["app.py:1"]
    assert "does not exist" in problems["app.py:2"]
    assert "would both be /root/same" in problems["app.py:4"]
    assert not (tmp_path / "b").exists()


def test_links_are_followed_and_bad_ones_named(tmp_path: Path) -> None:
    src = tree(tmp_path / "src", {"app.py": "", "d/real.txt": "r"})
    (src / "d" / "link.txt").symlink_to("real.txt")
    mount = Mount(kind="dir", local=str(src / "d"), remote="/root/d")
    assert names(script(src), tmp_path / "b", with_mounts(mount))["d/link.txt"] == "r"

    (src / "d" / "round").symlink_to(src / "d")
    with pytest.raises(ManifestInvalid, match="link to a folder it lies in"):
        make_bundle(script(src), [with_mounts(mount)], tmp_path / "b")
    (src / "d" / "round").unlink()
    (src / "d" / "gone").symlink_to("nothing")
    with pytest.raises(ManifestInvalid, match="leads nowhere"):
        make_bundle(script(src), [with_mounts(mount)], tmp_path / "b")
    allowed = mount.model_copy(update={"ignore": ("gone",)})
    assert "d/gone" not in names(script(src), tmp_path / "b", with_mounts(allowed))


def test_what_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tree(tmp_path / "src", {"app.py": "", "d/a": "1"})
    monkeypatch.chdir(src / "d")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(ManifestInvalid, match="neither a file nor a folder"):
            make_bundle(
                script(src), [with_mounts(Mount(kind="dir", local=str(src / "d"), remote="/root/d"))], tmp_path / "b"
            )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    src = tree(tmp_path / "src", {"app.py": ""})
    (src / "app.py").chmod(0)
    with pytest.raises(UserError, match=r"app\.py cannot be read: Permission denied"):
        make_bundle(script(src), [Function(tag="f")], tmp_path / "b")


def test_too_much_is_refused_naming_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SIZE_LIMIT", 10)
    src = tree(tmp_path / "src", {"app.py": "x" * 11})
    with pytest.raises(UserError, match=r"largest: app\.py"):
        make_bundle(script(src), [Function(tag="f")], tmp_path / "b")


def test_modes_owners_and_times_are_fixed(tmp_path: Path) -> None:
    src = tree(tmp_path / "src", {"app.py": "", "d/run.sh": "", "d/plain": ""})
    (src / "d" / "run.sh").chmod(0o700)
    (src / "d" / "plain").chmod(0o600)
    mount = Mount(kind="dir", local=str(src / "d"), remote="/root/d")
    make_bundle(script(src), [with_mounts(mount)], tmp_path / "b")
    with tarfile.open(tmp_path / "b") as tar:
        members = tar.getmembers()
    modes = {"app.py": "0o644", "d": "0o755", "d/plain": "0o644", "d/run.sh": "0o755"}
    assert {m.name: oct(m.mode) for m in members} == modes
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", archive.MTIME)}


def described(src: Path, *functions: Function, watched: tuple[str, ...]) -> Description:
    app = Manifest(name="a", source=script(src), functions=functions)
    return Description(contract=1, sdk_version="0", python="3.11", app=app, watched=watched)


PROGRAM = """
import modal, helper
from lib.x import y
if modal.is_local():
    import only_here
def f():
    import later
"""


def test_local_imports_that_replicas_would_miss(tmp_path: Path) -> None:
    modules = {f"{name}.py": "" for name in ("helper", "only_here", "later", "deep")}
    src = tree(tmp_path / "src", {"app.py": PROGRAM, "lib/__init__.py": "import deep", "lib/x.py": "", **modules})
    watched = tuple(str(path) for path in sorted(src.rglob("*.py")))
    bare = Function(tag="bare", where="app.py:9")
    lib = with_mounts(Mount(kind="python", local=str(src / "lib"), remote="/root/lib"))
    description = described(src, bare, watched=watched)

    told = [str(problem) for problem in missing_sources(description, [bare])]
    assert [text.split(", which")[0] for text in told] == [
        f"app.py: it imports the local module {name}" for name in ("deep", "helper", "lib")
    ]
    assert 'add_local_python_source("helper")' in told[1]
    # All functions of an App share one bundle: what one image takes along is there for all.
    assert len(missing_sources(description, [bare, lib])) == 2
    assert missing_sources(description, [Function(tag="g", include_source=False)]) == ()


def test_everything_a_new_revision_could_come_from_is_watched(tmp_path: Path) -> None:
    src = tree(tmp_path / "src", {"app.py": "", "d/x": "", "requirements.txt": ""})
    function = with_mounts(
        Mount(kind="dir", local=str(src / "d"), remote="/root/d"),
        steps=(ImageStep(kind="pip_install_from_requirements", files=(str(src / "requirements.txt"),)),),
    )
    assert watch_set(described(src, function, watched=(str(src / "seen.py"),))) == tuple(
        src / name for name in ("app.py", "d", "requirements.txt", "seen.py")
    )
