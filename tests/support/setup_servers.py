"""What `setup` needs of Nomad, in memory: namespaces, ACL policies, and the keys that sign identities."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.support.fakes.identity import Signer


class SetUpNomad:
    """`address`. `acl`: policies can be written. `broken`: paths that answer 500."""

    def __init__(self, *, acl: bool = True) -> None:
        self.acl = acl
        self.signer = Signer("RS256")
        self.namespaces: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.broken: set[str] = set()
        self.writes = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/.well-known/jwks.json", self._keys)
        for path, table in (("/v1/namespace/{name}", self.namespaces), ("/v1/acl/policy/{name}", self.policies)):
            app.router.add_route("*", path, self._stored(table))
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _keys(self, request: web.Request) -> web.Response:
        return web.json_response(self.signer.jwks())

    def _stored(self, table: dict[str, dict[str, Any]]) -> Any:
        async def answer(request: web.Request) -> web.Response:
            if request.path in self.broken:
                return web.Response(status=500, text="No cluster leader")
            if table is self.policies and not self.acl:
                return web.Response(status=400, text="ACL support disabled")
            name = request.match_info["name"]
            if request.method == "PUT":
                table[name] = await request.json()
                self.writes += 1
                return web.Response()
            if name not in table:
                return web.Response(status=404, text=f"{name} not found")
            return web.json_response(table[name])

        return answer
