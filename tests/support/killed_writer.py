"""Processes that write to a home until they are killed, and what the home must hold then.

Run as a program, it forks a writer for each line (a seed) on standard input. A writer tells its process id, then each
operation before it begins and when it is done: what was under way is the last one that was told and not done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.model.apps import AppRecord, AppVersion, trim
from modalnomad.model.errors import BackendConflict
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import SecretRef
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import DeleteToken, PublishApp, PutToken, WithdrawApp
from tests.support.apps import app_record, digest, version

Key = tuple[str, str]
State = dict[Key, Any]
"""("app" | "secret" | "token" | "anonymous" | "artifact", name) → what is stored; what is not there is not in it."""
Operation = dict[str, Any]
"""{"do", "name", "n"}: together with what is stored it says what will be."""

KEPT = 4
NAMES = ("one", "two", "three")
DOINGS = {
    "app": ("deploy", "deploy", "deploy", "rollback", "scale", "stop", "withdraw"),
    "secret": ("replace", "replace", "delete"),
    "token": ("put", "put", "delete"),
    "anonymous": ("create",),
    "artifact": ("put",),
}


def choose(rng: random.Random) -> Operation:
    """The next one."""
    kind = rng.choices(list(DOINGS), weights=(6, 3, 3, 1, 1))[0]
    return {"kind": kind, "do": rng.choice(DOINGS[kind]), "name": rng.choice(NAMES), "n": rng.randrange(1 << 30)}


def key_of(operation: Operation) -> Key:
    """What it changes. Things named by their content are many."""
    many = operation["kind"] in {"anonymous", "artifact"}
    return operation["kind"], f"{operation['name']}{operation['n'] % 8}" if many else operation["name"]


def after(old: Any, operation: Operation) -> Any:
    """What is stored once it is done; None: nothing."""
    kind, do, name, n = (operation[part] for part in ("kind", "do", "name", "n"))
    if kind == "app":
        return _app_after(old, do, name, n)
    if kind == "secret":
        return None if do == "delete" else ({"VALUE": "v" * (n % 4000), "N": str(n)}, old[1] + 1 if old else 1)
    if kind == "token":
        return None if do == "delete" else _token(name, n)
    return True


def _app_after(old: AppRecord | None, do: str, name: str, n: int) -> AppRecord | None:
    if old is None:
        return app_record(name, _version(name, 1, n)) if do == "deploy" else None
    changed: dict[str, Any] = {"serial": old.serial + 1}
    if do == "withdraw":
        return None
    if do == "stop":
        changed["stopped_at"] = float(n)
    elif do == "scale":
        changed["overrides"] = {"f0": {"min_containers": n % 5}}
    else:
        new = _version(name, old.version + 1, n)
        if do == "rollback":
            earlier = old.versions[n % len(old.versions)]
            new = earlier.model_copy(update={"number": old.version + 1, "note": f"rollback to v{earlier.number}"})
        changed |= {"versions": trim((*old.versions, new), KEPT), "stopped_at": None, "overrides": {}}
    return AppRecord.model_validate({**old.model_dump(), **_plain(changed)})


def _plain(changed: dict[str, Any]) -> dict[str, Any]:
    if "versions" in changed:
        changed["versions"] = [each.model_dump() for each in changed["versions"]]
    return changed


def _version(name: str, number: int, n: int) -> AppVersion:
    return version(name, number, functions=4, bundle=digest(str(n)), deployed_at=float(n))


def _token(name: str, n: int) -> Token:
    return Token(id=f"wk-{name}", secret_sha256=digest(str(n)), environment="main", name="ci", created_at=float(n))


class Home:
    """One home through its ports."""

    def __init__(self, home: Path, scratch: Path) -> None:
        self.discovery = EmbeddedDiscovery(home)
        self.secrets = EmbeddedSecrets(home)
        self.artifacts = EmbeddedArtifacts(home)
        self._scratch = scratch

    async def read(self) -> State:
        """Everything. Raises for anything that cannot be read."""
        found: State = {("app", record.app): record for record in await self.discovery.apps()}
        problems = await self.discovery.problems()
        assert not problems, problems
        found |= {("token", token.id.removeprefix("wk-")): token for token in await self.discovery.tokens("main")}
        for info in await self.secrets.list("main"):
            values = await self.secrets.resolve([SecretRef(name=info.name)], "main")
            found["secret", info.name] = values, info.version
        for name in (f"{name}{number}" for name in NAMES for number in range(8)):
            if ("main", digest(name)) in self.secrets.anonymous():
                values = await self.secrets.resolve([SecretRef(anonymous=digest(name))], "main")
                assert values == {"NAME": name}
                found["anonymous", name] = True
        stored = self.artifacts.stored()
        for name in (f"{name}{number}" for name in NAMES for number in range(8)):
            if (wanted := _content_digest(name)) in stored:
                path = await self.artifacts.locate(wanted)
                assert await asyncio.to_thread(Path(path).read_bytes) == _content(name)
                found["artifact", name] = True
        return found

    async def perform(self, operation: Operation) -> None:
        """Through the ports, as commands do it."""
        kind, name = key_of(operation)
        if kind == "app":
            async with self.discovery.lock(f"deploy-main-{name}", lifetime=5):
                old = await self.discovery.app(name, "main")
                new = after(old, operation)
                if new is not None:
                    await self.discovery.publish(PublishApp(new, old.serial if old else 0))
                elif old is not None:
                    await self.discovery.publish(WithdrawApp(name, "main"))
        elif kind == "token":
            known = {token.id for token in await self.discovery.tokens("main")}
            if operation["do"] == "put":
                await self.discovery.publish(PutToken(_token(name, operation["n"])))
            elif f"wk-{name}" in known:
                await self.discovery.publish(DeleteToken(f"wk-{name}", "main"))
        elif kind == "secret":
            await self._perform_on_secret(name, operation)
        elif kind == "anonymous":
            await self.secrets.create_anonymous(digest(name), "main", {"NAME": name})
        else:
            file = self._scratch / name
            file.write_bytes(_content(name))
            await self.artifacts.put(file)

    async def _perform_on_secret(self, name: str, operation: Operation) -> None:
        if operation["do"] == "replace":
            values, _ = after(None, operation)
            try:
                await self.secrets.create(name, "main", values)
            except BackendConflict:
                await self.secrets.create(name, "main", values, replace=True)
        elif name in {info.name for info in await self.secrets.list("main")}:
            await self.secrets.delete(name, "main")


@cache
def _content(name: str) -> bytes:
    return random.Random(name).randbytes(200_000)


@cache
def _content_digest(name: str) -> Digest:
    return Digest(hashlib.sha256(_content(name)).hexdigest())


def _tell(message: dict[str, Any]) -> None:
    # One write of less than a pipe takes at once: a kill leaves no half of it.
    os.write(1, json.dumps(message).encode() + b"\n")


async def _write_until_killed(home: Home, rng: random.Random) -> None:
    while True:
        operation = choose(rng)
        _tell({"begin": operation})
        began = time.perf_counter()
        await home.perform(operation)
        _tell({"done": operation, "seconds": time.perf_counter() - began})


def main(home: Path, scratch: Path) -> None:
    """A writer for each seed on standard input."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _tell({"pid": os.getpid()})
            asyncio.run(_write_until_killed(Home(home, scratch), random.Random(line)))
        os.waitpid(child, 0)
        _tell({"ended": child})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
