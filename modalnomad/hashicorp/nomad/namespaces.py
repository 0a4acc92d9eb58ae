"""Was Nomad prepared for what a router serves? Where it was not, nothing is ever woken, and nobody says why."""

from __future__ import annotations

import logging
from collections.abc import Collection

from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.model.errors import BackendError
from modalnomad.render.cluster import NAMESPACE_PREFIX, environment_of, namespace_of

logger = logging.getLogger("modalnomad.nomad")


async def tell_missing(api: NomadApi, environment: str | None) -> None:
    """Once, in the log. What else is wrong with Nomad is told by those who go on asking it."""
    try:
        found = await api.namespaces(NAMESPACE_PREFIX)
    except BackendError:
        return
    if words := missing(found, environment):
        logger.warning("%s", words)


def missing(namespaces: Collection[str], environment: str | None) -> str:
    """What to say where only these can be seen in Nomad; empty: all is there. `environment`: the one that is served;
    None: all there are."""
    if environment is None:
        what, command = f"namespace of an environment ({NAMESPACE_PREFIX}…)", "modalnomad setup"
        there = any(environment_of(name) is not None for name in namespaces)
    else:
        name = namespace_of(environment)
        what, command, there = f"namespace {name}", f"modalnomad setup --env {environment}", name in namespaces
    if there:
        return ""
    return f"Nomad shows this router no {what}: there is nothing to serve until `{command}` makes it"
