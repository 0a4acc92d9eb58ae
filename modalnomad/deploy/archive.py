"""Deterministic archives: the same files give the same bytes, in whatever order and whenever they were made."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from modalnomad.deploy.ignore import IgnoreRules
from modalnomad.model.errors import BackendRefused, UserError
from modalnomad.model.ids import Digest

MTIME = 315532800
"""1980-01-01: the earliest time that zip files know, for programs that pack what they find."""
SIZE_LIMIT = 2 * 1024**3
"""Bytes one archive may hold before compression."""


def write_archive(files: Mapping[str, Path], folders: frozenset[str], target: Path) -> Digest:
    """Pack `files` (path in the archive → local file) and empty `folders`; SHA-256 of the .tar.gz.

    Modes are 755 or 644 after the owner's x bit. Raises UserError naming a file that cannot be packed."""
    _check_size(files)
    every = {*files, *folders}
    for name in [*every]:
        every.update(str(parent) for parent in PurePosixPath(name).parents if str(parent) != ".")
    try:
        with (
            open(target, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in sorted(every):
                if (local := files.get(name)) is not None:
                    _add_file(tar, name, local)
                else:
                    tar.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BackendRefused(
                f"no space left on the device of {target.parent} while the bundle was packed", "free some space there"
            ) from error
        raise
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    with open(target, "rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    entry.mtime = MTIME
    return entry


def _add_file(tar: tarfile.TarFile, name: str, local: Path) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(local)!r}: the file's name is not UTF-8", "rename it, or ignore it") from None
    try:
        file = open(local, "rb")  # noqa: SIM115 - closed below; only opening it is a question of permission
    except OSError as error:
        raise UserError(f"{local} cannot be read: {error.strerror}", "make it readable, or ignore it") from error
    with file:
        status = os.fstat(file.fileno())
        entry = _entry(name, tarfile.REGTYPE, 0o755 if status.st_mode & stat.S_IXUSR else 0o644)
        entry.size = status.st_size
        try:
            tar.addfile(entry, file)
        except OSError as error:
            if error.errno is not None:
                raise
            raise UserError(f"{local} became shorter while it was packed", "try again when it is complete") from error


def _check_size(files: Mapping[str, Path]) -> None:
    sizes: dict[str, int] = {}
    for name, local in files.items():
        try:
            sizes[name] = local.stat().st_size
        except OSError as error:
            raise UserError(f"{local} cannot be read: {error.strerror}", "make it readable, or ignore it") from error
    if (total := sum(sizes.values())) > SIZE_LIMIT:
        largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:3]
        listed = ", ".join(f"{name} ({sizes[name] / 1e6:.0f} MB)" for name in largest)
        raise UserError(
            f"the local files add up to {total / 1e9:.1f} GB; at most {SIZE_LIMIT / 1e9:.1f} GB are taken "
            f"(largest: {listed})",
            "leave large files out with ignore=[…] and let the program fetch them when it starts",
        )


def walk(folder: Path, rules: IgnoreRules) -> Iterator[tuple[str, Path]]:
    """Files below, as (relative path with `/`, local path); links are followed, what is ignored is not looked at.

    Raises UserError for a folder that cannot be listed, a link that leads nowhere or round in a circle, and anything
    that is neither file nor folder."""
    yield from _walk(folder, "", rules, (os.path.realpath(folder),))


def _walk(folder: Path, prefix: str, rules: IgnoreRules, above: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}", "make it readable, or ignore it") from error
    for name in names:
        local = folder / name
        path = f"{prefix}{name}"
        ignored = rules.ignored(path)
        if ignored and (rules.prunes or not local.is_dir()):
            continue
        try:
            mode = local.stat().st_mode
        except FileNotFoundError:
            if not local.is_symlink():
                continue  # removed while we looked: an editor's temporary file
            raise UserError(f"{local} is a link that leads nowhere", "mend it, or ignore it") from None
        except OSError as error:
            raise UserError(f"{local} cannot be read: {error.strerror}", "make it readable, or ignore it") from error
        if stat.S_ISDIR(mode):
            real = os.path.realpath(local)
            if real in above:
                raise UserError(f"{local} is a link to a folder it lies in ({real})", "remove it, or ignore it")
            yield from _walk(local, f"{path}/", rules, (*above, real))
        elif ignored:
            continue
        elif stat.S_ISREG(mode):
            yield path, local
        else:
            raise UserError(f"{local} is neither a file nor a folder", "remove it, or ignore it")
