"""What Nomad says of a child that found no place or did not start, in the words of who wrote the program. Pure.

Texts of Nomad 2.0 (nomad-measured 3.6, 3.5; vault-measured 5): a text that is not known is passed on, without the paths
of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modalnomad.hashicorp.nomad.api import Shape
from modalnomad.hashicorp.nomad.shapes import Allocation, TaskEvent
from modalnomad.model.replica import Failure, FailureCode
from modalnomad.render.outcome import outcome

TEXT_SHOWN: Final = 300
"""Characters of Nomad's own words."""

_DIMENSIONS: Final = {"memory": "memory", "cpu": "CPU", "cores": "CPU cores", "disk": "disk space"}
_NO_DEVICES: Final = "missing devices"
_FILTERS: Final = {
    "missing drivers": "has the driver it needs",
    _NO_DEVICES: "has the GPU it asks for",
    "missing network": "has the network it needs",
}
_ATTRIBUTES: Final = {"${attr.vault": "reaches Vault", "${attr.consul": "reaches Consul"}
_CACHED: Final = "computed class ineligible"
"""Nomad's word for: like another node that was looked at."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Why no node took it: `no_capacity`, some could and are full; `unplaceable`, none could."""

    code: FailureCode
    reason: str


def placement(metric: Shape) -> Placement:
    """Of one group's entry in `FailedTGAllocs`."""
    exhausted = _counts(metric.get("DimensionExhausted"))
    filtered = {text: n for text, n in _counts(metric.get("ConstraintFiltered")).items() if text != _CACHED}
    full, evaluated = int(metric.get("NodesExhausted") or 0), int(metric.get("NodesEvaluated") or 0)
    if full or exhausted or metric.get("QuotaExhausted"):
        lacks = ", ".join(dict.fromkeys(_dimension(text) for text in exhausted)) or "room"
        return Placement("no_capacity", f"no node has enough left of what it asks for: {lacks}")
    if not evaluated:
        pool = metric.get("NodePool") or "default"
        return Placement("unplaceable", f"there is no node for it: none in node pool {pool} is ready to take work")
    needs = list(dict.fromkeys(_filter(text) for text in filtered)) or ["fits its constraints"]
    return Placement("unplaceable", f"no node {', or none '.join(needs)}")


def lacks_devices(metric: Shape | None) -> bool:
    """Of some node, whatever the others lack."""
    return metric is not None and _NO_DEVICES in _counts(metric.get("ConstraintFiltered"))


def _counts(found: Any) -> dict[str, int]:
    return {str(text): int(n) for text, n in (found or {}).items()} if isinstance(found, Mapping) else {}


def _dimension(text: str) -> str:
    if text.startswith("devices"):
        return "GPUs"
    if text.startswith("network"):
        return f"ports ({text.partition(':')[2].strip()})"
    return _DIMENSIONS.get(text, text)


def _filter(text: str) -> str:
    for begin, words in _ATTRIBUTES.items():
        if text.startswith(begin):
            return words
    return _FILTERS.get(text, f"meets {text}")


# --- ends --------------------------------------------------------------------------------------------------------


def exit_of(allocation: Allocation) -> TaskEvent | None:
    """The end of its process; None: there was none, or it runs."""
    return next((event for event in reversed(allocation.events) if event.kind == "Terminated"), None)


def ended_at(allocation: Allocation) -> float:
    """When its process ended, else when Nomad last heard of it. Unix time."""
    event = exit_of(allocation)
    return allocation.modified_at if event is None else event.time


def killed_by_hand(allocation: Allocation) -> bool:
    """A router had it killed: a SIGKILL through Nomad came before its end."""
    return any(event.kind == "Signaling" and event.details.get("signal") == "SIGKILL" for event in allocation.events)


def failure_of(allocation: Allocation, output: str) -> Failure:
    """Of one that failed. `output`: its last lines."""
    end = exit_of(allocation)
    if end is not None:
        code = int(end.details.get("exit_code") or 0)
        exceeded = "it was killed at its memory limit" if end.details.get("oom_killed") == "true" else None
        _, failure = outcome(code, killed=False, output=output, exceeded=exceeded)
        if failure is not None:
            return failure
    return Failure("start_failed", trouble(allocation) or "Nomad says that it failed, and not why", output)


def trouble(allocation: Allocation) -> str | None:
    """Why its process will never be; None: nothing is known to be wrong."""
    return next(
        (words for event in reversed(allocation.events) if (words := _words(event, allocation)) is not None), None
    )


def waits_for_secrets(allocation: Allocation) -> bool:
    """Its node does nothing else for it now."""
    return (
        allocation.client == "pending"
        and bool(allocation.events)
        and allocation.events[-1].kind in {"Task Setup", "Template"}
    )


def _words(event: TaskEvent, allocation: Allocation) -> str | None:
    node = allocation.node_name or "the node"
    text = event.message
    match event.kind:
        case "Driver Failure":
            if found := re.search(r'binary "([^"]*)" could not be found', text):
                return f"{node} has no program {found[1]} (the setting nomad.python)"
            return f"{node} could not start it: {shown(text.rpartition('desc = ')[2])}"
        case "Failed Artifact Download":
            return f"{node} could not fetch its code{_download(text)}"
        case "Failed Validation" | "Setup Failure":
            return f"{node} refused it: {shown(text)}"
        case "Template" if text.startswith("Missing:"):  # told after 3 s, whatever the reason is
            return f"{node} could not read {_named(text)}: it is not there, or Vault refuses it or does not answer"
        case "Killing" if text.startswith(("Template failed", "Vault")) or event.details.get("fails_task") == "true":
            return _secret(text)
        case "Task hook failed" if text.startswith("vault: "):  # comes after the `Killing` of a login that was refused
            return _secret(text)
        case "Task hook failed":
            return f"{node} could not prepare it: {shown(text)}"
    return None


_SECRET: Final = (
    (r"is sealed", "{secret} cannot be read: Vault is sealed"),
    (r"no secret exists", "{secret} does not exist, or not any more"),
    (r"role .* could not be found", "Vault does not know the role it reads secrets with (`modalnomad setup` makes it)"),
    (r"claim .* does not match", "Vault refuses its identity: it belongs to another environment"),
    (r"Code: 403|permission denied", "Vault does not let it read {secret}"),
    (
        r"connection refused|no such host|i/o timeout|deadline exceeded",
        "{secret} cannot be read: Vault does not answer",
    ),
    (r"map has no entry for key", "{secret} lacks a key"),
)


def _secret(text: str) -> str:
    for pattern, words in _SECRET:
        if re.search(pattern, text):
            return words.format(secret=_named(text))
    return f"its secrets could not be read: {shown(text)}"


def _named(text: str) -> str:
    path = re.search(r"vault\.read\(([^)]*)\)", text)
    if path is None:
        return "a secret"
    return "an anonymous secret" if "/_anonymous/" in path[1] else f"the secret {path[1].rpartition('/')[2]}"


_DOWNLOAD: Final = re.compile(
    r'failed to download artifact "([^"]*)": (?:getter subprocess failed: )?(?:exit status \d+: )?'
    r"(?:failed to download artifact: )?(?:Get \"[^\"]*\": )?(.*)",
    re.DOTALL,
)
_DEPLOY: Final = "`modalnomad deploy` puts it there again"


def _download(text: str) -> str:
    """From where, and why not."""
    if (found := _DOWNLOAD.fullmatch(text)) is None:
        return f": {shown(text)}"
    source, why = _DIGEST.sub(r"\1…", found[1]), found[2]
    if why.startswith("Checksums did not match"):
        return f": {source} is not what was deployed (another checksum; {_DEPLOY})"
    return f" from {source}: {shown(why)}" + (f" ({_DEPLOY})" if why.endswith(": 404") else "")


_DIGEST: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")
_HOST_PATH: Final = re.compile(r"(?<![\w:/.-])/(?:[^\s/:\"'`]+/)+([^\s/:\"'`]+)")


def shown(text: str) -> str:
    """One line, without folders of the machine it comes from. A long one without its middle: what was wanted stands at
    the beginning, the cause at the end."""
    line = _DIGEST.sub(r"\1…", _HOST_PATH.sub(r"…/\1", " ".join(text.split())))
    half = TEXT_SHOWN // 2
    return line if len(line) <= TEXT_SHOWN else f"{line[:half]}…{line[-half:]}"


_FIRST_LINE: Final = re.compile(r"modalnomad: \S.*, revision [0-9a-f]{32}, replica [0-9]+\.[0-9]+(: |$)")


def says_what_runs(line: str) -> bool:
    """The first line of a task, for people who read its log in Nomad: whoever reads it here knows that."""
    return _FIRST_LINE.match(line) is not None
