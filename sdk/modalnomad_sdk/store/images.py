"""The store itself: which environments there are, building a missing one once, freeing what nobody uses.

<root>/<digest>/                 an environment: bin/python, lib/…, modalnomad-image.json
<root>/.building-<digest>-…/     being built; renamed into place when complete, never used before
<root>/.locks/<digest>           held alone by the builder, shared by users
<root>/logs/<digest>.log         everything the build wrote
<root>/pythons.json              what is known of this machine's interpreters
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from modalnomad_sdk.store import locks
from modalnomad_sdk.store.build import Builder, out_of_space, tree_size
from modalnomad_sdk.store.definition import DIGEST, check_definition, definition_digest, packages_of
from modalnomad_sdk.store.errors import BuildFailed, DiskFull, StoreError
from modalnomad_sdk.store.inputs import Inputs
from modalnomad_sdk.store.process import Child, Masker, secret_lines
from modalnomad_sdk.store.pythons import Interpreter, find_python
from modalnomad_sdk.store.uv import find_uv

MARKER = "modalnomad-image.json"
LOOK_LIMIT = 10.0
"""Seconds in which somebody who looks whether an environment is in use has long let go of it."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class StoredImage:
    """One complete environment. Times: seconds since 1970; `size`: bytes of all its files, shared ones included."""

    digest: str
    path: Path
    python: str
    packages: tuple[str, ...]
    size: int
    created: float
    last_used: float
    in_use: bool


@dataclass(frozen=True)
class Pruned:
    """`freed`: bytes given back to the device (files shared with uv's cache stay there). `busy`: kept, as in use."""

    removed: tuple[str, ...]
    busy: tuple[str, ...]
    freed: int


class ImageStore:
    """Environments under `root`, by digest. Safe for any number of processes at once; keeps nothing in memory."""

    def __init__(self, root: Path, uv: Path | None = None) -> None:
        self.root = root
        self._uv = uv

    @property
    def uv(self) -> Path:
        """The uv program. Raises UvMissing."""
        if self._uv is None:
            self._uv = find_uv()
        return self._uv

    def find_python(self, wanted: str | None) -> Interpreter:
        """As `pythons.find_python`, remembering in the store's folder."""
        return find_python(wanted, self.root / "pythons.json")

    def path(self, digest: str) -> Path | None:
        """The environment's folder, with `bin/python` that runs; None unless it is complete. Notes the use."""
        if DIGEST.fullmatch(digest) is None:
            return None
        folder = self.root / digest
        # access follows the link: an environment whose base interpreter is gone is not complete.
        if not os.access(folder / "bin" / "python", os.X_OK):
            return None
        try:
            os.utime(folder / MARKER)
        except FileNotFoundError:
            return None
        except OSError:
            # A read-only store, or another user's: usable all the same.
            return folder if (folder / MARKER).is_file() else None
        return folder

    def log(self, digest: str) -> Path:
        """Where the build's complete output is kept; may not exist."""
        return self.root / "logs" / f"{digest}.log"

    @contextmanager
    def hold(self, digest: str, cancelled: threading.Event | None = None) -> Iterator[Path]:
        """The environment's folder, safe from `prune` meanwhile. Waits for who looks whether it is in use: not for an
        event loop. Raises StoreError when it is not there, or `cancelled` is set before it is held."""
        until = time.monotonic() + LOOK_LIMIT
        while (folder := self.path(digest)) is not None and time.monotonic() < until:
            if cancelled is not None and cancelled.is_set():
                break
            with locks.shared(self._lock(digest)) as got:
                if got and self.path(digest) is not None:
                    yield folder
                    return
            time.sleep(locks.POLL)  # somebody looks whether it is in use, or is about to remove it
        raise StoreError(f"image {digest[:12]} is not in the store", hint="deploy again: it is built anew")

    def build(self, definition: Mapping[str, Any], report: Report | None = None, inputs: Inputs | None = None) -> Path:
        """The environment of the definition, built unless it is there. Two callers at once build once.

        Raises BuildFailed (tool's words in `output`), DiskFull, BuildCancelled, PythonMissing, UvMissing; whatever is
        raised, nothing half-built stays."""
        digest = definition_digest(definition)
        if (found := self.path(digest)) is not None:
            return found
        check_definition(definition)
        tell = report or _silent
        inputs = inputs or Inputs()
        try:
            self._make_folders()
            lock = self._lock(digest)

            def waiting() -> None:
                tell(f"another process is building image {digest[:12]}; waiting for it")

            def there() -> bool:
                return self.path(digest) is not None

            while True:
                # Whoever built it may hold it, and so the lock, for as long as it serves.
                with locks.locked(lock, inputs.cancelled, waiting, there) as held:
                    if (found := self.path(digest)) is not None:
                        tell(f"image {digest[:12]} was built by another process")
                        return found
                    if held:
                        return self._build(definition, digest, tell, inputs)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no space left on the device of {self.root}", str(error)) from error
            raise StoreError(f"the image store {self.root} cannot be used: {error}") from error

    def list(self) -> tuple[StoredImage, ...]:
        """Complete environments, last used first."""
        busy = self._running()
        found = []
        for folder in self._folders():
            with suppress(OSError, ValueError, KeyError):  # removed meanwhile, or not complete
                found.append(self._stored(folder, busy))
        return tuple(sorted(found, key=lambda image: image.last_used, reverse=True))

    def prune(self, kept: Collection[str] = ()) -> Pruned:
        """Remove every environment but those in `kept` and those in use, and what builds that died left behind."""
        removed: list[str] = []
        busy: list[str] = []
        freed = 0
        running = self._running()
        for folder in self._folders():
            digest = folder.name
            if digest in kept:
                continue
            with self.claim(digest) as got:
                if not got or digest in running:
                    busy.append(digest)
                    continue
                freed += self.discard(digest)
                removed.append(digest)
        self.sweep()
        return Pruned(tuple(removed), tuple(busy), freed)

    @contextmanager
    def claim(self, digest: str) -> Iterator[bool]:
        """Have it alone, so that nobody holds or builds it meanwhile; yields False when somebody does already."""
        with locks.try_locked(self._lock(digest)) as got:
            yield got

    def discard(self, digest: str) -> int:
        """Remove an environment that the caller has claimed; bytes freed. One that is gone already: 0."""
        # Renamed first: from here on nobody finds it, whatever happens while it is removed.
        trash = self.root / f".trash-{digest}-{secrets.token_hex(4)}"
        try:
            (self.root / digest).rename(trash)
        except FileNotFoundError:
            return 0
        freed = tree_size(trash)[1]
        shutil.rmtree(trash, ignore_errors=True)
        self.log(digest).unlink(missing_ok=True)
        return freed

    def sweep(self) -> None:
        """Remove what builds and removals that died left behind."""
        self._sweep()

    # --- inside ------------------------------------------------------------------------------------------------

    def _build(self, definition: Mapping[str, Any], digest: str, report: Report, inputs: Inputs) -> Path:
        self._sweep(digest)
        interpreter = self._interpreter(definition, inputs)
        final = self.root / digest
        building = self.root / f".building-{digest}-{os.getpid()}-{secrets.token_hex(4)}"
        masker = Masker([*inputs.reveal.values(), *inputs.secrets, *secret_lines(inputs.variables.values())])
        started = time.time()
        report(f"building image {digest[:12]} (Python {interpreter.version})")
        try:
            with self._open_log(digest) as log:
                child = Child(on_line=_both(log, report), masker=masker, cancelled=inputs.cancelled)
                builder = Builder(
                    folder=building,
                    final=final,
                    uv=self.uv,
                    python=interpreter.executable,
                    child=child,
                    report=_noted(log, report),
                )
                builder.fill(definition, inputs)
                size = tree_size(building)[0]
                _write_marker(building, _about(definition, digest, interpreter, size))
                if final.exists():  # its base interpreter went away
                    final.rename(self.root / f".trash-{digest}-{secrets.token_hex(4)}")
                building.rename(final)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or out_of_space(str(error)):
                raise DiskFull(f"no space left on the device of {self.root}", str(error)) from error
            raise BuildFailed(f"building image {digest[:12]} failed: {error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        report(f"image {digest[:12]} built in {time.time() - started:.1f} s, {size / 1e6:.0f} MB")
        return final

    def _interpreter(self, definition: Mapping[str, Any], inputs: Inputs) -> Interpreter:
        wanted = definition["python"] + ("t" if definition.get("threaded") else "")
        found = find_python(wanted, self.root / "pythons.json")
        if inputs.python is not None:
            found = Interpreter(
                executable=str(inputs.python),
                version=found.version,
                implementation=found.implementation,
                platform=found.platform,
                threaded=found.threaded,
            )
        if found.platform != definition["platform"]:
            raise BuildFailed(f"the image is for {definition['platform']}; this machine is {found.platform}")
        return found

    def _make_folders(self) -> None:
        for folder in (self.root, self.root / ".locks", self.root / "logs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _lock(self, digest: str) -> Path:
        if DIGEST.fullmatch(digest) is None:
            raise ValueError(f"{digest!r} is not a digest")
        (self.root / ".locks").mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.root / ".locks" / digest

    def _open_log(self, digest: str) -> TextIO:
        handle = os.open(self.log(digest), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        return os.fdopen(handle, "w", encoding="utf-8", buffering=1)

    def _folders(self) -> tuple[Path, ...]:
        try:
            return tuple(entry for entry in self.root.iterdir() if DIGEST.fullmatch(entry.name))
        except FileNotFoundError:
            return ()

    def _stored(self, folder: Path, busy: Collection[str]) -> StoredImage:
        about = json.loads((folder / MARKER).read_text("utf-8"))
        return StoredImage(
            digest=folder.name,
            path=folder,
            python=about["python"],
            packages=tuple(about["packages"]),
            size=about["size"],
            created=about["created"],
            last_used=(folder / MARKER).stat().st_mtime,
            in_use=folder.name in busy,
        )

    def _sweep(self, digest: str | None = None) -> None:
        """Remove what died half-way: of one digest (whose lock we hold), else everything nobody works on."""
        with suppress(FileNotFoundError):
            for entry in self.root.iterdir():
                kind, _, rest = entry.name.partition("-")
                if kind not in (".building", ".trash"):
                    continue
                owner = rest.split("-", 1)[0]
                if owner == digest:
                    shutil.rmtree(entry, ignore_errors=True)
                elif digest is None and DIGEST.fullmatch(owner):
                    with locks.try_locked(self._lock(owner)) as got:
                        if got:
                            shutil.rmtree(entry, ignore_errors=True)

    def _running(self) -> set[str]:
        """Digests some process runs from or holds: replicas are started as `<root>/<digest>/bin/python …`."""
        found: set[str] = set()
        prefix = os.fsencode(str(self.root.absolute())) + b"/"
        for entry in _processes():
            with suppress(OSError):
                program = (entry / "cmdline").read_bytes().split(b"\0", 1)[0]
                if program.startswith(prefix):
                    found.add(os.fsdecode(program[len(prefix) :].split(b"/", 1)[0]))
        for folder in self._folders():
            with locks.try_locked(self._lock(folder.name)) as got:
                if not got:
                    found.add(folder.name)
        return found


def _processes() -> list[Path]:
    try:
        return [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        # No /proc (macOS): only held locks tell.
        return []


def _about(definition: Mapping[str, Any], digest: str, interpreter: Interpreter, size: int) -> dict[str, Any]:
    return {
        "schema": 1,
        "digest": digest,
        "python": interpreter.version,
        "executable": interpreter.executable,
        "platform": interpreter.platform,
        "packages": packages_of(definition),
        "size": size,
        "created": time.time(),
        "definition": definition,
    }


def _write_marker(folder: Path, about: Mapping[str, Any]) -> None:
    with open(folder / MARKER, "w", encoding="utf-8") as file:
        json.dump(about, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _silent(_line: str) -> None:
    return


def _both(log: TextIO, report: Report) -> Report:
    """A line of a tool: into the log, and on if it says something."""

    def line(text: str) -> None:
        log.write(text + "\n")
        if text.strip():
            report(text)

    return line


def _noted(log: TextIO, report: Report) -> Report:
    """A line of ours: into the log with the time, and on."""

    def line(text: str) -> None:
        log.write(f"# {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")
        report(text)

    return line
