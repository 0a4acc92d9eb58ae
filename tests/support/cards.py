"""GPUs of nodes on machines that have none: said by the fake Nomad, or by a stand-in for Nomad's device plug-in.

The stand-in's source is gpu_plugin/main.go, with how to build it; TEST_GPU_PLUGIN_DIR names the folder it was built
into.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.nomad.shapes import device_group
from tests.support.nomad_agent import PLUGIN_DIR, NomadAgent, nomad_program
from tests.support.nomad_calls import Calls
from tests.support.ports import held_port

PLUGIN = "nomad-device-nvidia"


@dataclass(frozen=True)
class Cards:
    """Of one model on one node. `memory`: MiB of each."""

    name: str
    memory: int
    ids: tuple[str, ...]
    unhealthy: tuple[str, ...] = ()

    def group(self) -> dict[str, Any]:
        """As a fake node has it."""
        found = device_group(self.name, self.ids, attributes={"memory": {"Int": self.memory, "Unit": "MiB"}})
        for instance in found["Instances"]:
            instance["Healthy"] = instance["ID"] not in self.unhealthy
        return found


def why_not() -> str:
    """Why a real Nomad with cards cannot be had here. Empty: it can."""
    if nomad_program() is None:
        return "no `nomad` on PATH: only the fake has GPUs"
    named = os.environ.get(PLUGIN_DIR)
    if named and (Path(named) / PLUGIN).is_file():
        return ""
    return f"{PLUGIN_DIR} names no folder with {PLUGIN}: only the fake has GPUs"


class Shelf:
    """Which cards nodes have: files for real ones. Nomad takes a change within some 5 s."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def change(self, calls: Calls, fake: FakeNomad | None, id: str, cards: Sequence[Cards]) -> None:
        """A node has these from now on, and Nomad knows. `fake`: whose node it is; None: a real one's."""
        name = (await calls.get(f"/v1/node/{id}"))["Name"]
        if fake is None:
            self.put(name, cards)
        else:
            fake.devices(id, [each.group() for each in cards])
        wanted = {each.name: set(each.ids) - set(each.unhealthy) for each in cards}
        await calls.until(f"/v1/node/{id}", lambda node: _well(node) == wanted)

    def put(self, node: str, cards: Sequence[Cards]) -> dict[str, Any]:
        """Now it has these; the configuration of its plug-ins."""
        path = self._folder / f"{node}.json"
        said = [{"name": c.name, "memory": c.memory, "ids": c.ids, "unhealthy": c.unhealthy} for c in cards]
        new = path.with_suffix(".new")
        new.write_text(json.dumps(said))
        new.replace(path)
        return {PLUGIN: {"cards": str(path)}}


class NomadWithCards(NomadAgent):
    """A real Nomad with nodes of these names; `nodes`: their ids. See `why_not`."""

    def __init__(self, shelf: Shelf, cards: Mapping[str, Sequence[Cards]]) -> None:
        super().__init__()
        self._cards = {f"client-{name}": shelf.put(name, each) for name, each in cards.items()}
        self._names = tuple(cards)
        self.parts = ("server", *self._cards)
        self.nodes: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        found = await self.calls.until(
            "/v1/nodes", lambda nodes: [node["Status"] for node in nodes] == ["ready"] * len(self._names)
        )
        self.nodes = {node["Name"]: node["ID"] for node in found}
        return self

    def _configuration(self, part: str) -> dict[str, Any]:
        found = super()._configuration(part)
        if part in self._cards:
            port = self._open.enter_context(held_port())
            found["plugin"] += [{name: [{"config": [config]}]} for name, config in self._cards[part].items()]
            found["advertise"] |= {"http": f"127.0.0.1:{port}"}
            found |= {"name": part.removeprefix("client-"), "ports": {"http": port}}
        return found


def _well(node: dict[str, Any]) -> dict[str, set[str]]:
    """Model → ids."""
    devices = node["NodeResources"]["Devices"] or ()
    return {each["Name"]: {one["ID"] for one in each["Instances"] if one["Healthy"]} for each in devices}
