"""Names of things on a cluster: the same in what is rendered, watched, set up and shown. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final

from modalnomad.model.ids import ENVIRONMENT_NAME, RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey

NAMESPACE_PREFIX: Final = "modalnomad-"
"""Of the Nomad namespaces that are environments."""
GROUP: Final = "replica"
TASK: Final = "app"
PORT: Final = "http"
"""Label of a replica's port."""
REPLICA_SERVICE: Final = "modalnomad-replica"
"""Consul service all replicas register as."""
ROUTER_SERVICE: Final = "modalnomad-router"

META_REVISION: Final = "revision"
META_SPEC: Final = "modalnomad_spec_sha256"
"""Parent: hash of the rendered job; equal: nothing to register."""
META_KEY: Final = "modalnomad_key"
"""Parent, and so its children: mark of the platform key that its ticket is made with."""
META_PREFIX: Final = "modalnomad_prefix"
"""Parent, and so its children: where the record is that it belongs to (`consul.prefix`), unless that is the default. By
it whoever prunes leaves jobs of another installation alone."""
META_POOL: Final = "pool"
META_NUMBER: Final = "number"
META_EPOCH: Final = "epoch"
META_PARAMETERS: Final = "parameters"
"""Base64url without padding of `PoolKey.parameters`; empty: none."""
META_SHORT_PARAMETERS: Final = "parameters_short"
"""The same where Consul takes it (`CONSUL_META_LIMIT`), else empty: then a replica's registration does not tell its
parameters. Nomad would try a registration that Consul refuses for ever, and hold up those of the whole node."""
CONSUL_META_LIMIT: Final = 512
"""Bytes of one value in a service's Meta."""
META_REASON: Final = "reason"
META_REQUEST: Final = "request_id"
META_SECRETS: Final = "secrets"
"""`db=3,api=1`: versions of the secrets as they were when it was started."""
META_STARTED_BY: Final = "started_by"
DEPLOYER: Final = "deploy by "
"""Begins META_STARTED_BY of what no router started."""
CHILD_META: Final = (
    META_POOL,
    META_NUMBER,
    META_EPOCH,
    META_PARAMETERS,
    META_SHORT_PARAMETERS,
    META_REASON,
    META_REQUEST,
    META_SECRETS,
    META_STARTED_BY,
)
"""What each dispatch gives; the parent's `MetaOptional`."""


def namespace_of(environment: str) -> str:
    """The Nomad namespace an environment is."""
    return NAMESPACE_PREFIX + environment


def environment_of(namespace: str) -> str | None:
    """None: no namespace of ours."""
    name = namespace.removeprefix(NAMESPACE_PREFIX)
    return name if name != namespace and ENVIRONMENT_NAME.fullmatch(name) else None


def vault_role(environment: str) -> str:
    """What the tasks of an environment log in as at Vault."""
    return NAMESPACE_PREFIX + environment


VAULT_AUDIENCE: Final = "vault.io"
"""`aud` of the identities with which tasks log in."""


def parent_id(app: str, function: str, version: int) -> str:
    """The job of a revision; `version`: of the App, in which the revision first appeared."""
    return f"{app}.{function}.r{version}"


def idempotency_token(key: ReplicaKey) -> str:
    """The same replica, whoever asks for it."""
    return str(key)


def key_of(meta: Mapping[str, str]) -> ReplicaKey | None:
    """The replica a child is, by its merged Meta; None: not started by a router of ours, or not rightly."""
    number, epoch = meta.get(META_NUMBER, ""), meta.get(META_EPOCH, "")
    revision = meta.get(META_REVISION, "")
    if not (re.fullmatch(r"[0-9]{1,9}", number) and re.fullmatch(r"[0-9]{1,9}", epoch) and revision):
        return None
    try:
        pool = PoolKey(RevisionId(revision), decode(meta.get(META_PARAMETERS, "")))
    except ValueError:
        return None
    key = ReplicaKey(pool, int(number), int(epoch))
    return key if str(pool) == meta.get(META_POOL) else None


def encode(text: str) -> str:
    """Base64url without padding; what may stand in Meta whatever the text holds."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(text: str) -> str:
    """Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
