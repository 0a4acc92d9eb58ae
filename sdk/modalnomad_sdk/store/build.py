"""Fills a building folder: environment, packages, files, commands, bytecode. The caller renames it into place."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modalnomad_sdk.image_files import IMAGE_FILES, LINKED_FROM
from modalnomad_sdk.store.archives import unpack
from modalnomad_sdk.store.errors import BuildFailed, DiskFull
from modalnomad_sdk.store.inputs import Inputs
from modalnomad_sdk.store.process import Child, CommandFailed
from modalnomad_sdk.store.uv import uv_environment

_RUNNER = Path(__file__).parent.parent / "runner" / "__main__.py"
_NO_SPACE = ("no space left on device", "os error 28", "errno 28", "disk quota exceeded")
_SCRIPT_LIMIT = 1024 * 1024
# What a command of an image sees of this machine: enough to find programs, certificates and proxies, nothing personal.
_COMMAND_VARIABLES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"}
)


def out_of_space(text: str) -> bool:
    """Whether a tool's words say that the device is full."""
    return any(words in text.lower() for words in _NO_SPACE)


class Builder:
    """One build. `final` is where the folder will lie; `report` gets a line per step."""

    def __init__(
        self, *, folder: Path, final: Path, uv: Path, python: str, child: Child, report: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.final = final
        self.uv = uv
        self.python = python
        self.child = child
        self.report = report

    def fill(self, definition: Mapping[str, Any], inputs: Inputs) -> None:
        """Carry out every step. Raises BuildFailed with the tool's words, DiskFull, BuildCancelled."""
        self._venv()
        ran = False
        for number, step in enumerate(definition["steps"]):
            if step["kind"] == "install":
                self._install(step, definition.get("sources", {}), inputs.reveal)
            elif step["kind"] == "files":
                self._unpack(step["archive"], inputs.archives)
            else:
                variables = self._variables(step, inputs.variables.get(number, {}))
                if step["kind"] == "call":
                    self._call(step, variables, inputs.source)
                else:
                    self._command(step, variables)
                ran = True
        if ran:
            self._settle()

    def _tool(self, command: list[str], what: str, more: Mapping[str, str] | None = None) -> None:
        with tempfile.TemporaryDirectory(prefix="modalnomad-uv-") as neutral:
            # An empty folder: uv must not pick up the configuration of a project it happens to be started in.
            try:
                self.child.run([str(self.uv), *command], cwd=Path(neutral), environment=uv_environment(more))
            except CommandFailed as error:
                raise self._failure(what, error) from error

    def _failure(self, what: str, error: CommandFailed) -> BuildFailed | DiskFull:
        if out_of_space(error.output):
            return DiskFull(f"no space left on the device of {self.final.parent} while it was {what}", error.output)
        return BuildFailed(f"{what} failed (exit status {error.status})", error.output)

    def _venv(self) -> None:
        self.report("making a virtual environment")
        self._tool(
            ["venv", "--quiet", "--relocatable", "--no-project", "--python", self.python, str(self.folder)],
            "making a virtual environment",
        )

    def _install(self, step: Mapping[str, Any], sources: Mapping[str, Any], reveal: Mapping[str, str]) -> None:
        requirements: str = step["requirements"]
        count = sum(1 for line in requirements.splitlines() if line and not line.startswith((" ", "#")))
        self.report(f"installing {count} package{'s' * (count != 1)}")
        command = ["pip", "install", "--python", str(self.folder / "bin" / "python"), "--no-deps", "--compile-bytecode"]
        command += ["--require-hashes"] if step.get("verify", True) else ["--verify-hashes"]
        command += sources.get("arguments", [])
        more = {key: _revealed(value, reveal) for key, value in sources.get("environment", {}).items()}
        more.update(step.get("environment", {}))
        handle, name = tempfile.mkstemp(prefix="modalnomad-", suffix=".txt")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(requirements)
            self._tool([*command, "-r", name], "installing packages", more)
        finally:
            os.unlink(name)

    def _unpack(self, digest: str, archives: Mapping[str, Path]) -> None:
        archive = archives.get(digest)
        if archive is None or hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
            raise BuildFailed(f"the files of the image ({digest[:12]}) are not here or were changed")
        with tarfile.open(archive) as tar:
            unpack(tar, self.folder / IMAGE_FILES)

    def _variables(self, step: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, str]:
        """What a step's command finds in its environment; what the step itself sets wins over its secrets."""
        environment = {k: v for k, v in os.environ.items() if k in _COMMAND_VARIABLES or k.startswith("LC_")}
        environment.update(step.get("environment", {}))
        environment.update(secrets)
        path = [str(self.folder / "bin"), environment.get("PATH", os.defpath), str(self.uv.parent)]
        environment.update(PATH=os.pathsep.join(path), VIRTUAL_ENV=str(self.folder), UV_PYTHON_DOWNLOADS="never")
        environment.setdefault("UV_NO_PROGRESS", "1")
        return environment

    def _workdir(self, step: Mapping[str, Any]) -> Path:
        workdir = self.folder / IMAGE_FILES / str(step.get("workdir", ""))
        workdir.mkdir(parents=True, exist_ok=True)
        return workdir

    def _command(self, step: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        command = step["command"]
        self.report(f"running {command}")
        try:
            self.child.run(["/bin/sh", "-c", command], cwd=self._workdir(step), environment=environment)
        except CommandFailed as error:
            raise self._failure(f"running {shlex.quote(command)}", error) from error

    def _call(self, step: Mapping[str, Any], environment: Mapping[str, str], source: Path | None) -> None:
        name = step["function"]
        self.report(f"running {name}()")
        workdir, root = self._workdir(step), self.folder / IMAGE_FILES
        call = {key: step[key] for key in ("source", "function", "args", "kwargs", "timeout")}
        with lent(source, root), tempfile.TemporaryDirectory(prefix="modalnomad-call-") as folder:
            file = Path(folder) / "call.json"
            file.write_text(json.dumps(call | {"root": str(root)}), "utf-8")
            command = [str(self.folder / "bin" / "python"), str(_RUNNER), "call", str(file)]
            more = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "MODAL_IS_REMOTE": "1"}
            try:
                self.child.run(command, cwd=workdir, environment={**environment, **more})
            except CommandFailed as error:
                raise self._failure(f"running {name}()", error) from error

    def _settle(self) -> None:
        """After commands: scripts they made point at the building folder, and files they added have no bytecode."""
        here, there = os.fsencode(self.folder), os.fsencode(self.final)
        for script in (self.folder / "bin").iterdir():
            if script.is_symlink() or not script.is_file() or script.stat().st_size > _SCRIPT_LIMIT:
                continue
            text = script.read_bytes()
            if text.startswith(b"#!") and here in text:
                mode = script.stat().st_mode
                # A new file: the old one may be a hard link into uv's cache.
                script.unlink()
                script.write_bytes(text.replace(here, there))
                script.chmod(mode)
        self._protect()
        self.report("compiling bytecode")
        python = str(self.folder / "bin" / "python")
        library = str(self.folder / "lib")
        with contextlib.suppress(CommandFailed):
            # Status 1: some file does not compile (templates, tests of other versions), which is nobody's error.
            self.child.run(
                [python, "-I", "-m", "compileall", "-q", library], cwd=self.folder, environment=uv_environment()
            )

    def _protect(self) -> None:
        """The image's own files are read-only: replicas share the large ones (see docs/decisions)."""
        for parent, _folders, names in os.walk(self.folder / IMAGE_FILES):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink() and path.is_file() and path.stat().st_size >= LINKED_FROM:
                    path.chmod(path.stat().st_mode & ~0o222)


@contextlib.contextmanager
def lent(archive: Path | None, root: Path) -> Iterator[None]:
    """The archive's files lie in `root` meanwhile, where there are none of the image's own; then they are gone."""
    if archive is None:
        raise BuildFailed("the program whose function the image runs is not here")
    added: list[Path] = []
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                target = root / member.name
                if not os.path.lexists(target):
                    added.append(target)
                    unpack(tar, root, [member])
        yield
    finally:
        for path in reversed(added):
            with contextlib.suppress(FileNotFoundError, OSError):
                # A folder that the function put something in stays.
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _revealed(value: str, reveal: Mapping[str, str]) -> str:
    for masked, real in reveal.items():
        value = value.replace(masked, real)
    return value


def tree_size(folder: Path) -> tuple[int, int]:
    """Bytes of all files below, and of those that removing the folder would free (not shared with uv's cache)."""
    total = freed = 0
    for parent, _folders, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            total += stat.st_size
            if stat.st_nlink == 1:
                freed += stat.st_size
    return total, freed
