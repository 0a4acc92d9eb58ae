"""docs/differences.md: how the SDK differs from the vendor's package, each difference with its reason.

    python -m tests.support.differences docs/differences.md

Names and parameters are compared by machine; the reasons stand in sdk/differences.toml. A difference without a reason
and a reason without a difference are both errors.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalnomad_sdk.description import WITHOUT_EFFECT

from tests.support.repository import ROOT

REASONS = ROOT / "sdk" / "differences.toml"
PAGE = ROOT / "docs" / "differences.md"
PROGRAM = ROOT / "tests" / "support" / "api_surface.py"
CLASSES = (
    "App",
    "CloudBucketMount",
    "Cls",
    "Cron",
    "Dict",
    "FilePatternMatcher",
    "Function",
    "FunctionCall",
    "Image",
    "NetworkFileSystem",
    "Period",
    "Probe",
    "Proxy",
    "Queue",
    "Retries",
    "Sandbox",
    "SchedulerPlacement",
    "Secret",
    "Server",
    "Tunnel",
    "Volume",
)
CONSTRUCTED = {
    "App",
    "CloudBucketMount",
    "Cron",
    "FilePatternMatcher",
    "Period",
    "Probe",
    "Retries",
    "SchedulerPlacement",
    "Tunnel",
}
"""Classes that programs call; the others are made by `from_…`."""


class Unexplained(Exception):
    """A difference without a reason, or a reason without a difference."""


@dataclass(frozen=True)
class Difference:
    """One difference: `subject` is what the reasons are matched with."""

    subject: str
    what: str


def surface(package: str) -> dict[str, Any]:
    """The public surface of `modal` or `modalnomad_sdk`, read in a process of its own."""
    command = [sys.executable, str(PROGRAM), package, *CLASSES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{package} could not be read:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(vendor: dict[str, Any], ours: dict[str, Any]) -> Iterator[Difference]:
    """All differences, in the order of the page."""
    yield from _members("modal", vendor["names"], ours["names"])
    for name in CLASSES:
        theirs, own = dict(vendor["members"][name]), dict(ours["members"][name])
        if name not in CONSTRUCTED:
            del theirs["__init__"], own["__init__"]
        yield from _members(f"modal.{name}", theirs, own)
    for name in sorted({*vendor["errors"], *ours["errors"]}):
        theirs, own = vendor["errors"].get(name), ours["errors"].get(name)
        if theirs != own:
            what = "only here" if theirs is None else "not here" if own is None else f"bases {own}, there {theirs}"
            yield Difference(f"modal.exception.{name}", what)


def _members(owner: str, vendor: dict[str, Any], ours: dict[str, Any]) -> Iterator[Difference]:
    for name in sorted({*vendor, *ours}):
        subject = f"{owner}.{name}"
        theirs, own = vendor.get(name), ours.get(name)
        if theirs is None:
            yield Difference(subject, "only here")
        elif own is None:
            yield Difference(subject, "not here")
        elif own["kind"] == "unavailable":
            yield Difference(subject, "raises UnimplementedError")
        elif theirs["kind"] != own["kind"]:
            yield Difference(subject, f"{own['kind']}, there {theirs['kind']}")
        elif theirs.get("parameters") is not None:
            yield from _parameters(subject, theirs["parameters"], own["parameters"] or [])


def _parameters(subject: str, vendor: list[list[str]], ours: list[list[str]]) -> Iterator[Difference]:
    theirs, own = {one[0]: one[1:] for one in vendor}, {one[0]: one[1:] for one in ours}
    for name in dict.fromkeys([*theirs, *own]):
        if name not in own:
            yield Difference(f"{subject}({name})", "not here")
        elif name not in theirs:
            yield Difference(f"{subject}({name})", "only here")
        elif theirs[name] != own[name]:
            yield Difference(f"{subject}({name})", f"{_shown(own[name])}, there {_shown(theirs[name])}")
    # Where both have the same positional ones, their order is part of the API.
    positional = "POSITIONAL_OR_KEYWORD"
    first = [name for name, (kind, _) in theirs.items() if kind == positional and name in own]
    second = [name for name, (kind, _) in own.items() if kind == positional and name in theirs]
    if first != second:
        yield Difference(f"{subject}()", f"order {second}, there {first}")


def _shown(parameter: list[str]) -> str:
    kind, value = parameter
    return kind.lower().replace("_", " ") + (f" = {value}" if value else "")


def page() -> str:
    """The whole page.

    Raises:
        Unexplained: naming every one.
    """
    vendor, ours = surface("modal"), surface("modalnomad_sdk")
    table = tomllib.loads(REASONS.read_text("utf-8"))
    reasons: dict[str, str] = table["reasons"]
    unused = set(reasons)
    grouped: dict[str, list[Difference]] = {}
    missing = []
    for difference in compare(vendor, ours):
        pattern = next((one for one in reasons if fnmatch.fnmatchcase(difference.subject, one)), None)
        if pattern is None:
            missing.append(f"{difference.subject}: {difference.what}")
            continue
        unused.discard(pattern)
        grouped.setdefault(reasons[pattern], []).append(difference)
    if missing or unused:
        raise Unexplained("\n".join([*missing, *(f"no difference: {one}" for one in sorted(unused))]))
    return _written(vendor["version"], table, grouped)


def _written(version: str, table: dict[str, Any], grouped: dict[str, list[Difference]]) -> str:
    lines = [
        "# Differences from Modal",
        "",
        "<!-- Written by scripts/differences from the code and sdk/differences.toml. -->",
        "",
        "What a program finds different when it runs here. Names, parameters and defaults are compared by machine with",
        f"Modal {version}: what is not on this page is the same.",
        "",
        "## Behaviour",
        "",
        "| what | here | why |",
        "|---|---|---|",
        *(f"| {one['what']} | {one['here']} | {one['why']} |" for one in table["behaviour"]),
        "",
        "## Accepted without effect",
        "",
        "Arguments of `@app.function` and `@app.cls`; each is said once at deploy.",
        "",
        "| argument | why |",
        "|---|---|",
        *(f"| `{name}` | {reason} |" for name, reason in WITHOUT_EFFECT.items()),
        "",
        "## Names and parameters",
        "",
    ]
    for reason, differences in grouped.items():
        lines += [f"**{reason}**", ""]
        by_what: dict[str, list[str]] = {}
        for difference in differences:
            by_what.setdefault(difference.what, []).append(f"`{difference.subject.removeprefix('modal.')}`")
        lines += [f"* {what}: {', '.join(subjects)}" for what, subjects in by_what.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")
    except Unexplained as error:
        sys.exit(f"without a reason in {REASONS}:\n{error}")
