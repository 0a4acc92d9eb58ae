"""Interpreters of this machine: found by version, asked once what they are. None is ever downloaded."""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from modalnomad_sdk.store.errors import PythonMissing

_ASK = (
    "import json, platform, sys, sysconfig; print(json.dumps({"
    "'version': platform.python_version(), 'implementation': sys.implementation.name, "
    "'platform': sysconfig.get_platform(), 'libc': platform.libc_ver()[0], "
    "'executable': getattr(sys, '_base_executable', None) or sys.executable, "
    "'gil': not sysconfig.get_config_var('Py_GIL_DISABLED')}))"
)
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(t?)")


@dataclass(frozen=True)
class Interpreter:
    """`version` is the full one, `platform` as `linux-x86_64-glibc`; `executable` is outside virtual environments."""

    executable: str
    version: str
    implementation: str
    platform: str
    threaded: bool = False
    """A build without the GIL: `3.13t`."""

    @property
    def minor(self) -> str:
        """`3.11`, or `3.13t`."""
        return ".".join(self.version.split(".")[:2]) + ("t" if self.threaded else "")


def find_python(wanted: str | None, known: Path | None = None) -> Interpreter:
    """The interpreter for `3.12`, `3.12.4` or `3.13t`; None: the version this process runs.

    Looked for, in order: this process's own, `pythonX.Y` on PATH, pyenv's and uv's folders. `known` is a file that
    keeps what was learnt, so that a second process asks nobody. Raises PythonMissing, naming what is installed;
    ValueError when `wanted` is not a version."""
    wanted = wanted or f"{sys.version_info[0]}.{sys.version_info[1]}"
    if _VERSION.fullmatch(wanted) is None:
        raise ValueError(f"python_version={wanted!r}: a version such as '3.12' is expected")
    seen: dict[str, Interpreter] = {}
    for candidate in _candidates(wanted):
        found = describe_python(candidate, known)
        if found is None:
            continue
        if _matches(found, wanted):
            return found
        seen.setdefault(found.executable, found)
    for candidate in _all_candidates():
        found = describe_python(candidate, known)
        if found is not None:
            seen.setdefault(found.executable, found)
    installed = ", ".join(sorted({f"{i.version}{'t' if i.threaded else ''}" for i in seen.values()})) or "none"
    raise PythonMissing(
        f"Python {wanted} is not installed on this machine (installed: {installed})",
        hint=f"install Python {wanted} (modalnomad never downloads one), or ask for another with python_version=",
    )


def look_for_python(wanted: str, known: Path | None = None) -> Interpreter | None:
    """As `find_python`; None where it is not installed, without asking every other one."""
    for candidate in _candidates(wanted):
        found = describe_python(candidate, known)
        if found is not None and _matches(found, wanted):
            return found
    return None


def describe_python(executable: Path, known: Path | None = None) -> Interpreter | None:
    """What the interpreter says of itself; None when there is none or it does not run (a pyenv shim, say)."""
    try:
        real = os.path.realpath(executable)
        stat = os.stat(real)
    except OSError:
        return None
    key = f"{executable}|{real}|{stat.st_mtime_ns}|{stat.st_size}"
    memory = _remembered(known)
    if key not in memory or not os.access(memory[key].executable, os.X_OK):
        answer = _ask(str(executable))
        if answer is None:
            # Not remembered: a shim that fails today may work when its version is installed.
            return None
        memory[key] = answer
        _remember(known, memory)
    return memory[key]


def _matches(interpreter: Interpreter, wanted: str) -> bool:
    match = _VERSION.fullmatch(wanted)
    assert match is not None
    exact = f"{match[1]}.{match[2]}" + (f".{match[3]}" if match[3] else "")
    have = interpreter.version
    return bool(match[4]) == interpreter.threaded and (
        have == exact or have.startswith(exact + ("" if match[3] else "."))
    )


def _candidates(wanted: str) -> Iterator[Path]:
    """Lazily: mostly the first is the one, and it costs no look at the disk to name it."""
    yield Path(getattr(sys, "_base_executable", None) or sys.executable)
    minor = ".".join(wanted.rstrip("t").split(".")[:2]) + ("t" if wanted.endswith("t") else "")
    for folder in os.get_exec_path():
        path = Path(folder) / f"python{minor}"
        # A virtual environment on PATH is not a place to build upon: its interpreter names the one below it.
        if path.is_file() and os.access(path, os.X_OK):
            yield path
    yield from _managed(minor)


def _all_candidates() -> list[Path]:
    found = [
        Path(path) for folder in os.get_exec_path() for path in glob.glob(os.path.join(glob.escape(folder), "python3*"))
    ]
    return [p for p in found if re.fullmatch(r"python3(\.\d+t?)?", p.name)] + _managed("3.")


def _managed(minor: str) -> list[Path]:
    """Interpreters that pyenv or uv keep in folders of their own, newest first."""
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    name = minor.rstrip("t")  # `3.1` also lists 3.11: who asks compares what they say of themselves
    found = [*pyenv.glob(f"{name}*/bin/python3"), *uv.glob(f"*-{name}*/bin/python3")]
    return sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.parent.parent.name)[:3]], reverse=True)


def _ask(executable: str) -> Interpreter | None:
    try:
        done = subprocess.run(
            [executable, "-I", "-c", _ASK], capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
        told = json.loads(done.stdout)
        return Interpreter(
            executable=told["executable"],
            version=told["version"],
            implementation=told["implementation"],
            platform=f"{told['platform']}-{told['libc']}" if told["libc"] else told["platform"],
            threaded=not told["gil"],
        )
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return None


@lru_cache(maxsize=8)
def _remembered(known: Path | None) -> dict[str, Interpreter]:
    if known is None:
        return {}
    try:
        return {key: Interpreter(**value) for key, value in json.loads(known.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        # A cache: what cannot be read is learnt again.
        return {}


def _remember(known: Path | None, memory: dict[str, Interpreter]) -> None:
    if known is None:
        return
    partial = known.with_name(f"{known.name}.{os.getpid()}")
    try:
        known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_text(json.dumps({key: asdict(value) for key, value in memory.items()}), "utf-8")
        os.replace(partial, known)
    except OSError:
        # Nothing is lost but the few milliseconds of asking again.
        partial.unlink(missing_ok=True)
