"""Which environments a home holds: those of which anything is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modalnomad.embedded.records import Records
from modalnomad.embedded.store import translated
from modalnomad.model.ids import DEFAULT_ENVIRONMENT, ENVIRONMENT_NAME


@dataclass(frozen=True, slots=True)
class EnvironmentInfo:
    """What is in it. Apps that cannot be read are not counted."""

    name: str
    apps: int
    """Served and stopped."""
    stopped: int
    secrets: int
    tokens: int


def environments(home: Path) -> tuple[EnvironmentInfo, ...]:
    """Those that hold something, and the default one; by name. Raises BackendRefused."""
    records = Records(home)
    apps, tokens = records.all_apps(), records.all_tokens()
    secrets = home / "secrets" / "named"
    with translated(f"read {secrets}"):
        stored = [path.parent.name for path in secrets.glob("*/*.json")]
    names = {DEFAULT_ENVIRONMENT, *stored, *(app.environment for app in apps), *(t.environment for t in tokens)}
    return tuple(
        EnvironmentInfo(
            name=name,
            apps=sum(app.environment == name for app in apps),
            stopped=sum(app.environment == name and app.current is None for app in apps),
            secrets=stored.count(name),
            tokens=sum(token.environment == name for token in tokens),
        )
        for name in sorted(names)
        if ENVIRONMENT_NAME.fullmatch(name)
    )
