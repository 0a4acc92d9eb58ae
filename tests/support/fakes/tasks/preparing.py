"""What happens before a task's process exists, in Nomad's order: folders, artifacts, Vault, templates."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.tasks import artifacts, templates, vault
from tests.support.fakes.tasks.environment import Environment
from tests.support.fakes.tasks.events import TaskState

TELLS_MISSING: Final = 3.0
"""Seconds after which a template that waits is told."""
NAMED: Final = 3
"""Secrets such an event names."""


class Failed(Exception):
    """All its events are told. `late`: Nomad's API shows it only about four seconds later."""

    def __init__(self, *, late: bool) -> None:
        super().__init__("failed before its process")
        self.late = late


def folders(alloc: Path, task: str) -> Path:
    """Make an allocation's folders → the task's."""
    below = [alloc / "alloc" / name for name in ("data", "logs", "tmp")]
    below += [alloc / task / name for name in ("local", "secrets", "private", "tmp")]
    for each in below:
        each.mkdir(parents=True)
        each.chmod(0o777)
    return alloc / task


class Preparing:
    """One task before its start. `tell`: after each event."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        task: Mapping[str, Any],
        folder: Path,
        environment: Environment,
        state: TaskState,
        tell: Callable[[], None],
    ) -> None:
        self._session, self._task, self._folder = session, task, folder
        self._environment, self._state, self._tell = environment, state, tell

    async def artifacts(self) -> None:
        """Raises Failed."""
        wanted = self._task.get("Artifacts") or []
        if not wanted:
            return
        self._state.add("Downloading Artifacts", "Client is downloading artifacts")
        self._tell()
        for each in wanted:
            try:
                await artifacts.fetch(self._session, each, self._folder, self._environment.replace)
            except artifacts.NotFetched as error:
                text = str(error)
                self._state.add("Failed Artifact Download", text, {"download_error": text}, DownloadError=text)
                self._state.not_restarting()
                raise Failed(late=True) from error

    async def token(self, access: vault.VaultAccess, identity: str) -> str:
        """Log the task in to Vault → its token. Raises Failed."""
        block = self._task["Vault"]
        try:
            token = await vault.login(self._session, access, block.get("Role") or "", identity)
        except vault.Denied as error:
            self._state.refused(f"Vault: failed to derive vault token: {error}")
            text = f"vault: {error}"
            self._state.add("Task hook failed", text, {"message": text}, Message=text)
            self._state.not_restarting()
            raise Failed(late=False) from error
        write(self._folder / "private" / "vault_token", token, 0o600)
        if not block.get("DisableFile"):
            write(self._folder / "secrets" / "vault_token", token, 0o644)
        if block.get("Env", True):
            self._environment.variables["VAULT_TOKEN"] = token
        return token

    async def templates(self, access: vault.VaultAccess | None, token: str) -> None:
        """Render them all, when all they need is there. Raises Failed."""
        wanted = self._task.get("Templates") or []
        paths = list(dict.fromkeys(path for each in wanted for path in templates.secrets_of(each["EmbeddedTmpl"])))
        try:
            found = await self._secrets(access, token, paths) if access is not None else {}
            for each in wanted:
                self._render(each, found)
        except (templates.NotRendered, vault.Missing) as error:
            self._state.refused(f"Template failed: {error}")
            raise Failed(late=True) from error

    async def _secrets(self, access: vault.VaultAccess, token: str, paths: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        waits = [*access.retries]
        async with Tasks("templates") as tasks:
            tasks.spawn(self._tell_missing(paths, found), "missing")
            while True:
                failure = None
                for path in paths:
                    try:
                        found[path] = found.get(path) or await vault.read(self._session, access, token, path)
                    except vault.Missing as error:
                        failure = failure or error
                if failure is None:
                    return found
                if not waits:
                    raise failure
                await asyncio.sleep(waits.pop(0))

    async def _tell_missing(self, paths: Sequence[str], found: Mapping[str, Any]) -> None:
        await asyncio.sleep(TELLS_MISSING)
        names = [f"vault.read({path})" for path in sorted(set(paths) - set(found))]
        more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
        self._state.add("Template", f"Missing: {', '.join(names[:NAMED] + more)}")
        self._tell()

    def _render(self, template: Mapping[str, Any], secrets: Mapping[str, Any]) -> None:
        strict = bool(template.get("ErrMissingKey"))
        variables = self._environment.variables
        text = templates.render(template["EmbeddedTmpl"], secrets, variables, strict=strict)
        path = self._folder / self._environment.replace(template["DestPath"])
        if not path.resolve().is_relative_to(self._folder.parent.resolve()):
            raise templates.NotRendered("template destination path escapes alloc directory")
        write(path, text, int(template.get("Perms") or "0644", 8))
        if template.get("Envvars"):
            variables |= templates.variables_of(text)


def write(path: Path, text: str, mode: int) -> None:
    """Whole or not at all, with this mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.touch(mode=0o600)
    new.write_text(text, "utf-8")
    new.chmod(mode)
    os.replace(new, path)
