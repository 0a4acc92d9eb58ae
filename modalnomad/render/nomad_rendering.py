"""What goes into a job beside its revision, and how its values are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modalnomad.model.errors import UserError
from modalnomad.model.ids import Digest
from modalnomad.settings import DEFAULT_PREFIX, NomadSettings, VaultSettings

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """No secret is among it: `nomad` and `vault` hold tokens, which are not looked at."""

    nomad: NomadSettings
    vault: VaultSettings
    artifacts_url: str
    """`http[s]://host:port`, as nodes reach it."""
    orphan_factor: float
    sdk: Digest
    """Artifact of the zip application that nodes run."""
    ticket_sha256: str
    key_mark: str = ""
    """Of the platform key that the ticket is made with (`META_KEY`); empty: not told."""
    prefix: str = DEFAULT_PREFIX
    """Of records in Consul."""
    web_urls: Mapping[str, str]
    """Endpoint's name → public URL."""
    version: int
    """Of the App, in which the revision first appeared."""
    deployed_at: float
    """Unix time."""
    deployed_by: str
    source: str = ""
    """The program's own text, for Nomad's UI: read by all who may read jobs there, so not told of a Function with
    secrets that are written in the program. Empty: none."""


def nanoseconds(seconds: float) -> int:
    """A duration as Nomad's JSON has it (Go's time.Duration)."""
    return round(seconds * 1000) * 1_000_000


def literal(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables of a task that arrive as they are here.

    Raises:
        UserError: Nomad's client would replace a part of one. It has no way to write "${" itself.
    """
    for name, value in variables.items():
        if "${" in value:
            raise UserError(
                f'{name} would be {value!r}: Nomad replaces what stands in "${{…}}"',
                "take another name for the file, folder or function it comes from",
            )
    return dict(variables)
