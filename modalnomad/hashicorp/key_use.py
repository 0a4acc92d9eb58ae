"""Who still needs the platform key before the present one: Apps whose jobs were made with it, replicas that run."""

from __future__ import annotations

from dataclasses import dataclass

from modalnomad.hashicorp.consul.api import ConsulApi
from modalnomad.hashicorp.consul.discovery import ConsulDiscovery
from modalnomad.hashicorp.nomad.api import NomadApi
from modalnomad.hashicorp.prune import deploying, prefix_of, registered
from modalnomad.model.errors import BackendRefused
from modalnomad.render.cluster import META_KEY, environment_of
from modalnomad.render.nomad import META_APP


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Apps as `hello (main)`."""

    served: tuple[str, ...] = ()
    """Their jobs are of another key: they have to be deployed again."""
    running: tuple[str, ...] = ()
    """Replicas of theirs run with such a ticket; routers replace those, one after the other."""
    elsewhere: tuple[str, ...] = ()
    """Their jobs are of another key, and of deploys with another `consul.prefix`: perhaps they are served."""
    unmarked: bool = False
    """Some of those jobs do not say with which key they were made. They count all the same."""
    deploying: bool = False
    """Some App is being deployed, perhaps with a key that was read before."""

    def __str__(self) -> str:
        """Empty: nobody needs it."""
        parts = []
        if self.served:
            parts.append(f"{', '.join(self.served)} not deployed since")
        if self.running:
            parts.append(f"replicas of {', '.join(self.running)} run with it")
        if self.elsewhere:
            parts.append(f"{', '.join(self.elsewhere)}, deployed with another consul.prefix, not deployed since")
        if self.unmarked:
            parts.append("some of these jobs, of an earlier modalnomad, do not say which key is theirs")
        if self.deploying:
            parts.append("an App is being deployed")
        return "; ".join(parts)

    @property
    def cure(self) -> str:
        """What to do about it."""
        if self.served:
            return "deploy those Apps again, or stop them"
        if self.elsewhere:
            return (
                "is this the right consul.prefix? with the other one, deploy those Apps again, or stop them and prune"
            )
        if self.running:
            return (
                "wait until that is over: routers replace such replicas within minutes; those whose vault.rotation is "
                "0 never do: end them with modalnomad container stop"
            )
        return "wait until that is over"


async def key_use(nomad: NomadApi, consul: ConsulApi, prefix: str, mark: str) -> KeyUse:
    """Who needs another key than that of this mark. Raises BackendError, also where a record cannot be read, or a job
    of what is served is not seen: Nomad shows a token what it may see, and does not say that there is more."""
    discovery = ConsulDiscovery(consul, prefix=prefix)
    busy = await deploying(consul, prefix)
    if problems := await discovery.problems():
        raise BackendRefused(f"which Apps are served cannot be told: {problems[0]}")
    records = await discovery.apps()
    served = {revision.id: f"{one.app} ({one.environment})" for one in records for revision in one.revisions}
    jobs = await registered(nomad, None)  # the key is one for all of a Vault
    if unseen := served.keys() - {job.revision for job in jobs if job.key is None}:
        names = ", ".join(sorted({served[id] for id in unseen}))
        raise BackendRefused(
            f"with which key {names} was deployed cannot be told: Nomad shows no job of it",
            f"give a token that may see the jobs of all environments; it comes from {nomad.http.server.token_setting}. "
            "If somebody removed them: deploy those Apps again, or stop them",
        )
    apps, running, elsewhere, unmarked = set[str](), set[str](), set[str](), False
    for job in jobs:
        if job.meta.get(META_KEY) == mark:
            continue
        name = f"{job.meta.get(META_APP, '?')} ({environment_of(job.namespace)})"
        if job.key is not None:
            running.add(name)
        elif job.revision in served:
            apps.add(name)
        elif prefix_of(job) != prefix:
            elsewhere.add(name)
        else:
            continue
        unmarked |= META_KEY not in job.meta
    return KeyUse(tuple(sorted(apps)), tuple(sorted(running)), tuple(sorted(elsewhere)), unmarked, busy)
