"""Artifacts in a folder or a bucket, named by their SHA-256. Nodes read them from routers (see `artifact_server`)."""

from __future__ import annotations

import asyncio
import hashlib
import html
import math
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from modalnomad.model.errors import BackendRefused, NotFound, UserError
from modalnomad.model.ids import Digest
from modalnomad.ports.artifacts import Artifacts
from modalnomad.settings import ArtifactSettings

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
SCHEMES: Final = ("s3", "gs", "az")
"""Of buckets."""
CHUNK: Final = 1 << 20
PIECE: Final = 8 << 20
"""Bytes sent at once; more than these go up in parts."""
LARGE: Final = 64 << 20
"""Bytes from which what is there already, and was put a short while ago, is not sent again."""
FRESH: Final = 1800.0
"""Seconds that count as a short while: half of the time in which pruning leaves alone what was put."""
ABANDONED: Final = 86400.0
"""Seconds after which a half-written file of the folder is nobody's any more."""
WORDS: Final = 600
"""Characters of a store's own words that an error shows."""
AGAIN: Final = "deploy the App again"
REFUSED: Final = "status code: 4"
"""Stands in what obstore says of an answer 4xx."""
CAUSE: Final = re.compile(r'(?:message|error): "([^"]+)"|(InvalidCertificate)\(\s*(\w+)')
"""In what obstore tells of an exchange that failed: the system's words, or what is wrong with a certificate."""
SHUT: Final = re.compile(r"Bucket|Container|Account|AccessKey|User")
"""In codes of answers 404 that are not about the object: NoSuchBucket, ContainerNotFound and the like."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One artifact, named as in `os.stat_result`. `st_mtime`: when it was last put, Unix time."""

    st_size: int
    st_mtime: float


def nodes_url(settings: ArtifactSettings) -> str:
    """`http[s]://host:port` at which nodes reach the artifacts. Raises UserError where nothing tells it."""
    if settings.url:
        return settings.url.rstrip("/")
    if settings.host in {"", "0.0.0.0", "::"} or settings.port == 0:
        raise UserError(
            f"artifacts.host={settings.host!r} with artifacts.port={settings.port} is no address that nodes could ask",
            "set artifacts.url (MODALNOMAD_ARTIFACTS__URL) to the one that leads from them to a router",
        )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def artifact_folder(settings: ArtifactSettings, home: Path) -> Path | None:
    """Where they lie on this machine; None: in a bucket."""
    if "://" in settings.store:
        return None
    return Path(settings.store).absolute() if settings.store else home / "artifacts-store"


class ObjectArtifacts(Artifacts):
    """Port `Artifacts` on object storage: `<home>/artifacts-store` unless the settings name another folder or a bucket.

    Each is one object, named by its digest. Nothing here is locked between processes: an object appears whole, and the
    same digest is always the same content."""

    def __init__(self, settings: ArtifactSettings, home: Path) -> None:
        """Raises UserError for a store that there is not, BackendRefused for a folder that cannot be used."""
        self._settings = settings
        self.folder = artifact_folder(settings, home)
        """As `artifact_folder`."""
        scheme = settings.store.partition("://")[0]
        if self.folder is not None:
            self.place = str(self.folder)
            self._store: ObjectStore = _local(self.folder)
            return
        self.place = settings.store
        """As errors name it."""
        if scheme not in SCHEMES:
            wanted = ", ".join(f"{known}://" for known in SCHEMES)
            raise UserError(f"artifacts.store={settings.store!r} is neither a folder nor one of {wanted}")
        with self._translated("open"):
            self._store = from_url(
                settings.store,
                # Which scheme is spoken is for the endpoint to say; the large providers' are https.
                client_options={
                    "connect_timeout": timedelta(seconds=5),
                    "timeout": timedelta(seconds=120),
                    "allow_http": True,
                },
                retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
            )

    # --- the port ---------------------------------------------------------------------------------------------

    async def put(self, file: Path) -> Digest:
        """Store a copy, atomically; the same content twice is stored once. Returns its SHA-256.

        It is written anew even when it is there, so that it counts as put now and is whole again if it was damaged;
        only large ones that were put a short while ago are believed."""
        with self._translated(f"store {file}"):
            digest = await asyncio.to_thread(_digest_of, file)
            size = (await asyncio.to_thread(file.stat)).st_size
            found = await self._found(digest) if size >= LARGE else None
            if found and found.st_size == size and time.time() - found.st_mtime < FRESH:
                return digest
            await obstore.put_async(self._store, digest, _content(file, digest, size), chunk_size=PIECE)
        return digest

    async def locate(self, digest: Digest) -> str:
        """The URL nodes read it at. Raises NotFound, BackendRefused."""
        await self.size(digest)
        return f"{nodes_url(self._settings)}/artifacts/{digest}"

    async def get(self, digest: Digest, target: Path) -> None:
        """Write a copy to `target`, whole and verified, or not at all. Raises NotFound, also for one whose content is
        no longer what its name says; BackendRefused."""
        part = target.with_name(f".part-{os.getpid()}-{secrets.token_hex(6)}")
        hasher = hashlib.sha256()
        try:
            with self._translated(f"write {target}"), part.open("xb") as out:
                try:
                    async for chunk in self.read(digest):
                        hasher.update(chunk)
                        await asyncio.to_thread(out.write, chunk)
                except FileNotFoundError as error:
                    if SHUT.search(_code(error)):
                        raise
                    raise self._unknown(digest) from error
            if hasher.hexdigest() != digest:
                raise NotFound(f"artifact {digest} in {self.place} is damaged", AGAIN)
            with self._translated(f"write {target}"):
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    async def prune(self, kept: Collection[Digest]) -> int:
        """Remove everything else; bytes freed."""
        return await asyncio.to_thread(self._prune, frozenset(kept))

    def _prune(self, kept: frozenset[Digest]) -> int:
        freed = sum(self.remove(digest) for digest in self.stored() if digest not in kept)
        self.tidy()
        return freed

    # --- for those who hand them out ----------------------------------------------------------------------------

    async def size(self, digest: Digest) -> int:
        """Bytes. Raises NotFound, BackendRefused."""
        with self._translated(f"read {digest}"):
            found = await self._found(digest)
        if found is None:
            raise self._unknown(digest)
        return found.st_size

    async def read(self, digest: Digest) -> AsyncIterator[bytes]:
        """Its content as it lies there, not verified, in pieces of about a MiB. Raises FileNotFoundError, and what the
        store raises."""
        if DIGEST.fullmatch(digest) is None:
            raise FileNotFoundError(digest)
        result = await obstore.get_async(self._store, digest)
        async for chunk in result.stream(min_chunk_size=CHUNK):
            yield bytes(chunk)

    # --- not for the event loop ------------------------------------------------------------------------------

    def stored(self) -> dict[Digest, Stored]:
        """Everything that is here. Raises BackendRefused."""
        with self._translated("list what is there"):
            listed = [meta for batch in obstore.list(self._store) for meta in batch]
        return {
            Digest(meta["path"]): Stored(meta["size"], meta["last_modified"].timestamp())
            for meta in listed
            if DIGEST.fullmatch(meta["path"])
        }

    def remove(self, digest: Digest, *, unless_put_since: float = math.inf) -> int:
        """Bytes freed; 0: gone already, or put again at that time (Unix) or later. Raises BackendRefused."""
        if DIGEST.fullmatch(digest) is None:
            return 0
        with self._translated(f"remove {digest}"), suppress(FileNotFoundError):
            meta = obstore.head(self._store, digest)
            if meta["last_modified"].timestamp() >= unless_put_since:
                return 0
            obstore.delete(self._store, digest)
            return meta["size"]
        return 0

    def tidy(self) -> None:
        """Remove what killed processes left half-written in the folder; a bucket's own rules end its unfinished
        uploads. Raises BackendRefused."""
        if self.folder is None:
            return
        with self._translated("tidy up"):
            for path in self.folder.glob("*#*"):  # so the store names what it has not renamed yet
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > ABANDONED:
                        path.unlink()

    # --- inside ------------------------------------------------------------------------------------------------

    async def _found(self, digest: Digest) -> Stored | None:
        if DIGEST.fullmatch(digest) is None:
            return None
        try:
            try:
                meta = await obstore.head_async(self._store, digest)
            except (FileNotFoundError, BaseError) as error:
                if REFUSED not in str(error):
                    raise
                # An answer to HEAD has no body: only to GET it is said why, and whether there is such a bucket at all.
                meta = (await obstore.get_async(self._store, digest)).meta
        except FileNotFoundError as error:
            if SHUT.search(_code(error)):
                raise
            return None
        return Stored(meta["size"], meta["last_modified"].timestamp())

    def _unknown(self, digest: Digest) -> NotFound:
        return NotFound(f"there is no artifact {digest} in {self.place}", AGAIN)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """What storage raises → BackendRefused, chained."""
        try:
            yield
        except _Changed as error:
            raise BackendRefused(f"{error} changed while it was stored", "try again when it is complete") from error
        except (BaseError, OSError, ValueError) as error:
            hint = None
            if self.folder is None:
                hint = "check artifacts.store, and the credentials in the environment of this process"
            raise BackendRefused(f"the artifacts in {self.place} did not {doing}: {_words(error)}", hint) from error


class _Changed(Exception):
    """Not the file it was."""


def _local(folder: Path) -> ObjectStore:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cast(ObjectStore, LocalStore(prefix=folder, mkdir=True))
    except (OSError, BaseError) as error:
        raise BackendRefused(
            f"the folder for artifacts, {folder}, cannot be used: {_words(error)}",
            "name another one with artifacts.store (MODALNOMAD_ARTIFACTS__STORE)",
        ) from error


def _digest_of(file: Path) -> Digest:
    with file.open("rb") as reader:
        return Digest(hashlib.file_digest(reader, "sha256").hexdigest())


def _content(file: Path, digest: Digest, size: int) -> bytes | Iterator[bytes]:
    """To be put at once, or in parts. Raises _Changed when it is no longer the digest's: then nothing is put at all."""
    return b"".join(_verified(file, digest)) if size <= PIECE else _verified(file, digest)


def _verified(file: Path, digest: Digest) -> Iterator[bytes]:
    """Raises _Changed instead of ending."""
    hasher = hashlib.sha256()
    with file.open("rb") as reader:
        while chunk := reader.read(CHUNK):
            hasher.update(chunk)
            yield chunk
    if hasher.hexdigest() != digest:
        raise _Changed(str(file))


def _code(error: Exception) -> str:
    """Of the answer's body; empty: it has none."""
    found = re.search(r"<Code>([^<]+)</Code>", str(error))
    return found[1] if found else ""


def _words(error: Exception) -> str:
    """The first line, and of a body its code and message, else the innermost cause. Without what follows a `?` in
    addresses, and without the rest of the body: signatures stand there."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = re.sub(r"\?\S+", "?…", re.split(r"[\n<]", text.strip(), maxsplit=1)[0]).rstrip(": ")
    if code := _code(error):
        message = re.search(r"<Message>([^<]+)</Message>", text)
        words += f": {code}" + (f": {' '.join(html.unescape(message[1]).split())}" if message else "")
    elif causes := CAUSE.findall(text):
        words += f": {' '.join(filter(None, causes[-1]))}"
    return words[:WORDS] or type(error).__name__
