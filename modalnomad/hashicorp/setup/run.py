"""All of it, server by server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace

from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.http import HttpClient
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.setup.consul import consul_todos
from modalnomad.hashicorp.setup.nomad import nomad_todos
from modalnomad.hashicorp.setup.platform import SERVERS, ServerName, Wanted, wanted
from modalnomad.hashicorp.setup.rights import Lacking
from modalnomad.hashicorp.setup.steps import UNSEEN, Step, carry_out
from modalnomad.hashicorp.setup.vault import vault_todos
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.model.errors import ModalNomadError
from modalnomad.settings import Settings


async def set_up(
    settings: Settings,
    environments: Sequence[str],
    *,
    router_job: str | None = None,
    only: Collection[ServerName] = SERVERS,
    dry: bool = False,
) -> AsyncIterator[Step]:
    """Make what is missing, and tell each step as it was done. Safe to run again, also after a failure. `router_job`:
    the namespace for routers as a job of Nomad. `dry`: only look. Vault alone: whose the
    namespaces are is looked at in Nomad all the same, if it tells. Raises UserError for a bad name of an environment or
    namespace, before anything is done."""
    needed = wanted(settings, environments, router_job)
    foreign: dict[str, str] = {}
    if "vault" in only and "nomad" not in only:
        async for step in _whose(settings, needed, foreign):
            yield step
    for server in SERVERS:
        if server not in only:
            continue
        try:
            async for step in _one(server, settings, needed, foreign, dry):
                yield step
        except ModalNomadError as error:
            # What cannot even be asked: a token file or a certificate that cannot be read.
            if server == "nomad":
                foreign.update(dict.fromkeys(needed.namespaces, UNSEEN))
            yield Step(server, "connection", "failed", error.message, error.hint or "")


async def _whose(settings: Settings, needed: Wanted, foreign: dict[str, str]) -> AsyncIterator[Step]:
    """Look whose the namespaces are that Vault gives rights to, where Nomad itself is not prepared. Told is what is
    not well; a Nomad that does not tell keeps nobody from preparing Vault alone."""
    try:
        http = HttpClient(nomad_server(settings.nomad))
    except ModalNomadError as error:
        for name in needed.namespaces:
            yield _unseen(Step("nomad", f"namespace {name}", "failed", error.message, error.hint or ""))
        return
    try:
        todos = [todo for todo in nomad_todos(http, needed) if todo.namespace]
        async for step in carry_out("nomad", todos, Lacking("nomad", http), foreign, dry=True):
            name = step.what.removeprefix("namespace ")
            if foreign.get(name) == UNSEEN:
                del foreign[name]
                yield _unseen(step)
            elif name in foreign:
                yield step
    finally:
        await http.close()


def _unseen(step: Step) -> Step:
    detail = f"whose it is was not looked at, its role in Vault is prepared all the same: {step.detail}"
    return replace(step, outcome="left", detail=detail)


async def _one(
    server: ServerName, settings: Settings, needed: Wanted, foreign: dict[str, str], dry: bool
) -> AsyncIterator[Step]:
    url_is_set, nomad_ca = bool(settings.vault.jwks_url), settings.nomad.ca_cert
    if server == "vault":
        vault = VaultClient(settings.vault)
        try:
            todos = vault_todos(vault, needed, url_is_set=url_is_set, nomad_ca=nomad_ca)
            async for step in carry_out(server, todos, Lacking(server, vault), foreign, dry=dry):
                yield step
        finally:
            await vault.close()
        return
    http = HttpClient(nomad_server(settings.nomad) if server == "nomad" else consul_server(settings.consul))
    try:
        made = (
            nomad_todos(http, needed)
            if server == "nomad"
            else consul_todos(http, needed, url_is_set=url_is_set, nomad_ca=nomad_ca)
        )
        async for step in carry_out(server, made, Lacking(server, http), foreign, dry=dry):
            yield step
    finally:
        await http.close()
