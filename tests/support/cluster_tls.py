"""TLS of a whole cluster for tests: Nomad and Consul have certificates of one authority and ask their clients for some,
OpenBao has an authority of its own. Vault shows no certificate to Nomad, so Nomad's keys have a listener of their own.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.certificates import Authority
from tests.support.nomad_calls import Calls

NOMAD_NAME = "server.global.nomad"
CONSUL_NAME = "server.dc1.consul"


class Secured:
    """Files are in `folder`. `mutual`: clients of Nomad and Consul have to show certificates. `clients`: what the agent
    of the fake node trusts and shows; see `trust_vault`."""

    def __init__(self, folder: Path, *, mutual: bool = True) -> None:
        self.mutual = mutual
        self.authority = Authority(folder)
        self.own = self.authority.issue("client")
        self.clients: ssl.SSLContext = self.authority.client(self.own)

    def listener(self, name: str) -> ssl.SSLContext:
        """Of a server of this name."""
        return self.authority.issue(name).listener(self.authority if self.mutual else None)

    def trust_vault(self, ca_cert: Path) -> None:
        """Which signs for itself."""
        self.clients.load_verify_locations(ca_cert)

    def consul_stanza(self, address: str) -> dict[str, Any]:
        """Of a Nomad agent."""
        files = {"ca_file": self.authority.cert, "cert_file": self.own.cert, "key_file": self.own.key}
        return {"address": address.removeprefix("https://"), "ssl": True} | {k: str(v) for k, v in files.items()}

    def variables(self, ca_of_vault: Path) -> dict[str, str]:
        """Those that the servers' own commands know."""
        ca, cert, key = str(self.authority.cert), str(self.own.cert), str(self.own.key)
        found = {"VAULT_CACERT": str(ca_of_vault), "VAULT_TLS_SERVER_NAME": "localhost"}
        for server, name in (("NOMAD", NOMAD_NAME), ("CONSUL", CONSUL_NAME)):
            files = {"CACERT": ca, "TLS_SERVER_NAME": name}
            files |= {"CLIENT_CERT": cert, "CLIENT_KEY": key} if self.mutual else {}
            found |= {f"{server}_{field}": value for field, value in files.items()}
        return found

    @asynccontextmanager
    async def keys(self, nomad: str) -> AsyncIterator[str]:
        """Nomad's public keys for who shows no certificate → their URL."""

        async def answer(request: web.Request) -> web.Response:
            async with Calls(nomad, tls=self.clients) as calls:
                return web.json_response(await calls.get("/.well-known/jwks.json"))

        app = web.Application()
        app.router.add_get("/.well-known/jwks.json", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        context = self.authority.issue("keys").listener()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        try:
            yield f"https://127.0.0.1:{runner.addresses[0][1]}/.well-known/jwks.json"
        finally:
            await runner.cleanup()
