"""Stage: a running platform as a deploy sees it, from another process or from its own.

    prepare ─▶ warm ─▶ (the record is published) ─▶ served ─▶ the platform drains what is no longer served by itself

Who deploys publishes; who runs the platform follows the records. What was prepared and warmed here and is not in any
published record when the stage closes (the deploy failed, or its process died) is ended and forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision


class Stage(Protocol):
    """All methods raise BackendUnreachable when the platform goes away meanwhile."""

    async def serving(self) -> bool:
        """Whether anything leads requests to replicas now. If not, nobody needs them warm."""
        return True

    async def warm_counts(self, revision: RevisionId) -> Mapping[str, int]:
        """Class parameters (`PoolKey.parameters`) → replicas ready or starting; pools that have none are left out."""

    async def apart(self, revision: Revision) -> bool:
        """True: it cannot live beside its predecessor (a fixed port without namespaces, the only GPU)."""

    async def prepare(self, revision: Revision) -> None:
        """Make it startable there. Idempotent. Raises BackendError."""

    async def renew(self, revisions: Collection[Revision]) -> tuple[str, ...]:
        """They are served already: have them start from now on as the settings say today. Returns the Functions for
        which something had to be done. Raises BackendError."""
        return ()

    async def warm(self, revision: Revision, parameters: str, count: int) -> None:
        """Return when that many replicas are ready (within max_containers). Raises UserCodeFailed with the replica's
        last output, BackendError."""

    async def follow(self, earlier: RevisionId, successor: RevisionId) -> None:
        """Where the two cannot live at once: hold starts of the successor back until no replica of `earlier` lives."""

    async def served(self, app: str, environment: str, serial: int) -> None:
        """Return when requests are led as the record with this serial (or a later one) says."""

    async def end(self, revision: RevisionId) -> None:
        """Strategy `recreate`: end its replicas now, whatever they hold."""

    async def direct_urls(self, hosts: tuple[str, ...]) -> Mapping[str, str]:
        """Host → `http://127.0.0.1:port`, for those that are served."""
