"""What people read in Nomad's own pages: names, descriptions, links, the program's text."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from modalnomad.model.revision import Revision
from modalnomad.render.nomad_rendering import Json, Rendering
from modalnomad.settings import NomadSettings

DESCRIPTION_LIMIT: Final = 1000
"""Characters that Nomad takes (https://developer.hashicorp.com/nomad/docs/job-specification/ui)."""
SOURCE_LIMIT: Final = 500_000
"""Characters of source; servers take 1 MB (`job_max_source_size`)."""
PREFIX_LIMIT: Final = 28
"""Characters of what stands before a child's time in its name: one line in lists."""
LINKS: Final = 10
LONGEST: Final = 120


def ui(revision: Revision, rendering: Rendering) -> Json:
    """Children show the same as their parent. Markdown of what users wrote is escaped."""
    urls = list(rendering.web_urls.items())
    links = [{"Label": "Open" if len(urls) == 1 else f"Open {name}", "Url": url} for name, url in urls[:LINKS]]
    found: Json = {"Description": _description(revision, rendering)}
    if links:
        found["Links"] = links
    return found


def _description(revision: Revision, rendering: Rendering) -> str:
    function = revision.function
    when = datetime.fromtimestamp(rendering.deployed_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    by = f" by {escaped(rendering.deployed_by)}" if rendering.deployed_by else ""
    facts = [*_url(rendering), _replicas(revision), _size(revision, rendering.nomad)]
    if function.scaling.scaledown_window:
        facts.append(f"idle after {function.scaling.scaledown_window:g} s")
    name = f"**{escaped(revision.app)} / {escaped(function.tag)}**"
    lines = (
        f"{name} — revision **r{rendering.version}**, deployed {when}{by}",
        " · ".join(facts),
        "Each launch is one replica, named *number-why-request*. Red without an allocation: it waits for room.",
    )
    return "\n\n".join(lines)


def _url(rendering: Rendering) -> list[str]:
    """The first, as code, in which nothing is markup but the backtick."""
    for url in rendering.web_urls.values():
        clean = "".join(url.split())
        return [f"`{clean}`"] if len(clean) <= 2 * LONGEST and "`" not in clean else []
    return []


def _replicas(revision: Revision) -> str:
    scaling = revision.function.scaling
    if scaling.max_containers is None:
        return f"{scaling.min_containers} or more replicas"
    return f"{scaling.min_containers}–{scaling.max_containers} replicas"


def _size(revision: Revision, nomad: NomadSettings) -> str:
    resources = revision.function.resources
    cores = resources.cpu[0] if resources.cpu else nomad.cpu / nomad.core_mhz
    memory = resources.memory[0] if resources.memory else nomad.memory
    gpu = f", GPU {escaped(' or '.join(resources.gpu))}" if resources.gpu else ""
    return f"{cores:g} cores, {memory} MiB{gpu}"


def escaped(text: str) -> str:
    """One short line that means itself in Markdown (CommonMark 2.4: a backslash before ASCII punctuation)."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    cut = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", cut)


def submission(revision: Revision, rendering: Rendering) -> Json:
    """The program's text under a line that says which revision it is of, as Nomad shows it under Definition. Left out
    where the Function has values of secrets in it (`Secret.from_dict`): they may be written there."""
    when = datetime.fromtimestamp(rendering.deployed_at, UTC).isoformat(timespec="seconds")
    by = f" by {' '.join(rendering.deployed_by.split())}" if rendering.deployed_by else ""
    head = f"# {revision.app} / {revision.function.tag}, revision r{rendering.version} ({revision.id})\n# {when}{by}\n"
    source = rendering.source
    if source and any(ref.anonymous is not None for ref in revision.secrets):
        source = "# the program's text is not shown: values of secrets may be written in it\n"
    if len(source) > SOURCE_LIMIT:
        source = f"{source[:SOURCE_LIMIT]}\n# … cut here: {len(source)} characters in all\n"
    return {"Source": f"{head}\n{source}", "Format": "hcl2"}


def launch_prefix(number: int, reason: str, request_id: str) -> str:
    """`003-requests-q7f3k2`: the only text of its own that a replica has in lists."""
    word = re.search(r"[a-z]+", reason.lower())
    short = re.sub(r"[^a-z0-9]", "", request_id.lower())[:8]
    parts = (f"{number:03}", word[0][:12] if word else "", short)
    return "-".join(part for part in parts if part)[:PREFIX_LIMIT]
