"""Consul's HTTP API as far as it is used: typed, thin, every call with a time limit.

Blocking queries: https://developer.hashicorp.com/consul/api-docs/features/blocking
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote

from modalnomad.hashicorp.http import Answer, HttpClient, ServerRefused
from modalnomad.model.errors import BackendRefused, UserError

LONGEST_WAIT: Final = 25.0
"""Seconds a blocking query may wait: some releases of Consul end a connection after 30 s."""
SLACK: Final = 5.0
"""Seconds beside the wait and its jitter (a sixteenth) in which the answer must be there."""

T = TypeVar("T")

Verb = Literal[
    "set", "cas", "lock", "unlock", "get", "delete", "delete-cas", "check-index", "check-session", "check-not-exists"
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the KV."""

    key: str
    value: bytes
    index: int
    """ModifyIndex: what compare-and-set compares."""
    session: str = ""
    """Who holds its lock; empty: nobody."""


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a read found, and at which index: the next blocking query waits until there is a higher one."""

    items: tuple[T, ...]
    index: int
    filtered: bool = False
    """The token may not read all of it: some items may be missing."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a transaction: https://developer.hashicorp.com/consul/api-docs/txn"""

    verb: Verb
    key: str
    value: bytes | None = None
    index: int | None = None
    session: str | None = None

    def json(self) -> dict[str, Any]:
        """As it is sent."""
        fields: dict[str, Any] = {"Verb": self.verb, "Key": self.key}
        if self.value is not None:
            fields["Value"] = base64.b64encode(self.value).decode("ascii")
        if self.index is not None:
            fields["Index"] = self.index
        if self.session is not None:
            fields["Session"] = self.session
        return {"KV": fields}


class TxnRefused(ServerRefused):
    """Nothing of the transaction was done. `failed`: the numbers of the operations that could not be."""

    def __init__(self, message: str, hint: str | None, text: str, failed: tuple[int, ...]) -> None:
        super().__init__(message, hint, 409, text)
        self.failed = failed


class ConsulApi:
    """Calls to one agent. Each raises BackendUnreachable, ServerRefused, BackendRefused (an answer that is none of
    Consul's)."""

    def __init__(self, http: HttpClient) -> None:
        self.http = http

    @property
    def where(self) -> str:
        """`Consul at http://…`, for messages."""
        return f"{self.http.server.name} at {self.http.server.address}"

    # --- KV --------------------------------------------------------------------------------------------------

    async def get(
        self, key: str, *, index: int = 0, wait: float = LONGEST_WAIT, consistent: bool = False
    ) -> Found[Entry]:
        """One key or none. `index` > 0: as soon as its index has passed that, or after `wait` seconds."""
        return await self._read(_path(key), {}, index, wait, consistent)

    async def tree(
        self, prefix: str, *, index: int = 0, wait: float = LONGEST_WAIT, consistent: bool = False
    ) -> Found[Entry]:
        """Every key below `prefix`, sorted. Blocks as `get`."""
        return await self._read(_path(prefix), {"recurse": True}, index, wait, consistent)

    async def _read(
        self, path: str, params: dict[str, str | int | bool], index: int, wait: float, consistent: bool
    ) -> Found[Entry]:
        answer = await self._blocking(path, params, index, wait, consistent, ok=(200, 404))
        if answer.status == 404:
            # Consul says so for a key that is not there, with the index; a proxy or a wrong path says it without.
            return Found((), self._index(answer, path), _filtered(answer))
        items = self._json(answer, path)
        if not isinstance(items, list) or not items:
            raise self._odd(path, "a list of keys was expected")
        return Found(tuple(self._entry(item, path) for item in items), self._index(answer, path), _filtered(answer))

    async def put(self, key: str, value: bytes, *, acquire: str | None = None, cas: int | None = None) -> bool:
        """Create or replace. `acquire`: for this session; `cas`: only if its index is this (0: there is none). False:
        it was not done."""
        params: dict[str, str | int | bool] = {}
        if acquire is not None:
            params["acquire"] = acquire
        if cas is not None:
            params["cas"] = cas
        answer = await self.http.request("PUT", _path(key), params=params, data=value)
        return self._json(answer, _path(key)) is True

    async def delete(self, key: str) -> None:
        """Nothing happens when it is not there."""
        await self.http.request("DELETE", _path(key))

    async def txn(self, operations: Iterable[Op]) -> None:
        """All of it or nothing. Raises TxnRefused."""
        body = [operation.json() for operation in operations]
        answer = await self.http.request("PUT", "/v1/txn", data=body, ok=(200, 409))
        if answer.status == 200:
            return
        content = self._json(answer, "/v1/txn")
        errors = (content.get("Errors") if isinstance(content, dict) else None) or []
        texts = "; ".join(str(error.get("What", "")) for error in errors)
        if "Permission denied" in texts:
            raise ServerRefused(
                f"{self.where} answered PUT /v1/txn with 403: {texts}",
                f"the token comes from {self.http.server.token_setting}; `modalnomad doctor` tells its rights",
                403,
                texts,
            )
        failed = tuple(int(error.get("OpIndex", 0)) for error in errors)
        raise TxnRefused(f"{self.where} answered PUT /v1/txn with 409: {texts}", "try again", texts, failed)

    # --- sessions --------------------------------------------------------------------------------------------

    async def create_session(self, name: str, *, ttl: float, lock_delay: float, behavior: str = "delete") -> str:
        """Its id. `ttl`: seconds, at least 10 by Consul's own rule; it ends one to two of them after the last renewal.
        `behavior`: `delete` or `release` what it holds then."""
        body = {"Name": name, "TTL": f"{ttl:g}s", "LockDelay": f"{lock_delay:g}s", "Behavior": behavior}
        answer = await self.http.request("PUT", "/v1/session/create", data=body)
        content = self._json(answer, "/v1/session/create")
        if not isinstance(content, dict) or not isinstance(id := content.get("ID"), str):
            raise self._odd("/v1/session/create", "the session's ID was expected")
        return id

    async def renew_session(self, id: str, *, limit: float = 10.0) -> bool:
        """False: it has ended."""
        answer = await self.http.request("PUT", f"/v1/session/renew/{id}", ok=(200, 404), limit=limit)
        return answer.status == 200

    async def end_session(self, id: str) -> None:
        """What it holds is released or removed. Nothing happens when it has ended."""
        await self.http.request("PUT", f"/v1/session/destroy/{id}")

    # --- services --------------------------------------------------------------------------------------------

    async def service(
        self, name: str, *, index: int = 0, wait: float = LONGEST_WAIT, consistent: bool = False, passing: bool = False
    ) -> Found[dict[str, Any]]:
        """Every instance with its checks, as `/v1/health/service` gives them. Blocks as `get`."""
        path = f"/v1/health/service/{quote(name, safe='')}"
        params: dict[str, str | int | bool] = {"passing": True} if passing else {}
        answer = await self._blocking(path, params, index, wait, consistent)
        items = self._json(answer, path)
        if not isinstance(items, list):
            raise self._odd(path, "a list of services was expected")
        return Found(tuple(items), self._index(answer, path), _filtered(answer))

    async def agent(self) -> dict[str, Any]:
        """`/v1/agent/self`: the agent's configuration and version."""
        answer = await self.http.request("GET", "/v1/agent/self")
        content = self._json(answer, "/v1/agent/self")
        if not isinstance(content, dict):
            raise self._odd("/v1/agent/self", "an object was expected")
        return content

    async def leader(self) -> str:
        """Address of the servers' leader; empty: they have none."""
        answer = await self.http.request("GET", "/v1/status/leader")
        return str(self._json(answer, "/v1/status/leader"))

    async def close(self) -> None:
        """End all connections."""
        await self.http.close()

    # --- answers ---------------------------------------------------------------------------------------------

    async def _blocking(
        self,
        path: str,
        params: dict[str, str | int | bool],
        index: int,
        wait: float,
        consistent: bool,
        ok: tuple[int, ...] = (200,),
    ) -> Answer:
        if consistent:
            params = {**params, "consistent": True}
        if index <= 0:
            return await self.http.request("GET", path, params=params, ok=ok)
        wait = min(max(wait, 1.0), LONGEST_WAIT)
        params = {**params, "index": index, "wait": f"{int(wait * 1000)}ms"}
        return await self.http.request("GET", path, params=params, ok=ok, limit=wait * 17 / 16 + SLACK)

    def _index(self, answer: Answer, path: str) -> int:
        """At least 1. Raises BackendRefused."""
        try:
            index = int(answer.headers.get("X-Consul-Index", ""))
        except ValueError:
            raise self._odd(path, "the header X-Consul-Index is missing") from None
        # 0 would make the next query one that does not wait.
        return max(index, 1)

    def _json(self, answer: Answer, path: str) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise self._odd(path, "JSON was expected") from None

    def _entry(self, item: Any, path: str) -> Entry:
        try:
            return Entry(
                key=item["Key"],
                value=base64.b64decode(item["Value"] or ""),
                index=int(item["ModifyIndex"]),
                session=item.get("Session") or "",
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self._odd(path, "a list of keys was expected") from None

    def _odd(self, path: str, why: str) -> BackendRefused:
        return BackendRefused(
            f"{self.where} gave an answer to {path} that is none of Consul's: {why}",
            f"is {self.http.server.setting} the address of a Consul agent, and not of a proxy that answers itself?",
        )


def _filtered(answer: Answer) -> bool:
    return answer.headers.get("X-Consul-Results-Filtered-By-ACLs", "").lower() == "true"


def _path(key: str) -> str:
    if any(part in {".", ".."} for part in key.split("/")):
        raise UserError(f"Consul has no place for the key {key!r}", "choose another name than . and ..")
    return "/v1/kv/" + quote(key, safe="/")


def dumped(content: Any) -> bytes:
    """Compact JSON, the same for equal contents."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
