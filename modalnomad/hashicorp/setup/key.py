"""The platform key is replaced, and the one before it forgotten: only when nothing that is served needs that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Final

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.http import HttpClient
from modalnomad.hashicorp.key_use import key_use
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.nomad.server import nomad_server
from modalnomad.hashicorp.setup.rights import Lacking
from modalnomad.hashicorp.setup.steps import Done, Step, Todo, carry_out, change
from modalnomad.hashicorp.vault.client import VaultClient
from modalnomad.hashicorp.vault.platform_key import PATH, forget_previous, read_keys, rotate_key
from modalnomad.model.errors import BackendRefused, ModalNomadError
from modalnomad.settings import Settings

DEPLOY_ALL: Final = "deploy every App again; `modalnomad doctor` names those that still need the previous key"


async def change_key(settings: Settings, *, forget: bool, dry: bool = False) -> AsyncIterator[Step]:
    """A new key beside the present one, or (`forget`) only the present one from now on; told as one step. It fails, and
    says what to do, while something needs the key that would go."""
    what = f"platform key {settings.vault.mount}/{PATH}"
    async with AsyncExitStack() as stack:
        try:
            vault = VaultClient(settings.vault)
            stack.push_async_callback(vault.close)
            nomad = HttpClient(nomad_server(settings.nomad))
            stack.push_async_callback(nomad.close)
            consul = HttpClient(consul_server(settings.consul))
            stack.push_async_callback(consul.close)
        except ModalNomadError as error:  # a token file or a certificate that cannot be read
            yield Step("vault", what, "failed", error.message, error.hint or "")
            return

        async def do(dry: bool) -> Done:
            keys = await read_keys(vault)
            if keys is None:
                raise BackendRefused("there is none", "modalnomad setup makes it")
            if keys.previous is None and forget:
                return Done("there", "no previous one is kept")
            if keys.previous is not None:
                use = await key_use(NomadApi(nomad), ConsulApi(consul), settings.consul.prefix, keys.mark)
                if str(use):
                    raise BackendRefused(f"the previous one is still needed: {use}", use.cure)
            if forget:
                return await change(dry, partial(forget_previous, vault, keys), "the previous one is forgotten")
            done = await change(dry, partial(rotate_key, vault, keys), "a new one; the one before it still holds")
            return replace(done, fix=DEPLOY_ALL)

        async for step in carry_out("vault", [Todo(what, do)], Lacking("vault", vault), {}, dry=dry):
            yield step
