"""The same tree gives the same archive, byte for byte, however it came to be; any change gives another."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modalnomad.deploy.bundle import make_bundle
from modalnomad.model.manifest import Function, Image, Mount, Source

part = st.text("abcdefgXYZ-_.é", min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..", ".git", ".venv", "app.py") and not name.endswith(".pyc")
)
trees = st.dictionaries(
    st.lists(part, min_size=1, max_size=3).map("/".join), st.binary(max_size=64), max_size=8
).filter(lambda files: not any(f"{a}/" in f"{b}/" and a != b for a in files for b in files))


def written(folder: Path, files: list[tuple[str, bytes]], age: int) -> Path:
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (age, age))
    (folder / "app.py").write_text("x = 1", "utf-8")
    return folder


def bundled(folder: Path, target: Path) -> bytes:
    source = Source(mode="script", entry="app.py", root=str(folder), module="app")
    image = Image(mounts=(Mount(kind="dir", local=str(folder), remote="/root"),))
    return make_bundle(source, [Function(tag="f", image=image)], target).read_bytes()


@given(files=trees, data=st.data())
def test_order_and_time_of_creation_do_not_matter(files: dict[str, bytes], data: st.DataObject) -> None:
    other = data.draw(st.permutations(list(files.items())))
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "one").mkdir()
        (base / "two").mkdir()
        one = bundled(written(base / "one", list(files.items()), 1_000_000_000), base / "1.tar.gz")
        two = bundled(written(base / "two", other, 1_700_000_000), base / "2.tar.gz")
        assert one == two

        with tarfile.open(base / "1.tar.gz") as tar:
            packed = {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}  # type: ignore[union-attr]
        assert packed == {**files, "app.py": b"x = 1"}

        if files:
            changed = data.draw(st.sampled_from(sorted(files)))
            (base / "two" / changed).write_bytes(files[changed] + b"!")
            assert bundled(base / "two", base / "3.tar.gz") != one
