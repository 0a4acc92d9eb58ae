"""What is kept of a deployed App: its versions, the one that is served, and what was changed on it since."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Model
from modalnomad.model.revision import Revision
from modalnomad.model.routes import Route, ScalingOverride

LATEST = 32_503_680_000.0
"""Unix time of the year 3000: a record with a later one is damaged."""


class AppVersion(Model):
    """One deploy of an App, immutable: everything that is needed to serve it again without building anything."""

    number: int
    """1, 2, …"""
    routes: tuple[Route, ...] = ()
    revisions: tuple[Revision, ...] = ()
    """All that routes need, and those of functions with a schedule."""
    deployed_at: float = Field(default=0.0, ge=0, le=LATEST)
    """Unix time."""
    deployed_by: str = ""
    """`user@host`."""
    client: str = ""
    """Version of the modalnomad that made it."""
    commit: str = ""
    """Of the program's git repository; empty: none."""
    dirty: bool = False
    """The work tree differed from `commit`."""
    tag: str = ""
    note: str = ""
    """Such as `rollback to v3`."""


class AppRecord(Model):
    """Everything of one App that is kept; published as a whole.

    `versions` are oldest first and hold the newest K; which one is served is told by `version`, which is always the
    newest (a rollback makes a new one).
    """

    app: str
    environment: str
    serial: int
    """1, 2, … rises by one with every write of the record, whatever changed: what compare-and-set compares."""
    versions: tuple[AppVersion, ...] = ()
    stopped_at: float | None = None
    """Unix time; None: it is served."""
    overrides: dict[str, ScalingOverride] = Field(default_factory=dict)
    """Function tag → live override of its scaling, until the next version."""

    @property
    def current(self) -> AppVersion | None:
        """The version that is served; None: stopped, or never deployed."""
        return None if self.stopped_at is not None or not self.versions else self.versions[-1]

    @property
    def version(self) -> int:
        """Number of the newest version, served or stopped; 0: none."""
        return self.versions[-1].number if self.versions else 0

    @property
    def routes(self) -> tuple[Route, ...]:
        """Those that are served."""
        return self.current.routes if self.current else ()

    @property
    def revisions(self) -> tuple[Revision, ...]:
        """Those that are served."""
        return self.current.revisions if self.current else ()

    @property
    def overridden(self) -> dict[RevisionId, ScalingOverride]:
        """The same overrides by the revisions they hold for."""
        return {r.id: self.overrides[r.function.tag] for r in self.revisions if r.function.tag in self.overrides}


def trim(versions: tuple[AppVersion, ...], keep: int) -> tuple[AppVersion, ...]:
    """The newest `keep` of them, at least one: what a record holds once it is published."""
    return versions[-max(keep, 1) :]


class Needed(NamedTuple):
    """What kept versions need to be served again without building anything."""

    bundles: frozenset[Digest]
    """And the packs of images that are made on the machines of a cluster."""
    images: frozenset[Digest]
    anonymous: frozenset[tuple[str, str]]
    """(environment, digest) of the values of `Secret.from_dict`."""
    revisions: frozenset[RevisionId]
    """Themselves."""


def needed_by(records: Iterable[AppRecord]) -> Needed:
    """Of all versions in these records, served or not."""
    revisions = {
        revision.id: revision for record in records for version in record.versions for revision in version.revisions
    }
    return Needed(
        bundles=frozenset(
            digest for r in revisions.values() for digest in (r.bundle, r.image.pack) if digest is not None
        ),
        images=frozenset(revision.image.digest for revision in revisions.values()),
        anonymous=frozenset(
            (ref.environment or revision.environment, ref.anonymous)
            for revision in revisions.values()
            for ref in revision.secrets
            if ref.anonymous is not None
        ),
        revisions=frozenset(revisions),
    )


def users_of(secret: str, environment: str, records: Iterable[AppRecord]) -> tuple[AppRecord, ...]:
    """The Apps whose served version starts replicas with this named secret; those of other environments too."""
    return tuple(
        record
        for record in records
        if any(
            ref.name == secret and (ref.environment or revision.environment) == environment
            for revision in record.revisions
            for ref in revision.secrets
        )
    )
