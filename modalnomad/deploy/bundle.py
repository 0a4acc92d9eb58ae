"""Bundles: the local source that a set of functions needs, as one archive whose root is the replica's own folder.

    script mode       file.py alone, as Modal does: other local modules join by `add_local_python_source`
    module mode       the whole top-level package
    add_local_*       under /root → the same place in the archive; elsewhere: refused (no file system of its own here)

Paths in the archive are relative to that root, which a container would call /root.
"""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from modalnomad.deploy.archive import walk, write_archive
from modalnomad.deploy.ignore import IgnoreRules
from modalnomad.deploy.image_plan import ROOT, late_mounts, next_workdir, step_mounts
from modalnomad.deploy.scratch import scratch_folder
from modalnomad.model.errors import ManifestInvalid, Problem, UserError
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Description, Function, Image, Mount, Source
from modalnomad.ports.artifacts import Artifacts

PLACEHOLDER = ".modalnomad"
"""An empty file that is the only one of a bundle without any: Nomad's client takes an archive without files for a
broken one."""
OUTSIDE = (
    "add_local_{kind} to {remote!r}: replicas on this machine have no file system of their own, only the folder that "
    "containers call /root. Choose a remote path under /root, or run the image with the docker driver"
)


async def pack(description: Description, functions: tuple[Function, ...], artifacts: Artifacts) -> Digest:
    """Make the bundle of these functions and store it. Raises ManifestInvalid, UserError, BackendRefused."""
    if problems := missing_sources(description, functions):
        raise ManifestInvalid(problems)
    with scratch_folder("modalnomad-bundle-") as folder:
        target = folder / "bundle.tar.gz"
        await asyncio.to_thread(make_bundle, description.app.source, functions, target)
        return await artifacts.put(target)


def make_bundle(source: Source, functions: Iterable[Function], target: Path) -> Path:
    """Write the archive. Raises ManifestInvalid with every problem, UserError for a file that cannot be packed."""
    functions = tuple(functions)
    collected = Collected()
    if any(function.include_source for function in functions):
        for path, local in source_files(source):
            collected.add(path, local, str(Path(source.root) / source.entry))
    folders: set[str] = set()
    for image in {f.image.model_dump_json(): f.image for f in functions if f.image is not None}.values():
        collected.add_image(image)
        if (workdir := image_workdir(image)) is not None and workdir != ".":
            folders.add(workdir)
    if collected.problems:
        raise ManifestInvalid(collected.problems)
    files = collected.files or {PLACEHOLDER: Path(os.devnull)}
    write_archive(files, frozenset(folders) - files.keys(), target)
    return target


class Collected:
    """Files on their way into an archive, and what is wrong with them."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.problems: list[Problem] = []

    def add(self, path: str, local: Path, where: str) -> None:
        """Two different files of one place are a problem."""
        known = self.files.setdefault(path, local)
        if known != local and known.read_bytes() != local.read_bytes():
            self.problems.append(Problem(where, f"{known} and {local} would both be /root/{path}"))

    def add_image(self, image: Image) -> None:
        """What its add_local_* steps name, but for files copied in before a step that runs something: those are the
        image's, and reach the replica with all else such steps leave (docs/decisions/files-of-an-image.md). Files
        copied to a place outside /root are a container's image's, or were refused before."""
        late = (mount for mount in late_mounts(image) if place(mount).is_relative_to(ROOT))
        for mount in (*late, *image.mounts):
            try:
                for path, local in mount_files(mount):
                    self.add(path, local, mount.where)
            except UserError as error:
                self.problems.append(Problem(mount.where, error.message + (f" ({error.hint})" if error.hint else "")))


def source_files(source: Source) -> Iterator[tuple[str, Path]]:
    """The program's own files. Raises UserError when they are not there."""
    root = Path(source.root)
    if source.mode == "script":
        local = root / source.entry
        if not local.is_file():
            raise UserError(f"{local} does not exist")
        yield PurePosixPath(source.entry).as_posix(), local
        return
    top = source.entry.split(".", 1)[0]
    if (root / f"{top}.py").is_file() and not (root / top).is_dir():
        yield f"{top}.py", root / f"{top}.py"
        return
    if not (root / top).is_dir():
        raise UserError(f"the package {top} does not exist in {root}")
    for path, local in walk(root / top, IgnoreRules()):
        yield f"{top}/{path}", local


def image_mounts(image: Image) -> Iterator[Mount]:
    """add_local_* steps, those with copy=True first: steps of the image, yet their files are needed here too."""
    for step in image.steps:
        yield from step_mounts(step)
    yield from image.mounts


def mount_files(mount: Mount) -> Iterator[tuple[str, Path]]:
    """Files of one mount with their paths in the archive. Raises UserError."""
    yield from files_below(inside(mount), mount)


def files_below(base: PurePosixPath, mount: Mount) -> Iterator[tuple[str, Path]]:
    """The same, where the mount's place is `base`."""
    local = Path(mount.local)
    if mount.kind == "dir" and not local.is_dir():
        raise UserError(f"{local} is not a folder" if local.exists() else f"{local} does not exist")
    if not local.exists():
        raise UserError(f"{local} does not exist")
    if local.is_dir() and mount.kind == "file":
        raise UserError(f"{local} is a folder", "use add_local_dir")
    if local.is_dir():
        patterns = mount.ignore or (("**", "!**/*.py") if mount.kind == "python" else ())
        for path, file in walk(local, IgnoreRules(patterns)):
            yield (base / path).as_posix(), file
    else:
        yield (base / local.name if mount.remote.endswith("/") else base).as_posix(), local


def inside(mount: Mount) -> PurePosixPath:
    """Where the mount's remote path lies in the archive. Raises UserError for a place outside /root."""
    remote = place(mount)
    if not remote.is_relative_to(ROOT):
        kind = "python_source" if mount.kind == "python" else mount.kind
        raise UserError(OUTSIDE.format(kind=kind, remote=mount.remote))
    return remote.relative_to(ROOT)


def place(mount: Mount) -> PurePosixPath:
    """Where containers have it, absolute."""
    remote = PurePosixPath(os.path.normpath(ROOT / mount.remote))
    if mount.kind == "python" and mount.local.endswith(".py") and remote.suffix != ".py":
        remote = remote.with_name(f"{remote.name}.py")  # a module is named without its suffix
    return remote


def image_workdir(image: Image) -> str | None:
    """The working directory its steps end with, as a path in the archive; None without one."""
    found: str | None = None
    for step in image.steps:
        if step.kind == "workdir":
            found = next_workdir(found, str(step.arguments.get("path", ".")))
    return found


def missing_sources(description: Description, functions: Iterable[Function]) -> tuple[Problem, ...]:
    """Local modules that the program imports wherever it runs and that no image takes along: replicas would not start.

    Imports that may not happen in a replica (under `if modal.is_local():`, in a function) are not counted."""
    source = description.app.source
    root = Path(source.root)
    functions = tuple(function for function in functions if function.include_source)
    if source.mode == "module" or not functions:
        return ()
    taken = [Path(mount.local) for f in functions if f.image is not None for mount in image_mounts(f.image)]
    local = [Path(path) for path in description.watched if path.endswith(".py") and Path(path).is_relative_to(root)]
    entry = root / source.entry
    imported = set().union(*(always_imported(path) for path in {entry, *local}))
    missing: dict[str, None] = {}
    for path in local:
        name = path.relative_to(root).parts[0].removesuffix(".py")
        if path != entry and name in imported and not any(path.is_relative_to(place) for place in taken):
            missing[name] = None
    return tuple(
        Problem(
            source.entry,
            f"it imports the local module {name}, which replicas would not have: only {source.entry} is taken along. "
            f'Add .add_local_python_source("{name}") to the image, or make all of it a package and name it with -m',
        )
        for name in missing
    )


def always_imported(path: Path) -> frozenset[str]:
    """Top-level names that the file imports in its outermost block; none when it cannot be read as Python."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    found = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    found += [node.module for node in body if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return frozenset(name.partition(".")[0] for name in found)


def watch_set(description: Description) -> tuple[Path, ...]:
    """Files and folders whose change makes a new revision: the source, what describe saw, everything images take in."""
    source = description.app.source
    found = {Path(path) for path in description.watched}
    if source.mode == "script":
        found.add(Path(source.root) / source.entry)
    else:
        top = source.entry.split(".", 1)[0]
        package = Path(source.root) / top
        found.add(package if package.is_dir() else package.with_suffix(".py"))
    for function in description.app.functions:
        if function.image is not None:
            found.update(Path(mount.local) for mount in image_mounts(function.image))
            found.update(Path(file) for step in function.image.steps for file in step.files)
    return tuple(sorted(found))
