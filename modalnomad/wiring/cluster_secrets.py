"""Versions of the secrets that a replica is started with, asked for at its start: who started it when a value was older
is known from them later."""

from __future__ import annotations

from collections.abc import Mapping

from modalnomad.hashicorp.vault.rotation import versions_text
from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from modalnomad.model.routes import RouteSnapshot
from modalnomad.ports.secrets import Secrets


class SecretVersions:
    """`take` each snapshot of what is served."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._revisions: Mapping[RevisionId, Revision] = {}

    def take(self, snapshot: RouteSnapshot) -> None:
        """From now on these are served."""
        self._revisions = snapshot.revisions

    def find(self, revision: RevisionId) -> Revision | None:
        """One that is served."""
        return self._revisions.get(revision)

    def environment(self, revision: RevisionId) -> str | None:
        """Of one that is served."""
        found = self._revisions.get(revision)
        return None if found is None else found.environment

    async def text(self, id: RevisionId) -> str:
        """`api=1,db=3`; empty: it has none. Raises BackendError."""
        return versions_text(await self.current(id))

    async def current(self, id: RevisionId) -> Mapping[str, int]:
        """Of the secrets it names, as far as they are there. Raises BackendError."""
        revision = self._revisions.get(id)
        refs = [ref for ref in revision.secrets if ref.name is not None] if revision is not None else []
        if revision is None or not refs:
            return {}
        return await self._secrets.versions(refs, revision.environment)
