"""What `doctor` looks at: each function one look at the system, changing nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from modalnomad_sdk.store.errors import StoreError
from modalnomad_sdk.store.pythons import look_for_python
from modalnomad_sdk.store.uv import find_uv, uv_environment

from modalnomad.embedded.checks.home import HomeFacts
from modalnomad.embedded.home import FORMAT, KIND, MARKER
from modalnomad.embedded.network import TUNNELS
from modalnomad.embedded.runs import SOCKET_NAME_LENGTH
from modalnomad.embedded.secrets import FORMAT as SECRET_FORMAT
from modalnomad.embedded.secrets import KIND as SECRET
from modalnomad.embedded.store import read_record
from modalnomad.kit.port_holder import port_holder
from modalnomad.model.errors import ModalNomadError

PYTHONS: Final = ("3.10", "3.11", "3.12", "3.13", "3.14")
COUNT_LIMIT: Final = 1.0
"""Seconds the files of a home are counted for."""
PROGRAM_LIMIT: Final = 20.0
SIZED: Final = ("images", "artifacts", "bundles", "logs", "run")
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
NO_LIMIT: Final = resource.RLIM_INFINITY

_FORBIDDING: Final = (
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces = 0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone = 0"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns = 1",
    ),
)


def home_facts(home: Path) -> HomeFacts:
    """Of the folder, or of where it would be made."""
    try:
        status = home.stat()
    except FileNotFoundError:
        parent = next(path for path in home.parents if path.exists())
        return HomeFacts(home, False, writable=os.access(parent, os.W_OK | os.X_OK))
    except OSError as error:
        return HomeFacts(home, True, refusal=f"{home} cannot be looked at: {error.strerror}")
    refusal = ""
    try:
        if home.is_dir():
            read_record(home / MARKER, KIND, FORMAT)
    except ModalNomadError as error:
        refusal = error.message
    return HomeFacts(
        home,
        True,
        folder=home.is_dir(),
        owner=status.st_uid,
        user=os.geteuid(),
        mode=status.st_mode & 0o777,
        writable=os.access(home, os.R_OK | os.W_OK | os.X_OK),
        refusal=refusal,
    )


def space(home: Path) -> tuple[int, int | None]:
    """Bytes and files that may still be written by us."""
    there = home if home.exists() else next(path for path in home.parents if path.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None


def sizes(home: Path) -> tuple[dict[str, int], bool]:
    """Bytes by kind, and whether all could be counted in time."""
    deadline = time.monotonic() + COUNT_LIMIT
    found: dict[str, int] = {}
    for kind in SIZED:
        total = 0
        for size in _files(str(home / kind)):
            total += size
            if time.monotonic() > deadline:
                return found | {kind: total}, False
        found[kind] = total
    return found, True


def _files(folder: str) -> Iterator[int]:
    """Allocated bytes of each file."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            else:
                with suppress(OSError):
                    yield entry.stat(follow_symlinks=False).st_blocks * 512


def pythons(home: Path) -> tuple[list[str], list[str]]:
    """Versions that images can have, and those of the usual ones that they cannot."""
    found, missing = [], []
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        # What the home knows of interpreters spares asking them; what is learnt here is forgotten again.
        known = Path(folder) / "pythons.json"
        with suppress(OSError):
            known.write_bytes((home / "images" / known.name).read_bytes())
        for wanted in PYTHONS:
            if (there := look_for_python(wanted, known)) is not None:
                found.append(there.version)
            else:
                missing.append(wanted)
    return found, missing


def uv() -> tuple[str | None, str, str, bool]:
    """As `check_uv` takes it."""
    try:
        program = str(find_uv())
        version, cache = (_said(program, *words) for words in (("--version",), ("cache", "dir")))
    except StoreError as error:
        return None, error.message, "", False
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error), "", False
    folder = Path(cache)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return version.split(" (")[0], "", cache, os.access(there, os.W_OK)


def _said(*command: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PROGRAM_LIMIT,
        check=True,
        stdin=subprocess.DEVNULL,
        env=uv_environment(),
    )
    return done.stdout.strip()


def forbidding() -> str:
    """The system's setting that keeps namespaces from users; empty: none that we know."""
    for path, value, name in _FORBIDDING:
        with suppress(OSError):
            if Path(path).read_text("ascii").strip() == value:
                return name
    return ""


def pasta() -> tuple[bool, bool]:
    """Is it installed, and may it use its device?"""
    return shutil.which("pasta") is not None, os.access(TUNNELS, os.R_OK | os.W_OK)


def pid_namespaces() -> bool:
    """Tried in a process of its own, as replicas do it."""
    if sys.platform != "linux":
        return False
    probe = (
        "import ctypes, sys\n"
        "unshare = ctypes.CDLL(None).unshare\n"
        f"sys.exit(0 if unshare({CLONE_NEWPID}) == 0 or unshare({CLONE_NEWUSER | CLONE_NEWPID}) == 0 else 1)\n"
    )
    nothing = subprocess.DEVNULL
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", probe],
        timeout=PROGRAM_LIMIT,
        check=False,
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        env={},
    )
    return done.returncode == 0


def open_files() -> tuple[int | None, int | None]:
    """Soft and hard limit; None: none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (None if soft == NO_LIMIT else soft), (None if hard == NO_LIMIT else hard)


def socket_path(home: Path) -> tuple[int, str | None]:
    """Length of a replica's socket path, and the folder that is taken when that is too long."""
    length = len(os.fsencode(home / "run" / "01234567" / "sockets")) + SOCKET_NAME_LENGTH
    for base in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp"):
        if base and os.path.isdir(base) and os.access(base, os.W_OK):
            return length, base
    return length, None


def port_state(host: str, port: int) -> str:
    """`free`, `taken`, or why it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return f"{host} is no address: {error.strerror}"
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            return "taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return "free"


def holder(port: int) -> str:
    """The process that listens on a TCP port, as far as we may see: `process 12 (nginx)`."""
    found = port_holder(port)
    return f"process {found[1]} ({found[0]})" if found is not None else ""


def newest_record(home: Path) -> float:
    """When the youngest record was written, Unix time; 0: there is none."""
    return max((path.stat().st_mtime for path in (home / "discovery").rglob("*.json")), default=0.0)


def damaged_secrets(home: Path) -> list[str]:
    """Those that cannot be read, without a word of what is in them."""
    found = []
    for path in sorted((home / "secrets").rglob("*.json")):
        try:
            read_record(path, SECRET, SECRET_FORMAT)
        except ModalNomadError as error:
            found.append(error.message)
    return found
