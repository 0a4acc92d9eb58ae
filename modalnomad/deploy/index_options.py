"""Where packages come from: pip's and uv's options, as one set for the single resolution of an image. Pure.

pip looks at all its indexes and takes the best version; uv takes the first index that has the package at all. An
image's `index_url` stays in front of the machine's usual index (most such indexes hold only a few packages, and the
runner's own must come from somewhere); `extra_index_url` of a pip step makes uv look at all of them, as pip does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
MASK = "****"

_WITH_VALUE = {
    "-i": "index_url",
    "--index-url": "index_url",
    "--default-index": "index_url",
    "--extra-index-url": "extra_index_url",
    "--index": "extra_index_url",
    "-f": "find_links",
    "--find-links": "find_links",
    "--prerelease": "prerelease",
    "--index-strategy": "strategy",
    "--no-binary": "argument",
    "--only-binary": "argument",
    "--no-binary-package": "argument",
    "--no-build-package": "argument",
    "--no-build-isolation-package": "argument",
    "--config-setting": "argument",
    "--exclude-newer": "argument",
    "--trusted-host": "argument",
    "--resolution": "resolution",
    "--upgrade-strategy": "nothing",
    "--progress-bar": "nothing",
    "--root-user-action": "nothing",
    "--timeout": "nothing",
    "--retries": "nothing",
    "--cache-dir": "nothing",
    "--link-mode": "nothing",
}
_ALONE = {
    "--pre": "pre",
    "--no-deps": "no_deps",
    "--no-index": "argument",
    "--no-build": "argument",
    "--no-build-isolation": "argument",
    **dict.fromkeys(
        (
            *("-U", "--upgrade", "--force-reinstall", "--reinstall", "--ignore-installed", "-I", "--no-cache-dir"),
            *("--no-cache", "-q", "--quiet", "-v", "--verbose", "--prefer-binary", "--no-input", "--system", "--user"),
            *("--break-system-packages", "--disable-pip-version-check", "--no-warn-script-location", "--no-color"),
            *("--compile-bytecode", "--compile", "--no-compile", "--use-pep517", "--no-python-version-warning"),
            "--no-progress",
        ),
        "nothing",
    ),
}


@dataclass(slots=True)
class IndexOptions:
    """What all install steps of an image ask for together. Addresses may hold credentials: not shown."""

    indexes: list[str] = field(default_factory=list, repr=False)
    """Addresses looked at before the machine's usual index, in order."""
    find_links: list[str] = field(default_factory=list, repr=False)
    prerelease: str | None = None
    strategy: str | None = None
    resolution: str | None = None
    arguments: list[str] = field(default_factory=list)
    """Options passed to uv as they are."""

    def environment(self) -> dict[str, str]:
        """As uv's variables: command lines can be read by every user of the machine."""
        variables = {
            "UV_INDEX": " ".join(self.indexes),
            "UV_FIND_LINKS": ",".join(self.find_links),
            "UV_PRERELEASE": self.prerelease or "",
            "UV_INDEX_STRATEGY": self.strategy or "",
            "UV_RESOLUTION": self.resolution or "",
        }
        return {name: value for name, value in variables.items() if value}

    def secrets(self) -> frozenset[str]:
        """Credentials in the addresses: `user:password`, and the password alone."""
        found: set[str] = set()
        for address in (*self.indexes, *self.find_links):
            for pair in CREDENTIALS.findall(address):
                found.update((pair, pair.partition(":")[2]))
        return frozenset(found - {""})

    def masked(self) -> tuple[dict[str, str], dict[str, str]]:
        """`environment()` with each pair of credentials replaced by a mask, and mask → credentials."""
        reveal: dict[str, str] = {}
        shown = {}
        for name, value in self.environment().items():
            for pair in CREDENTIALS.findall(value):
                mask = next((m for m, p in reveal.items() if p == pair), f"{MASK}{len(reveal) + 1}{MASK}")
                reveal[mask] = pair
                value = value.replace(f"://{pair}@", f"://{mask}@")
            shown[name] = value
        return shown, reveal

    def add(self, *, index_url: str | None = None, extra_index_url: str | Sequence[str] | None = None) -> None:
        """Addresses of one step; each is looked at once."""
        extra = [extra_index_url] if isinstance(extra_index_url, str) else list(extra_index_url or ())
        for address in filter(None, [index_url, *extra]):
            if address not in self.indexes:
                self.indexes.append(address)

    def add_links(self, find_links: str | None) -> None:
        """A folder (relative to the one deploy runs in) or an address."""
        if find_links:
            place = find_links if "://" in find_links else str(Path(find_links).absolute())
            if place not in self.find_links:
                self.find_links.append(place)


def parse_options(text: str | Sequence[str], options: IndexOptions, *, pip: bool) -> tuple[bool, list[str]]:
    """Take pip/uv options into `options`. Returns whether --no-deps was among them, and what is not understood."""
    try:
        words = shlex.split(text) if isinstance(text, str) else list(text)
    except ValueError as error:
        return False, [f"{text!r} ({error})"]
    no_deps = False
    unknown: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name in _ALONE and not joined:
            no_deps = no_deps or _ALONE[name] == "no_deps"
            _take_alone(_ALONE[name], name, options)
        elif name in _WITH_VALUE and (joined or queue):
            _take_value(_WITH_VALUE[name], name, value if joined else queue.pop(0), options, pip)
        else:
            unknown.append(CREDENTIALS.sub(MASK, word))
    return no_deps, unknown


def _take_alone(meaning: str, name: str, options: IndexOptions) -> None:
    if meaning == "pre":
        options.prerelease = "allow"
    elif meaning == "argument" and name not in options.arguments:
        options.arguments.append(name)


def _take_value(meaning: str, name: str, value: str, options: IndexOptions, pip: bool) -> None:
    match meaning:
        case "index_url":
            options.add(index_url=value)
        case "extra_index_url":
            options.add(extra_index_url=value)
            if pip:
                options.strategy = options.strategy or "unsafe-best-match"
        case "find_links":
            options.add_links(value)
        case "prerelease":
            options.prerelease = value
        case "strategy":
            options.strategy = value
        case "resolution":
            options.resolution = value
        case "argument":
            if name == "--trusted-host":
                name = "--allow-insecure-host"
            options.arguments += [name, value]
