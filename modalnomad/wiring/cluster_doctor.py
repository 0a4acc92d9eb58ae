"""All checks of `doctor` with a cluster: what this machine needs to deploy to it, then its servers. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from modalnomad import __version__
from modalnomad.embedded.checks import home as of_home
from modalnomad.embedded.checks import machine as of_machine
from modalnomad.hashicorp.artifacts import ObjectArtifacts, artifact_folder, nodes_url
from modalnomad.hashicorp.checks.examine import examine_cluster
from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.routers import RouterInfo, routers
from modalnomad.hashicorp.consul.server import consul_server
from modalnomad.hashicorp.http import HttpClient
from modalnomad.kit.finding import Finding, ok, problem, warning
from modalnomad.model.errors import ModalNomadError, NotFound
from modalnomad.model.ids import Digest
from modalnomad.settings import ArtifactSettings, Settings
from modalnomad.wiring import doctor_facts as facts
from modalnomad.wiring.doctor import certificate_found, guarded, settings_file, versions_found

NOTHING = Digest("0" * 64)
"""An artifact that is never there: asking for it shows whether the store answers."""


async def examine_with_cluster(settings: Settings) -> list[Finding]:
    """Everything, all at once; in an order in which one reads it."""
    local = (
        ("versions", versions_found),
        ("settings", settings_file),
        ("times", lambda: check_times(settings)),
        ("home", lambda: of_home.check_home(facts.home_facts(settings.home))),
        ("disk", lambda: of_home.check_space(*facts.space(settings.home))),
        ("python", lambda: of_machine.check_pythons(*facts.pythons(settings.home))),
        ("uv", lambda: of_machine.check_uv(*facts.uv())),
        ("certificate", lambda: certificate_found(settings)),
        ("artifacts", lambda: _artifacts(settings)),
        ("routers", lambda: _routers(settings)),
    )
    *found, servers = await asyncio.gather(*(guarded(name, check) for name, check in local), examine_cluster(settings))
    return [finding for group in (*found, servers) for finding in group]


def check_times(settings: Settings) -> Finding:
    """Limits that contradict each other."""
    grace, overstay = settings.nomad.grace_period, settings.scaling.overstay
    if overstay <= grace:
        return warning(
            "times",
            f"scaling.overstay = {overstay:g} s is no longer than nomad.grace_period = {grace:g} s: replicas are "
            "killed before they may finish",
            "make overstay longer",
        )
    return ok("times", "limits fit together")


async def _artifacts(settings: Settings) -> Finding:
    folder = artifact_folder(settings.artifacts, settings.home)
    if folder is not None and not folder.is_dir():
        return check_artifacts(settings.artifacts, f"{folder}, which the first deploy makes")
    store = ObjectArtifacts(settings.artifacts, settings.home)
    with suppress(NotFound):
        await store.size(NOTHING)
    return check_artifacts(settings.artifacts, store.place)


def check_artifacts(settings: ArtifactSettings, place: str) -> Finding:
    """Can nodes read them? `place`: where they are kept."""
    try:
        url = nodes_url(settings)
    except ModalNomadError as error:
        return problem("artifacts", error.message, error.hint or "")
    if settings.host == "127.0.0.1" and not settings.url:
        return warning(
            "artifacts",
            f"kept in {place}; only nodes of this machine reach them at {url}",
            "for other nodes set artifacts.host and artifacts.url to an address of the routers that nodes reach",
        )
    return ok("artifacts", f"kept in {place}, read by nodes at {url}")


async def _routers(settings: Settings) -> Finding:
    try:
        http = HttpClient(consul_server(settings.consul))
        try:
            return check_routers(await routers(ConsulApi(http), settings.consul.prefix))
        finally:
            await http.close()
    except ModalNomadError as error:
        return warning("routers", f"it cannot be told which run: {error.message}", "see what is said of Consul")


def check_routers(found: Sequence[RouterInfo]) -> Finding:
    """Those that say that they run."""
    if not found:
        return warning("routers", "none runs: nothing is served", "start one: modalnomad router")
    old = sorted(f"{info.name} ({info.version or 'unknown'})" for info in found if info.version != __version__)
    if old:
        return warning(
            "routers",
            f"{len(found)} run, not all of them modalnomad {__version__}: {', '.join(old)}",
            "restart those, one after the other",
        )
    return ok("routers", f"{len(found)} run: {', '.join(sorted(info.name for info in found))}")
