"""The runner contract's environment variables, the same under every back end."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Final

from modalnomad_sdk import contract

from modalnomad.model.ids import RevisionId
from modalnomad.model.manifest import Function, Source
from modalnomad.model.replica import ReplicaKey
from modalnomad.model.revision import Revision

ORPHAN_FLOOR: Final = 30.0
"""Seconds a replica waits for its first or next router at least, however short its scaledown window is."""


def ticket(platform_key: bytes, revision: RevisionId) -> str:
    """What every request to a replica of this revision carries: hex HMAC-SHA256 of its id."""
    return hmac.new(platform_key, revision.encode(), hashlib.sha256).hexdigest()


def orphan_after(function: Function, factor: float) -> float:
    """Seconds without any request after which a replica drains itself. Routers greet those `min_containers` keeps."""
    return max(ORPHAN_FLOOR, function.scaling.scaledown_window * factor)


def source_of(source: Source) -> str:
    """`script:<file>` or `module:<dotted name>`."""
    return f"{source.mode}:{source.entry}"


def ticket_sha256(platform_key: bytes, revision: RevisionId) -> str:
    """What a replica knows of its ticket."""
    return hashlib.sha256(ticket(platform_key, revision).encode()).hexdigest()


def contract_environment(
    revision: Revision,
    key: ReplicaKey,
    *,
    platform_key: bytes,
    grace_period: float,
    orphan_factor: float,
    network: str,
    gpus: int = 0,
    web_urls: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Everything of the contract that does not depend on where the replica runs.

    The engine adds where it listens, its lifeline and its folders.
    """
    variables = revision_environment(
        revision,
        ticket_sha256=ticket_sha256(platform_key, revision.id),
        grace_period=grace_period,
        orphan_factor=orphan_factor,
        network=network,
        gpus=gpus,
        web_urls=web_urls,
    )
    variables |= {contract.ENV_POOL: str(key.pool), contract.ENV_REPLICA: key.name}
    if key.pool.parameters:
        encoded = base64.urlsafe_b64encode(key.pool.parameters.encode()).decode()
        variables[contract.ENV_PARAMETERS] = encoded.rstrip("=")
    return variables


def revision_environment(
    revision: Revision,
    *,
    ticket_sha256: str,
    grace_period: float,
    orphan_factor: float,
    network: str,
    gpus: int = 0,
    web_urls: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The part of the contract that is the same for all replicas of a revision."""
    function = revision.function
    variables = {
        contract.ENV_CONTRACT: str(contract.VERSION),
        contract.ENV_APP: revision.app,
        contract.ENV_ENVIRONMENT: revision.environment,
        contract.ENV_FUNCTION: function.tag,
        contract.ENV_REVISION: revision.id,
        contract.ENV_SOURCE: source_of(revision.source),
        contract.ENV_TICKET_SHA256: ticket_sha256,
        contract.ENV_NETWORK: network,
        contract.ENV_MAX_INPUTS: str(function.scaling.max_inputs),
        contract.ENV_TIMEOUT: _seconds(function.timeout),
        contract.ENV_STARTUP_TIMEOUT: _seconds(function.start_limit),
        contract.ENV_GRACE_PERIOD: _seconds(grace_period),
        contract.ENV_ORPHAN_AFTER: _seconds(orphan_after(function, orphan_factor)),
        contract.ENV_WEB_URLS: json.dumps(dict(web_urls or {}), sort_keys=True),
        contract.ENV_LOG_TAGS: "1",
        contract.ENV_GPUS: str(gpus),
        contract.ENV_IMAGE: revision.image.digest,
    }
    if function.web_ports:
        variables[contract.ENV_WEB_PORTS] = ",".join(str(port) for port in function.web_ports)
    return variables


def modal_environment(revision: Revision, key: ReplicaKey) -> dict[str, str]:
    """The variables programs written for Modal look at; reserved there too."""
    return modal_variables(revision, hashlib.sha256(str(key).encode()).hexdigest()[:22])


def modal_variables(revision: Revision, task: str) -> dict[str, str]:
    """The same, for a replica that is called `task`."""
    return {
        "MODAL_IS_REMOTE": "1",
        "MODAL_ENVIRONMENT": revision.environment,
        "MODAL_TASK_ID": f"ta-{task}",
        "MODAL_IMAGE_ID": f"im-{revision.image.digest[:22]}",
    }


def _seconds(value: float) -> str:
    """Decimal, without an exponent and without a trailing zero."""
    return f"{value:.3f}".rstrip("0").rstrip(".")
