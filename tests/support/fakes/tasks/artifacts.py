"""A task's artifacts: fetched, compared with their checksum, unpacked as Nomad's getter does it.

Measured on 2.0.5, and easy to be wrong about: **links in a tar become empty files**, leading slashes are dropped, modes
and times are kept, and an archive of 4096 or more entries is refused (`decompression_file_count_limit`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aiohttp

ARCHIVES: Final = (".tar.gz", ".tgz", ".tar")
ENTRIES: Final = 4096
"""An archive of so many is refused."""
LIMIT: Final = 60.0
"""Seconds for one artifact."""
CHUNK: Final = 1 << 20


class NotFetched(Exception):
    """Text as in `Failed Artifact Download`."""


async def fetch(
    session: aiohttp.ClientSession, artifact: Mapping[str, Any], task: Path, replace: Callable[[str], str]
) -> None:
    """Put one artifact where it belongs below the task's folder. Raises NotFetched."""
    source = artifact["GetterSource"]
    try:
        await _fetch(session, artifact, task, replace)
    except _Refused as error:
        text = f'failed to download artifact "{source}": getter subprocess failed: exit status 1: '
        raise NotFetched(f"{text}failed to download artifact: {error}") from error


class _Refused(Exception):
    pass


async def _fetch(
    session: aiohttp.ClientSession, artifact: Mapping[str, Any], task: Path, replace: Callable[[str], str]
) -> None:
    url, options = _options(replace(artifact["GetterSource"]), artifact.get("GetterOptions") or {})
    options = {name: replace(value) for name, value in options.items()}
    mode = artifact.get("GetterMode") or "any"
    target = task / replace(artifact.get("RelativeDest") or "local/")
    if not target.resolve().is_relative_to(task.parent.resolve()):
        raise _Refused("artifact destination path escapes alloc directory")
    name = urlsplit(url).path.rpartition("/")[2]
    suffix = next((each for each in ARCHIVES if name.endswith(each)), "")
    if "archive" in options:
        suffix = "" if options["archive"] == "false" else f".{options['archive']}"
    with tempfile.TemporaryDirectory(prefix="getter", dir=task / "tmp") as folder:
        plain = target if mode == "file" else target / name
        place = Path(folder) / "archive" if suffix else plain
        headers = {"Accept-Encoding": "identity"}
        headers |= {key: replace(value) for key, value in (artifact.get("GetterHeaders") or {}).items()}
        await _download(session, url, headers, place)
        await asyncio.to_thread(_finish, place, options.get("checksum", ""), suffix, mode, target)


def _finish(place: Path, checksum: str, suffix: str, mode: str, target: Path) -> None:
    try:
        _compare(place, checksum)
        if suffix:
            _unpack(place, target, suffix, mode)
    except _Refused:
        if not suffix:
            place.unlink()
        raise


def _options(url: str, options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """`checksum` and `archive` may stand in the query too; the server does not see them."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    ours = {name: value for name, value in query if name in {"checksum", "archive"}}
    rest = urlencode([pair for pair in query if pair[0] not in ours])
    return urlunsplit(parts._replace(query=rest)), {**ours, **options}


async def _download(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        async with session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=LIMIT)) as response:
            if response.status != 200:
                raise _Refused(f"bad response code: {response.status}")
            with place.open("wb") as file:
                async for data in response.content.iter_chunked(CHUNK):
                    file.write(data)
    except aiohttp.ClientConnectorError as error:
        raise _Refused(f'Get "{url}": dial tcp {error.host}:{error.port}: connect: connection refused') from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _Refused(f'Get "{url}": unexpected EOF') from error


def _compare(place: Path, checksum: str) -> None:
    if not checksum:
        return
    kind, _, wanted = checksum.partition(":")
    digest = hashlib.new(kind, place.read_bytes()).hexdigest()
    if digest != wanted.lower():
        raise _Refused(f"Checksums did not match for {place}.\nExpected: {wanted}\nGot: {digest}\n*{kind}.Digest")


def _unpack(place: Path, target: Path, suffix: str, mode: str) -> None:
    if mode == "file":
        raise _Refused(f"expected a single file, got multiple: {place}")
    try:
        with tarfile.open(place, "r:" if suffix == ".tar" else "r:gz") as archive:
            members = archive.getmembers()
            if len(members) >= ENTRIES:
                raise _Refused(f"tar archive contains too many files: {ENTRIES + 1} > {ENTRIES}")
            target.mkdir(parents=True, exist_ok=True)
            for member in members:
                _entry(archive, member, target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _Refused(f"Error opening a gzip reader for {place}: unexpected EOF") from error


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if ".." in member.name.split("/"):
        raise _Refused(f"entry contains '..': {member.name}")
    path = target / member.name.lstrip("/")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    data = archive.extractfile(member) if member.isreg() else None
    path.write_bytes(data.read() if data is not None else b"")
    path.chmod(member.mode & 0o777)
    os.utime(path, (member.mtime, member.mtime))
