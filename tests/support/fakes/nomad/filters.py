"""Filter expressions of lists (go-bexpr), as far as they are used; the rest is refused as nonsense is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

from tests.support.fakes.nomad.state import Refused

Test = Callable[[Any], bool]

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<sign>==|!=|\(|\))|(?P<word>[\w-]+(?:\.[\w-]+|\["[^"]*"\])*))"""
)
_MISSING: Final = object()


def compiled(text: str) -> Test:
    """What `filter=` says of an object. Raises Refused(400)."""
    parser = _Parser(text)
    found = parser.alternatives()
    if parser.tokens:
        raise parser.wrong()
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self._length = len(text)
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise _unread(f"1:{position + 2} ({position + 1}): no match found")
            self.tokens.append((str(match.lastgroup), match.group(str(match.lastgroup))))
            position = match.end()

    def wrong(self) -> Refused:
        """Where it ends early, or goes on."""
        return _unread(f"1:{self._length + 1} ({self._length}): no match found")

    def _next(self, *kinds: str) -> tuple[str, str]:
        if not self.tokens or (kinds and self.tokens[0][0] not in kinds):
            raise self.wrong()
        return self.tokens.pop(0)

    def _takes(self, *words: str) -> bool:
        if [token[1] for token in self.tokens[: len(words)]] != list(words):
            return False
        del self.tokens[: len(words)]
        return True

    def alternatives(self) -> Test:
        """… or …"""
        tests = [self._together()]
        while self._takes("or"):
            tests.append(self._together())
        return lambda found: any(test(found) for test in tests)

    def _together(self) -> Test:
        tests = [self._single()]
        while self._takes("and"):
            tests.append(self._single())
        return lambda found: all(test(found) for test in tests)

    def _single(self) -> Test:
        if self._takes("not"):
            test = self._single()
            return lambda found: not test(found)
        if self._takes("("):
            inner = self.alternatives()
            if not self._takes(")"):
                raise self.wrong()
            return inner
        return self._match()

    def _match(self) -> Test:
        kind, left = self._next("word", "text")
        for inside, negated in (("not in", True), ("in", False)):
            if self._takes(*inside.split()):
                value, (_, path) = _value(left), self._next("word")
                return lambda found: (value in (_read(found, path) or ())) != negated
        if kind != "word":
            raise self.wrong()
        for empty, negated in (("is not empty", True), ("is empty", False)):
            if self._takes(*empty.split()):
                return lambda found: (not _read(found, left)) != negated
        for words, (compare, negated) in _OPERATORS.items():
            if self._takes(*words.split()):
                right = _value(self._next("word", "text")[1])
                return lambda found: compare(_read(found, left), right) != negated
        raise self.wrong()


def _equal(found: Any, value: str) -> bool:
    return (str(found).lower() if isinstance(found, bool) else "" if found is None else str(found)) == value


def _contains(found: Any, value: str) -> bool:
    return value in (found or ())


def _matches(found: Any, value: str) -> bool:
    return re.search(value, str(found or "")) is not None


_OPERATORS: Final[dict[str, tuple[Callable[[Any, str], bool], bool]]] = {
    "==": (_equal, False),
    "!=": (_equal, True),
    "contains": (_contains, False),
    "not contains": (_contains, True),
    "matches": (_matches, False),
    "not matches": (_matches, True),
}


def _value(token: str) -> str:
    return str(json.loads(token)) if token.startswith('"') else token.strip("`")


def _read(found: Any, path: str) -> Any:
    """The value at a selector. A key that a map lacks is empty; a field that an object lacks is an error."""
    parts = [a or b for a, b in re.findall(r'\["([^"]*)"\]|([\w-]+)', path)]
    inside_map = False
    for number, part in enumerate(parts):
        if isinstance(found, list):
            found = found[int(part)] if part.isdigit() and int(part) < len(found) else None
            continue
        if found is None or inside_map:
            found = found.get(part) if found else None
            continue
        value = found.get(part, _MISSING)
        if value is _MISSING:
            pointer = "/" + "/".join(parts[: number + 1])
            raise Refused(
                400,
                f"failed to read result page: error finding value in datum: {pointer} at part {number}: "
                f'couldn\'t find key: struct field with name "{part}"',
            )
        inside_map = part in {"Meta", "Attributes", "TaskStates", "Env", "Drivers"}
        found = value
    return found


def _unread(what: str) -> Refused:
    return Refused(400, f"failed to create result paginator: failed to read filter expression: {what}")
