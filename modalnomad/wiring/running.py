"""What other commands ask of the platform that runs on this home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modalnomad.model.errors import BackendError
from modalnomad.settings import UP_PORT, Settings
from modalnomad.wiring.control import control_call
from modalnomad.wiring.deploy_parts import Listener


async def containers(settings: Settings) -> Sequence[Mapping[str, Any]]:
    """Replicas that are up or coming, as `wiring.containers.Container`. Raises BackendError."""
    if settings.backend == "hashicorp":
        from modalnomad.wiring.cluster_running import cluster_containers

        return await cluster_containers(settings)
    found: Sequence[Mapping[str, Any]] = await control_call(settings, "containers")
    return found


async def stop_container(settings: Settings, id: str, *, now: bool, environment: str | None) -> str:
    """End one, see `wiring.containers.Containers.stop`. Returns its whole id."""
    if settings.backend == "hashicorp":
        from modalnomad.wiring.cluster_running import stop_cluster_container

        return await stop_cluster_container(settings, id, now=now, environment=environment)
    return str(await control_call(settings, "stop_container", id=id, now=now, environment=environment))


async def replicas_by_app(settings: Settings) -> Mapping[tuple[str, str], int] | None:
    """(environment, App) → replicas that are up or coming; None: no platform runs, or it does not answer."""
    try:
        found = await containers(settings)
    except BackendError:
        return None
    return Counter((container["environment"], container["app"]) for container in found)


async def listener(settings: Settings, running: bool) -> Listener:
    """Of the platform that runs (`running`: one did), else (also when it went away) as the settings say."""
    if running:
        try:
            status = await control_call(settings, "status")
            return Listener(int(status["port"]), bool(status["tls"]))
        except BackendError:
            pass  # it is told by what else is asked of it
    router = settings.router
    return Listener(UP_PORT if router.port is None else router.port, router.tls_cert is not None)
