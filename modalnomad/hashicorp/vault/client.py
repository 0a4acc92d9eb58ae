"""Calls to Vault or OpenBao: hvac on a few threads of its own, with time limits, and errors as `hashicorp/http.py`
tells them. No value and no token stands in any message.

Statuses: https://developer.hashicorp.com/vault/api-docs#http-status-codes
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import hvac
import requests
import requests.adapters
from hvac.adapters import RawAdapter
from hvac.exceptions import VaultError

from modalnomad.hashicorp.access import Token, address_of, token_setting_of
from modalnomad.hashicorp.http import TEXT_SHOWN, Answer, ServerRefused, broken, speaks_tls
from modalnomad.hashicorp.tls import PLAIN_TO_TLS, trust_of
from modalnomad.model.errors import BackendError, BackendUnreachable
from modalnomad.settings import VaultSettings

CONNECT_LIMIT: Final = 3.0
"""Seconds to connect."""
ANSWER_LIMIT: Final = 5.0
"""Seconds without a byte of an answer."""
CALL_LIMIT: Final = 10.0
"""Seconds for a call with all that it waits for, a free thread included."""
THREADS: Final = 4
HEALTH: Final = "sys/health"
ADDRESS: Final = "VAULT_ADDR (vault.address)"
TOKEN: Final = "VAULT_TOKEN (vault.token)"
NO_NAMESPACE: Final = "namespace not found"
COUNTED: Final = re.compile(r"\d+ errors? occurred:\s*\* ")
SHORTEST_HIDDEN: Final = 4
"""Characters: shorter values are not looked for in what the server says."""


class VaultSealed(ServerRefused):
    """It answers, and can do nothing until somebody unseals it."""


class CarefulSession(requests.Session):
    """A standby may send its clients on to the active server (developer.hashicorp.com/vault/docs/concepts/ha), and the
    token goes along; but not from https to http."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Called for each redirection. Raises requests.ConnectionError."""
        before, after = (str(request.url).partition(":")[0].lower() for request in (response.request, prepared_request))
        if before == "https" != after:
            raise requests.exceptions.ConnectionError(
                f"it sends us on to {after}, where everybody could read the token"
            )
        super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]


class TrustingAdapter(requests.adapters.HTTPAdapter):
    """Connections by the same rules as those of the other servers."""

    def __init__(self, context: ssl.SSLContext, server_name: str | None) -> None:
        self._tls: dict[str, Any] = {"ssl_context": context, "server_hostname": server_name}
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(connections, maxsize, block, **more, **self._tls)

    def cert_verify(self, *given: Any) -> None:
        """See HTTPAdapter: it would add authorities of its own to those of the context, which verifies."""


class VaultClient:
    """Connections to one server. Any loop may call it; `close` ends them."""

    def __init__(self, settings: VaultSettings) -> None:
        self.settings = settings
        self.address = address_of(settings.address, ADDRESS)
        self._shown = Token(settings, token_setting_of(settings, "vault", TOKEN))
        self.token = self._shown.now()
        self._trust = trust_of(settings, "vault")
        self._tls: ssl.SSLContext | None = None
        self._threads = ThreadPoolExecutor(THREADS, "vault")
        self._idle: list[hvac.Client] = []
        self._lock = threading.Lock()
        self._closed = False

    async def request(
        self,
        method: str,
        path: str,
        data: Mapping[str, Any] | None = None,
        *,
        ok: tuple[int, ...] = (200, 204),
        hidden: Iterable[str] = (),
    ) -> Answer:
        """The answer, when its status is in `ok`. `path`: what follows `/v1/`. `method` may be LIST. `hidden`: values
        that no message may hold. Raises BackendUnreachable (no answer in time: it may have been done all the same),
        VaultSealed, ServerRefused."""
        token = self.token
        answer = await self._call(method, path, data)
        if answer.status == 403 and self.settings.token_file is not None:
            # Whoever keeps the file fresh (an agent, Nomad) may have written a new one.
            self.token = await asyncio.to_thread(self._shown.now)
            if self.token != token:
                answer = await self._call(method, path, data)
        if answer.status == 400 and PLAIN_TO_TLS in answer.text:
            raise speaks_tls("Vault", self.address, f"{method} {path}", ADDRESS)
        if answer.status not in ok or (answer.status == 404 and NO_NAMESPACE in answer.text):
            raise self._refused(method, path, answer, hidden)
        return answer

    async def _call(self, method: str, path: str, data: Mapping[str, Any] | None) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CALL_LIMIT):
                return await loop.run_in_executor(self._threads, partial(self._ask, self.token, method, path, data))
        except (requests.exceptions.RequestException, VaultError, TimeoutError, OSError) as error:
            raise self._unreachable(method, path, error) from error
        except RuntimeError as error:
            if not self._closed:
                raise
            raise BackendUnreachable(f"{self.address} was asked {method} {path} after it was closed") from error

    def _ask(self, token: str, method: str, path: str, data: Mapping[str, Any] | None) -> Answer:
        """On a thread of ours."""
        with self._lock:
            client = self._idle.pop() if self._idle else self._open()
        try:
            client.token = token
            # Some of `sys/` answers outside of namespaces only.
            client.adapter.namespace = None if path == HEALTH else self.settings.namespace or None
            response = client.adapter.request(method, f"/v1/{path}", json=data, raise_exception=False)
            return Answer(response.status_code, response.headers, response.content)
        finally:
            with self._lock:
                closed = self._closed
                if not closed:
                    self._idle.append(client)
            if closed:
                client.adapter.close()

    def _open(self) -> hvac.Client:
        session = CarefulSession()
        # Neither proxies nor a .netrc: the same rules as for the other servers.
        session.trust_env = False
        self._tls = self._tls or self._trust.context or ssl.create_default_context()
        session.mount("https://", TrustingAdapter(self._tls, self._trust.server_name))
        return hvac.Client(
            self.address,
            "",
            timeout=(CONNECT_LIMIT, ANSWER_LIMIT),  # type: ignore[arg-type]  # passed on to requests, which takes both
            session=session,
            adapter=RawAdapter,
        )

    # --- errors ----------------------------------------------------------------------------------------------

    def _unreachable(self, method: str, path: str, error: BaseException) -> BackendUnreachable:
        hint = f"is Vault or OpenBao running there? the address comes from {ADDRESS}"
        if isinstance(error, TimeoutError | requests.exceptions.Timeout):
            what = "no answer in time"
        else:
            what, hint = self._trust.told(error, self.address, ADDRESS) or (_innermost(error), hint)
        return BackendUnreachable(f"Vault at {self.address} does not answer {method} {path}: {what}", hint)

    def _refused(self, method: str, path: str, answer: Answer, hidden: Iterable[str]) -> ServerRefused:
        said = words(answer)
        if any(len(value) >= SHORTEST_HIDDEN and value in said for value in hidden):
            said = "(its reason is not shown: it holds a value)"
        shown = " ".join(said.split())[:TEXT_SHOWN] or "no reason"
        kind: Callable[..., ServerRefused] = ServerRefused
        hint: str | None = None
        if answer.status == 503 and "sealed" in said:
            kind = VaultSealed
            hint = "unseal it: `bao operator unseal` or `vault operator unseal`"
        elif answer.status == 501 or "not initialized" in said:
            hint = "it is new: `bao operator init` or `vault operator init`, then unseal it"
        elif NO_NAMESPACE in said:
            hint = f"make the namespace {self.settings.namespace}, or correct VAULT_NAMESPACE (vault.namespace)"
        elif "standby" in said or "no active" in said or "active cluster node not found" in said:
            hint = "it is a standby without an active server: wait for the election, or look at its other servers"
        elif answer.status in {401, 403}:
            origin = self._shown.origin
            hint = (
                f"its policies must allow {capabilities(method, path)} on {path}; the token comes from {origin}; "
                "`modalnomad doctor` tells its rights"
            )
            if not self.token:
                hint = f"no token is given: {origin}"
        message = f"Vault at {self.address} answered {method} {path} with {answer.status}: {shown}"
        return kind(message, hint, answer.status, said)

    async def close(self) -> None:
        """Calls under way end by themselves, within their time limits. Twice does nothing more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in idle:
            client.adapter.close()


def capabilities(method: str, path: str) -> str:
    """What a policy must allow for this, such as `create, update`. Which of both a write needs depends on the mount."""
    needed = {"GET": "read", "LIST": "list", "DELETE": "delete"}.get(method, "create, update")
    return f"{needed}, sudo" if path.startswith("sys/auth/") else needed


def words(answer: Answer) -> str:
    """The server's own: its `errors`, else all it said."""
    try:
        errors = answer.json().get("errors")
    except (ValueError, AttributeError):
        return answer.text
    return "; ".join(COUNTED.sub("", str(error)) for error in errors) if isinstance(errors, list) else ""


def gone(error: BackendError) -> bool:
    """It gave no useful answer at all: not there, sealed, or failing by itself. No matter of rights or of what was
    asked."""
    return isinstance(error, BackendUnreachable) or (isinstance(error, ServerRefused) and error.status >= 500)


def _innermost(error: BaseException) -> str:
    """`Connection refused`, without the chain of wrappers around it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return broken(error)
