"""From a started task to the replica's first instruction.

environment on this node? ── no ──▶ fetch its pack, build it
         │
unpacked SDK there? ── no ──▶ unpack it, begin again with its compiled modules
         │
variables, secrets, image's files, working directory ──▶ exec
"""

from __future__ import annotations

import errno
import os
import sys

from modalnomad_sdk import contract as c

from . import variables
from .refused import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

MARKER = "modalnomad-image.json"
"""Of a complete environment: store/images.py."""
ENTRY = os.path.join("modalnomad_sdk", "runner", "__main__.py")
HOME = "/root"
"""Where programs expect the replica's own files; Nomad puts its source elsewhere."""
HEX = frozenset("0123456789abcdef")


def main(arguments: Sequence[str], here: str) -> int:
    """`here`: the archive, or the folder, that this was started from. The exit code where nothing is started."""
    environ = {_text(name): _text(value) for name, value in os.environb.items()}
    try:
        if list(arguments) == ["launch"]:
            _launch(environ, here)
        if list(arguments) == ["prewarm"]:
            return _prewarm(environ, here)
        raise Refused("usage: launch | prewarm, in a task of Nomad")
    except Refused as refused:
        _say(2, str(refused))
        return refused.code


def _launch(environ: Mapping[str, str], here: str) -> NoReturn:
    variables.check_dispatch(environ)
    store = environ.get(c.ENV_NODE_STORE)
    if not store:
        _say(1, variables.first_line(environ))
        _in_container(environ, here)
    sdk = _sdk(environ, store, here, "launch")
    _say(1, variables.first_line(environ))
    image = _image(environ, store)
    _compile(sdk, image)
    bundle = _bundle(environ)
    workdir = variables.working_folder(environ.get(c.ENV_IMAGE_WORKDIR), bundle)
    made = variables.on_node(
        environ,
        image=image,
        image_env=_image_env(environ.get(c.ENV_IMAGE_ENV)),
        secrets=_secrets(environ),
        bundle=bundle,
        workdir=workdir,
    )
    try:
        _lay_out(image, bundle, workdir)
        os.chdir(workdir or bundle)
    except OSError as error:
        raise Refused(f"the replica's folder cannot be made: {error}", c.Exit.ENVIRONMENT_FAILED) from error
    _become([os.path.join(image, "bin", "python"), os.path.join(sdk, ENTRY)], made)


def _prewarm(environ: Mapping[str, str], here: str) -> int:
    store = environ.get(c.ENV_NODE_STORE)
    if not store:
        raise Refused(f"{c.ENV_NODE_STORE} is missing: there is nothing to prepare in a container")
    sdk = _sdk(environ, store, here, "prewarm")
    image = _image(environ, store)
    _compile(sdk, image)
    _say(1, f"the environment {os.path.basename(image)[:12]} is ready on this node")
    return c.Exit.OK


def _in_container(environ: Mapping[str, str], here: str) -> NoReturn:
    bundle = _bundle(environ)
    workdir = os.getcwd() if environ.get(c.ENV_IMAGE_WORKDIR) else None
    if here == c.CONTAINER_SDK:
        _join(bundle, HOME)
        _join(HOME, bundle)
    made = variables.in_container(environ, secrets=_secrets(environ), bundle=bundle, workdir=workdir)
    _become([sys.executable, os.path.join(here, ENTRY)], made)


def _join(there: str, here: str) -> None:
    """What lies in `there` is found in `here` too, unless that has something of its own there."""
    try:
        for name in os.listdir(there):
            source, link = os.path.join(there, name), os.path.join(here, name)
            if not os.path.lexists(link):
                os.symlink(source, link)
            elif not (os.path.islink(source) or os.path.islink(link)) and os.path.isdir(source) and os.path.isdir(link):
                _join(source, link)
    except OSError as error:
        _say(2, f"files of {there} are not found in {here}: {error}")


# --- what lies on the node --------------------------------------------------------------------------------------


def _sdk(environ: Mapping[str, str], store: str, here: str, command: str) -> str:
    """The folder of the unpacked SDK. Begins again when this is not it: compiled modules load quicker."""
    digest = _digest(environ, c.ENV_SDK)
    folder = os.path.join(store, "sdk", digest)
    if os.path.isdir(folder):
        _note_use(folder)
        return folder
    _unpack(store, digest, here)
    return _begin_again(here, command)


def _begin_again(here: str, command: str) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-I", "-S", here, command])


def _unpack(store: str, digest: str, here: str) -> None:
    from .unpack import unpack_sdk

    try:
        unpack_sdk(here, store, digest)
    except OSError as error:
        raise Refused(
            f"the runner cannot be unpacked into {store}: {error}. nomad.node_store is a folder this task may write",
            c.Exit.ENVIRONMENT_FAILED,
        ) from error


def _image(environ: Mapping[str, str], store: str) -> str:
    """The folder of the environment, made if it is not there."""
    digest = _digest(environ, c.ENV_IMAGE)
    folder = os.path.join(store, "images", digest)
    # As ImageStore.path: access follows the link, so that one whose base interpreter is gone is made anew.
    if os.access(os.path.join(folder, "bin", "python"), os.X_OK) and _note_use(os.path.join(folder, MARKER)):
        return folder
    from .build import make_environment

    return make_environment(
        store,
        digest,
        pack=environ.get(c.ENV_PACK),
        server=environ.get(c.ENV_ARTIFACTS),
        scratch=environ.get("NOMAD_TASK_DIR"),
    )


def _compile(sdk: str, image: str) -> None:
    """Of the SDK's modules, for the environment's Python, once: also where replicas may not write there."""
    note = os.path.join(sdk, f".compiled-{os.path.basename(image)}")
    if os.path.exists(note):
        return
    python = os.path.join(image, "bin", "python")
    command = [python, "-I", "-S", "-m", "compileall", "-q", os.path.join(sdk, "modalnomad_sdk")]
    try:
        os.waitpid(os.posix_spawn(python, command, {}), 0)
        os.close(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        _say(2, f"the runner could not be compiled ({error}): each start takes a little longer")


def _note_use(path: str) -> bool:
    """False: it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        return os.path.exists(path)  # another user's: usable all the same
    return True


# --- what this replica gets -------------------------------------------------------------------------------------


def _bundle(environ: Mapping[str, str]) -> str:
    bundle = environ.get(c.ENV_BUNDLE) or os.path.join(environ.get("NOMAD_TASK_DIR", ""), "root")
    if not bundle.startswith("/"):
        raise Refused(f"{c.ENV_BUNDLE} is {bundle!r}, and an absolute folder is wanted")
    return bundle


def _secrets(environ: Mapping[str, str]) -> dict[str, str]:
    names = environ.get(c.ENV_SECRET_FILES)
    if not names:
        return {}
    from .secret_files import read_secrets

    return read_secrets(environ.get("NOMAD_SECRETS_DIR", "/secrets"), names)


def _image_env(encoded: str | None) -> dict[str, str]:
    if not encoded or encoded == "W10":  # an empty list
        return {}
    import binascii
    import json

    try:
        text = binascii.a2b_base64(encoded.replace("-", "+").replace("_", "/") + "=" * (-len(encoded) % 4))
        return {str(name): str(value) for name, value in json.loads(text.decode("utf-8", "surrogatepass"))}
    except (ValueError, TypeError):
        raise Refused(f"{c.ENV_IMAGE_ENV} is not base64url of [[name, value], …]") from None


def _lay_out(image: str, bundle: str, workdir: str | None) -> None:
    """The image's files in the replica's own folder, and the directory it works in."""
    os.makedirs(bundle, mode=0o700, exist_ok=True)
    files = os.path.join(image, "root")
    if os.path.isdir(files):
        from pathlib import Path

        from modalnomad_sdk.image_files import lay_image_files

        lay_image_files(Path(files), Path(bundle))
    if workdir is not None:
        os.makedirs(workdir, exist_ok=True)


def _become(command: list[str], made: Mapping[str, str]) -> NoReturn:
    try:
        # As bytes: what a locale makes of texts must not change a secret.
        environment = {_bytes(name): _bytes(value) for name, value in made.items()}
        os.execve(command[0], command, environment)
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "a variable that no process can have"
        if isinstance(error, OSError) and error.errno == errno.E2BIG:
            problem = "a variable of its secrets or its image is longer than the system takes (128 KiB), or all are"
        raise Refused(f"{command[0]} cannot be started: {problem}", c.Exit.ENVIRONMENT_FAILED) from None


def _digest(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if len(value) != 64 or not HEX.issuperset(value):
        raise Refused(f"{name} is {value!r}, and a SHA-256 is wanted")
    return value


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _say(stream: int, line: str) -> None:
    os.write(stream, f"modalnomad: {line}\n".encode("utf-8", "replace"))
