"""A recipe as a Dockerfile for every engine's own builder: no syntax of BuildKit, which the engine's API lacks
(https://docs.docker.com/reference/dockerfile/).

Values of secrets come in a build argument that builders keep out of the image and its history: one of the predefined
names (ftp_proxy), which nothing else reads here, holding a piece of shell that sets what one step may see.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modalnomad_sdk import contract

from modalnomad.model.errors import UserError
from modalnomad.model.recipe import (
    INDEX,
    Call,
    Files,
    Folder,
    Install,
    Instruction,
    Lines,
    OwnBase,
    Packages,
    Recipe,
    Run,
    Variables,
)

OURS: Final = ".modalnomad"
"""Folder of the context that is not the user's."""
HOME: Final = "/opt/modalnomad"
ENVIRONMENT: Final = f"{HOME}/env"
PYTHON: Final = f"{ENVIRONMENT}/bin/python"
SOURCE: Final = f"{HOME}/source"
INSTALL: Final = f"{HOME}/install"
CALLS: Final = f"{HOME}/calls"
CARRIER: Final = "ftp_proxy"
CARRIER_LIMIT: Final = 100 * 1024
"""Bytes of all secret values of one image; a variable of Linux holds 128 KiB."""
LINE_LIMIT: Final = 65_000
"""Bytes; builders read lines of less than 64 KiB."""
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_SETUP: Final = f"""\
# What replicas run in: an environment on top of this image's Python. $1: that Python; empty: it is looked for.
set -e
python=${{1:-$(command -v python3 || command -v python || true)}}
[ -z "$1" ] || python=$(readlink -f "$1")
if [ -z "$python" ]; then
    echo 'this image has no Python: add one, with add_python="3.12"' >&2
    exit 1
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {{
    echo "the Python of this image is $("$python" -V 2>&1), and replicas need 3.10 or newer: use add_python=" >&2
    exit 1
}}
"$python" -m venv --system-site-packages --without-pip {ENVIRONMENT}
{PYTHON} -m pip --version >/dev/null 2>&1 || {PYTHON} -m ensurepip --default-pip || {{
    echo 'this image has no pip: install it (apt: python3-pip), or use add_python=' >&2
    exit 1
}}
for name in pip pip3; do
    printf '#!/bin/sh\\nexec {PYTHON} -m pip "$@"\\n' >{ENVIRONMENT}/bin/$name
    chmod 755 {ENVIRONMENT}/bin/$name
done
printf '#!/bin/sh\\nexec {PYTHON} "$@"\\n' >{contract.CONTAINER_PYTHON}
chmod 755 {contract.CONTAINER_PYTHON}
"""
_UNPACKED_PYTHON: Final = f"{HOME}/pythons"
CARRIED: Final = f'eval "${CARRIER}"; unset {CARRIER} FTP_PROXY; shift; exec "$@"'
"""`$1` says which step it is."""
SHIELD: Final = 5
"""Words in front of a command that is shielded with it."""


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """Text and context. `images`: what it starts from, which must be there. `uncounted`: paths of the context that do
    not make it another image."""

    text: str
    files: Mapping[str, bytes | Path]
    images: tuple[str, ...]
    uncounted: frozenset[str] = frozenset()
    arguments: Mapping[str, str] = field(default_factory=dict)


def make_dockerfile(recipe: Recipe, *, base: str, python_base: str, sdk: Mapping[str, bytes]) -> Dockerfile:
    """`base`: what it starts from. `python_base`: an image with pip, to fetch a Python for `base` with. `sdk`: the
    runner's files, by their path in CONTAINER_SDK. Raises UserError for what cannot be written down."""
    files: dict[str, bytes | Path] = {f"{OURS}/setup.sh": _SETUP.encode()}
    files |= {f"{OURS}/sdk/{path}": content for path, content in sdk.items()}
    lines = [*_base(recipe, base, python_base)]
    wrapped = bool(recipe.variables)
    for number, instruction in enumerate(recipe.instructions):
        lines += _instruction(instruction, number, files, wrapped)
    files |= recipe.context
    source = {f"{OURS}/source/{path}": local for path, local in recipe.source.items()}
    if clash := [path for path in recipe.context if path.split("/")[0] == OURS]:
        raise UserError(f"{clash[0]} cannot be in the context of an image: that name is the platform's")
    images = (base,) if not _added(recipe) else (base, python_base)
    return Dockerfile("\n".join(lines) + "\n", files | source, images, frozenset(source), dict(recipe.arguments))


def carrier(variables: Mapping[int, Mapping[str, str]]) -> str:
    """The value of the build argument CARRIER; empty: there is nothing to carry. Raises UserError."""
    cases = []
    for number, values in variables.items():
        if bad := [name for name in values if not NAME.fullmatch(name)]:
            raise UserError(f"{bad[0]!r} in a secret of an image's build step is no name of a variable")
        sets = "; ".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())
        cases.append(f"{_key(number)}) {sets or ':'} ;;")
    if not cases:
        return ""
    text = f"case $1 in {' '.join(cases)} esac"
    if len(text.encode()) > CARRIER_LIMIT:
        raise UserError(
            "the secrets of an image's build steps are too large together: "
            f"{len(text.encode()) // 1024} KiB of {CARRIER_LIMIT // 1024}",
            "name fewer of them in secrets=",
        )
    return text


def _quoted(value: str) -> str:
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'


def _key(number: int | None) -> str:
    return "index" if number == INDEX else str(number)


def _added(recipe: Recipe) -> bool:
    """A Python is brought into a base that is not the settings' own."""
    return recipe.base is not None and recipe.python is not None


def _base(recipe: Recipe, base: str, python_base: str) -> Iterator[str]:
    if _added(recipe):
        # A Python that runs on any Linux with glibc; the settings' own is bound to its distribution.
        yield f"FROM {python_base} AS modalnomad-python"
        yield f"ENV UV_PYTHON_INSTALL_DIR={_UNPACKED_PYTHON} UV_PYTHON_BIN_DIR=/tmp PIP_BREAK_SYSTEM_PACKAGES=1"
        fetch = f"pip install --no-cache-dir --quiet uv && uv python install {recipe.python}"
        place = f'ln -s "$(uv python find --managed-python {recipe.python})" {_UNPACKED_PYTHON}/chosen'
        yield _run(["/bin/sh", "-c", f"{fetch} && {place}"])
    yield f"FROM {base}"
    if recipe.base is not None:
        yield "USER root"
    yield from recipe.setup
    if _added(recipe):
        yield f"COPY --from=modalnomad-python {_UNPACKED_PYTHON} {_UNPACKED_PYTHON}"
    yield f"COPY {OURS}/setup.sh {HOME}/setup.sh"
    yield f"COPY {OURS}/sdk {contract.CONTAINER_SDK}"
    chosen = [f"{_UNPACKED_PYTHON}/chosen"] if _added(recipe) else []
    yield _run(["/bin/sh", f"{HOME}/setup.sh", *chosen])
    yield f"ENV PATH={ENVIRONMENT}/bin:$PATH VIRTUAL_ENV={ENVIRONMENT}"
    yield _run([PYTHON, "-I", "-m", "compileall", "-q", contract.CONTAINER_SDK])


def _instruction(step: Instruction, number: int, files: dict[str, bytes | Path], wrapped: bool) -> list[str]:
    """`number`: its place in the recipe, for names of files."""
    match step:
        case Lines():
            return list(step.lines)
        case Variables():
            return [f"ENV {name}={_quoted(value)}" for name, value in step.values]
        case Folder():
            return ["WORKDIR " + re.sub(r"([\\$])", r"\\\1", step.path)]
        case Packages():
            names = " ".join(shlex.quote(name) for name in step.names)
            command = (
                "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
                f"{names} && rm -rf /var/lib/apt/lists/*"
            )
            return [_run(["/bin/sh", "-c", command], wrapped)]
        case Install():
            return _install(step, number, files, wrapped)
        case Run():
            return [_run([*_env(step.environment), *step.shell, step.command], wrapped, step.number)]
        case Call():
            return _call(step, number, files, wrapped)
        case Files():
            for path, local in step.files.items():
                files[f"{OURS}/files/{number}/{path.lstrip('/')}"] = local
            return [f"COPY {OURS}/files/{number}/ /"] if step.files else []


def _install(step: Install, number: int, files: dict[str, bytes | Path], wrapped: bool) -> list[str]:
    place = f"{OURS}/install/{number}"
    files[f"{place}/requirements.txt"] = step.requirements.encode()
    command = [PYTHON, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--root-user-action=ignore", "--progress-bar=off"]
    if not step.dependencies:
        command.append("--no-deps")
    if step.verify:
        command.append("--require-hashes")
    command += [*step.options, "-r", f"{INSTALL}/{number}/requirements.txt"]
    if step.constraints:
        files[f"{place}/constraints.txt"] = step.constraints.encode()
        command += ["-c", f"{INSTALL}/{number}/constraints.txt"]
    return [f"COPY {place} {INSTALL}/{number}", _run(command, wrapped, INDEX)]


def _call(step: Call, number: int, files: dict[str, bytes | Path], wrapped: bool) -> list[str]:
    """As `store/build.py` of the SDK does it, with the program's files in a folder of their own."""
    name = f"{number}.json"
    described = json.dumps({**step.call, "root": SOURCE}, sort_keys=True)
    files[f"{OURS}/calls/{name}"] = described.encode()
    runner = f"{contract.CONTAINER_SDK}/modalnomad_sdk/runner/__main__.py"
    fixed = (("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1"), ("MODAL_IS_REMOTE", "1"))
    command = [*_env((*step.environment, *fixed)), PYTHON, runner, "call", f"{CALLS}/{name}"]
    return [
        f"COPY {OURS}/source {SOURCE}",
        f"COPY {OURS}/calls/{name} {CALLS}/{name}",
        _run(command, wrapped, step.number),
    ]


def _env(environment: tuple[tuple[str, str], ...]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in environment)] if environment else []


def _run(command: Sequence[str], wrapped: bool = False, number: int | None = None) -> str:
    """Without a shell of the builder's, so that line breaks and quotes are what they are. Where secrets are carried,
    each command is shielded from those of others."""
    if wrapped:
        command = ["/bin/sh", "-c", CARRIED, "modalnomad", _key(number), *command]
    line = f"RUN {json.dumps(list(command), ensure_ascii=False)}"
    if len(line.encode()) > LINE_LIMIT:
        raise UserError(
            f"a command of {len(line) // 1024} KiB is longer than a Dockerfile's line may be: {line[:80]}…",
            "put it in a script, and the script into the image with add_local_file(copy=True)",
        )
    return line


def base_of(recipe: Recipe) -> str | None:
    """The name of the image it starts from, where the recipe says one."""
    return recipe.base if isinstance(recipe.base, str) else None


def own_base(recipe: Recipe) -> OwnBase | None:
    """The Dockerfile it starts from, where the recipe has one."""
    return recipe.base if isinstance(recipe.base, OwnBase) else None
