"""The environment of an image on this node, from the pack that the deploy made: fetched, verified, built once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from modalnomad_sdk.contract import INHERITED, Exit
from modalnomad_sdk.store import ImageStore, PythonMissing, StoreError, UvMissing, definition_digest
from modalnomad_sdk.store.packs import read_pack

from .prune import prune
from .refused import Refused
from .unpack import locked, make_store

TRIES = 4
PAUSE = 0.5
"""Seconds before the second try; doubled for each further one."""
SILENCE = 30.0
"""Seconds without a byte after which a try has failed."""
CHUNK = 1 << 20
KEPT = INHERITED | {"PATH", "PYENV_ROOT", "NETRC"}
"""Variables of the agent that builds get."""
KEPT_BEGINNINGS = ("LC_", "UV_", "PIP_", "XDG_")


def make_environment(
    store: str, digest: str, *, pack: str | None, server: str | None, scratch: str | None = None
) -> str:
    """The environment's folder. Replicas that want the same one at once build it once, the others wait. `scratch`: a
    folder for what is only needed meanwhile; None: the system's own. Raises Refused."""
    images = ImageStore(Path(store) / "images")
    try:
        make_store(store)
        os.makedirs(images.root / ".packs", mode=0o700, exist_ok=True)
        waiting = f"another replica on this node makes the environment {digest[:12]}; waiting for it"
        with locked(str(images.root / ".packs" / digest), waiting):
            if (found := images.path(digest)) is not None:
                return str(found)
            if not pack or not server:
                raise _failed(
                    f"the environment {digest[:12]} is not on this node, and the job names no pack to make it"
                )
            _forget_the_agents()
            os.environ.setdefault("UV_CACHE_DIR", os.path.join(store, "uv-cache"))
            with tempfile.TemporaryDirectory(prefix="modalnomad-pack-", dir=scratch) as folder:
                fetch(f"{server}/artifacts/{pack}", pack, os.path.join(folder, "pack"))
                made = _build(images, digest, Path(folder))
        _tidy(store, digest)
        return made
    except OSError as error:
        raise _failed(f"the environment {digest[:12]} cannot be made in {store}: {error}") from error


def _forget_the_agents() -> None:
    """Packages run code when they are built, and raw_exec hands on all that the agent has: tokens of Vault and Consul,
    a cloud's keys. What a replica gets stays, and what tells uv where packages and Pythons are."""
    for name in list(os.environ):
        if name not in KEPT and not name.startswith(KEPT_BEGINNINGS):
            del os.environ[name]


def _tidy(store: str, kept: str) -> None:
    try:
        removed = prune(store, kept)
    except OSError as error:
        say(f"what nobody uses any more on this node cannot be removed: {error}")
    else:
        for name in removed:
            say(f"removed from this node, unused for a month: {name[:12]}")


def _build(images: ImageStore, digest: str, folder: Path) -> str:
    try:
        definition, inputs = read_pack(folder / "pack", folder)
        if definition_digest(definition) != digest:
            raise _failed(f"the pack is of another image than {digest[:12]}: deploy the App again")
        return str(images.build(definition, say, inputs))
    except UvMissing as error:
        hint = "install uv on this node, where the Nomad agent's PATH leads"
        raise _failed(f"{error.message}, which makes environments on nodes; {hint}") from error
    except PythonMissing as error:
        hint = (
            "install that one here, or deploy with a Python that all nodes have (Image.debian_slim(python_version=…))"
        )
        raise _failed(f"{error.message}; {hint}") from error
    except (StoreError, ValueError) as error:
        advice = getattr(error, "hint", None)
        raise _failed(f"{error}{f'; {advice}' if advice else ''}") from error


def fetch(url: str, digest: str, target: str) -> None:
    """Download it; what came is what the digest says, or nothing. Raises Refused."""
    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
            say(f"{problem}; trying again")
        try:
            if _download(url, target) == digest:
                return
            problem = f"{url} sent something else than its name says"
        except urllib.error.HTTPError as error:
            problem = f"{url} answered {error.code}"
            error.close()
            if error.code == 404:
                raise _failed(f"{problem}: it is kept no longer; deploy the App again") from None
        except OSError as error:  # URLError and time-outs are such
            problem = f"{url} does not answer: {getattr(error, 'reason', None) or error}"
        except Exception as error:  # http.client has many
            problem = f"{url} broke off: {error!r}"
    raise _failed(f"{problem}. Does a router run there, and is artifacts.url an address this node reaches?")


def _download(url: str, target: str) -> str:
    hasher = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=SILENCE) as answer, open(target, "wb") as out:
        while chunk := answer.read(CHUNK):
            hasher.update(chunk)
            out.write(chunk)
    return hasher.hexdigest()


def say(line: str) -> None:
    """A line of progress."""
    os.write(1, f"modalnomad: {line}\n".encode("utf-8", "replace"))


def _failed(message: str) -> Refused:
    return Refused(message, Exit.ENVIRONMENT_FAILED)
