"""GPUs as Nomad is asked for them (https://developer.hashicorp.com/nomad/docs/job-specification/device)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Final

from modalnomad.model.errors import UserError
from modalnomad.model.gpus import ANY, Choice, parse_choice
from modalnomad.render.nomad_rendering import Json

DEVICE: Final = "nvidia/gpu"
MODEL: Final = "${device.model}"
MEMORY: Final = "${device.attr.memory}"
WEIGHT: Final = 100
"""Of each affinity; only their proportions count."""
SIZES: Final = (12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 128, 141, 180, 192, 288)
"""GB that stand in names of models."""


def devices(wanted: Sequence[str]) -> list[Json]:
    """One request for all choices: any of them will do, the earlier ones are preferred (see `_order`).

    A card is told by the words of its model, as on one machine. Where choices ask for different amounts of memory, the
    larger ones are told by the number of GB in the model's name (which not every model has). All cards of a replica
    are of one model.

    Raises:
        UserError: choices with different counts, which one request cannot say; no type at all.
    """
    choices = [parse_choice(text) for text in wanted]
    if not choices:
        return []
    counts = {choice.count for choice in choices}
    if len(counts) > 1:
        raise UserError(
            f"gpu={list(wanted)!r}: all choices must ask for the same number of cards on Nomad",
            f'write the same count behind each, such as "{choices[0].type}:{choices[0].count}"',
        )
    least = min(choice.memory for choice in choices)
    patterns = [_pattern(choice, least) for choice in choices]
    constraints: list[Json] = []
    if all(pattern is not None for pattern in patterns):
        constraints.append(_by_model("|".join(str(pattern) for pattern in dict.fromkeys(patterns))))
    if least:
        # A plain number would not be comparable with the attribute, which has a unit.
        mib = math.ceil(min(choice.least for choice in choices))
        constraints.append({"LTarget": MEMORY, "RTarget": f"{mib} MiB", "Operand": ">="})
    request: Json = {"Name": DEVICE, "Count": counts.pop()}
    if constraints:
        request["Constraints"] = constraints
    if affinities := _order(list(dict.fromkeys(patterns))):
        request["Affinities"] = affinities
    return [request]


def _order(patterns: Sequence[str | None]) -> list[Json]:
    """The first choice is liked as one of the first, one of the first two …: 1 for it, 0 for the last one, the others
    in equal steps between. Nomad adds how full a node is (0 to 1) to that: with steps as large as can be, two choices
    come in their order whatever the nodes hold."""
    named = list(itertools.takewhile(lambda pattern: pattern is not None, patterns))
    others = len(named) < len(patterns)  # any card will do, after those that are named
    count = len(named) if others else len(named) - 1
    return [_by_model("|".join(str(each) for each in named[: n + 1])) | {"Weight": WEIGHT} for n in range(count)]


def _by_model(pattern: str) -> Json:
    return {"LTarget": MODEL, "RTarget": rf"(?i)(^|[^a-z0-9])({pattern})([^a-z0-9]|$)", "Operand": "regexp"}


def _pattern(choice: Choice, least: int) -> str | None:
    """Words of the model's name, as a Go regular expression. None: any model. Of the user's text letters and digits."""
    words = re.findall(r"[A-Z0-9]+", choice.type)
    if not words:
        raise UserError(f"gpu={choice.type!r}: there is no type in it", 'write one as "H100", "H100:2" or "any"')
    name = None if choice.type == ANY else "[^a-z0-9]+".join(words)
    if choice.memory <= least:
        return name
    sizes = "|".join(str(size) for size in sorted({choice.memory, *SIZES}) if size >= choice.memory)
    size = f"({sizes}) ?GB"
    return size if name is None else f"{name}.*[^a-z0-9]{size}"
