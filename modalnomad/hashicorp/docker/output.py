"""What an engine says while it builds, pulls and pushes: lines for people, and how it ended."""

from __future__ import annotations

import json
import re
import shlex
from collections import deque
from collections.abc import Callable
from typing import Final

from modalnomad_sdk.store import Masker
from modalnomad_sdk.store.build import out_of_space

from modalnomad.hashicorp.docker.dockerfile import CARRIED, SHIELD
from modalnomad.hashicorp.docker.engine import Event, refused
from modalnomad.model.errors import BackendRefused, ImageBuildFailed

COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LAST: Final = 60
"""Lines of a build's output that its error shows."""
NO_BUILDKIT: Final = (
    "the engine's own builder is used, which has no RUN --mount and no here-documents: write the Dockerfile without "
    "them"
)
MOMENTOUS: Final = ("Pushed", "Layer already exists", "Pull complete", "Already exists", "Download complete")
"""Of a layer; what is said in between is a bar that moves."""


BORING: Final = re.compile(r" ---> |Removing intermediate container |Successfully (built|tagged) ")
"""What the builder says of its own work."""
SHELL: Final = 3
"""Words of a command in a shell."""
STEP: Final = re.compile(r"(Step \d+/\d+ : RUN )(\[.*])")


def _readable(line: str) -> str:
    """A step as its command would be typed, without what shields it."""
    if (match := STEP.fullmatch(line)) is None:
        return line
    try:
        words = [str(word) for word in json.loads(match[2])]
    except ValueError:
        return line
    words = words[SHIELD:] if words[2:3] == [CARRIED] else words
    return match[1] + (words[2] if words[:2] == ["/bin/sh", "-c"] and len(words) == SHELL else shlex.join(words))


class BuildOutput:
    """Events of a build: whole lines to `report`, without colours and secrets."""

    def __init__(self, report: Callable[[str], None], mask: Masker) -> None:
        self._report = report
        self._mask = mask
        self._rest = ""
        self._last: deque[str] = deque(maxlen=LAST)

    def take(self, event: Event) -> None:
        """Raises ImageBuildFailed, BackendRefused."""
        if "error" in event:
            raise self._failure(str(event["error"]).strip(), event)
        if (text := event.get("stream")) is not None:
            *whole, self._rest = (self._rest + COLOUR.sub("", str(text))).split("\n")
            for line in whole:
                self._tell(line.rstrip("\r").rpartition("\r")[2])  # of a bar that moves, its end
        elif (status := event.get("status")) is not None and not event.get("progressDetail"):
            self._tell(f"{event.get('id', '')} {status}".strip())

    def finish(self) -> None:
        """The build has ended well."""
        self._tell(self._rest)
        self._rest = ""

    def _tell(self, line: str) -> None:
        if line.strip() and not BORING.match(line):
            line = self._mask(_readable(line.rstrip()))
            self._last.append(line)
            self._report(line)

    def _failure(self, words: str, event: Event) -> ImageBuildFailed | BackendRefused:
        self.finish()
        words = self._mask(words)
        if out_of_space(words) or out_of_space("\n".join(self._last)):
            return BackendRefused(
                f"no space left on the Docker engine's device: {words}", "remove images there: docker image prune"
            )
        hint = NO_BUILDKIT if "BuildKit" in words else None
        code = (event.get("errorDetail") or {}).get("code")
        what = f"a command of the image failed (exit status {code})" if code else "the image could not be built"
        return ImageBuildFailed(f"{what}: {words}", "\n".join([*self._last, words]), hint, told=True)


class Progress:
    """Events of a pull or a push. `digest`: what the registry calls what was pushed; empty: the engine did not tell."""

    def __init__(self, report: Callable[[str], None], whom: str) -> None:
        self._report = report
        self._whom = whom
        self.digest = ""

    def take(self, event: Event) -> None:
        """Raises BackendRefused, BackendUnreachable."""
        if "error" in event:
            raise refused(str(event["error"]), self._whom)
        if digest := (event.get("aux") or {}).get("Digest"):
            self.digest = str(digest)
        if (status := str(event.get("status", ""))) in MOMENTOUS:
            self._report(f"{event.get('id', '')}: {status}")
