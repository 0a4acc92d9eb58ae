"""What is said over the control socket, and where it is.

One connection is one client: a WebSocket with one JSON object a message. The server begins with `{"hello": PROTOCOL,
"version": …, "pid": …}`, then

    client ─▶ {"id": 1, "call": "status", "arguments": {…}}       {"cancel": 1}
    server ─▶ {"id": 1, "result": …}  |  {"id": 1, "error": {…}}  |  {"id": 1, "progress": …} (any number, before)
    server ─▶ {"stopping": true}      nothing is answered any more
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from modalnomad.embedded.runs import SOCKET_PATH_LIMIT
from modalnomad.embedded.store import FOLDER_MODE, make_folder, translated
from modalnomad.model import errors
from modalnomad.model.errors import (
    BackendError,
    BackendRefused,
    ImageBuildFailed,
    ManifestInvalid,
    ModalNomadError,
    Problem,
    UserCodeFailed,
)

PROTOCOL: Final = 1
PATH: Final = "/control"
FOLDER: Final = "control"
NAME: Final = "up.sock"
PREFIX: Final = "modalnomad-"
MESSAGE_LIMIT: Final = 16 << 20
"""Bytes of one message."""
STOPPING: Final = 410
"""HTTP status for those who come while it stops."""
HEARTBEAT: Final = 30.0
"""Seconds between two looks whether the other side is still there."""


# --- errors ----------------------------------------------------------------------------------------------------


def error_to_record(error: ModalNomadError) -> dict[str, Any]:
    """As JSON."""
    record: dict[str, Any] = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, UserCodeFailed | ImageBuildFailed):
        record["output"] = error.output
    if isinstance(error, ManifestInvalid):
        record["problems"] = [[problem.path, problem.message] for problem in error.problems]
    return record


def error_from_record(record: Any) -> ModalNomadError:
    """The same class again; of a kind that is not known here: BackendError."""
    if not isinstance(record, dict):
        return BackendError("up answered with an error that cannot be read")
    kind = getattr(errors, str(record.get("type")), None)
    message, hint = str(record.get("message")), record.get("hint")
    if not (isinstance(kind, type) and issubclass(kind, ModalNomadError)):
        return BackendError(message, hint)
    if kind is ManifestInvalid:
        return ManifestInvalid([Problem(str(path), str(text)) for path, text in record.get("problems", ())], hint)
    if issubclass(kind, UserCodeFailed | ImageBuildFailed):
        return kind(message, str(record.get("output", "")), hint)
    return kind(message, hint)


# --- the socket ------------------------------------------------------------------------------------------------


def find_socket(home: Path) -> Path | None:
    """Where a running `up` of this home listens; None: there never was one, or it ended in order. Raises BackendRefused
    for a place that others could have made."""
    with translated(f"look for the control socket of {home}"):
        folder = _folder(home)
        if folder is None:
            return None
        try:
            _check_owner(folder, home)
        except FileNotFoundError:
            return None  # it ended this very moment
        path = folder / NAME
        return path if path.exists() else None


def make_place(home: Path) -> Path:
    """A path for the socket, in a folder that only its owner can enter; what a killed `up` left there is gone. It lies
    in the home, or where paths are short when that would be too long. Raises BackendRefused."""
    inside = home / FOLDER
    with translated(f"make a place for the control socket in {home}"):
        free_place(home)
        if len(os.fsencode(inside / NAME)) <= SOCKET_PATH_LIMIT:
            make_folder(inside)
            inside.chmod(FOLDER_MODE)
            return inside / NAME
        for base in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp"):
            if base and os.path.isdir(base) and os.access(base, os.W_OK):
                elsewhere = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
                inside.symlink_to(elsewhere)
                return elsewhere / NAME
    raise BackendRefused(
        f"{inside / NAME} is too long for a socket, and neither XDG_RUNTIME_DIR nor /tmp can be written",
        "choose a home with a shorter path with MODALNOMAD_HOME",
    )


def free_place(home: Path) -> None:
    """Remove the socket, and the folder that lies elsewhere. Nothing there is fine. Raises OSError, BackendRefused."""
    inside, folder = home / FOLDER, _folder(home)
    if folder is not None:
        _check_owner(folder, home)
        (folder / NAME).unlink(missing_ok=True)
    if inside.is_symlink():
        inside.unlink()
        if folder is not None and folder.name.startswith(PREFIX):
            with suppress(OSError):
                folder.rmdir()


def _folder(home: Path) -> Path | None:
    inside = home / FOLDER
    folder = Path(os.readlink(inside)) if inside.is_symlink() else inside
    return folder if folder.is_dir() else None


def _check_owner(folder: Path, home: Path) -> None:
    """A folder in /tmp may be anybody's, once ours is gone."""
    status = folder.lstat()
    ours = status.st_uid == home.stat().st_uid and stat.S_ISDIR(status.st_mode)
    if not ours or (status.st_mode & 0o077 and folder != home / FOLDER):
        raise BackendRefused(
            f"{folder}, where the control socket lies, is not only for the owner of {home}",
            f"remove {home / FOLDER} and start modalnomad up again",
        )


def check_arguments(arguments: Any) -> Mapping[str, Any]:
    """Of a call. Raises BackendRefused."""
    if not isinstance(arguments, dict):
        raise BackendRefused("a call's arguments are a JSON object")
    return arguments
