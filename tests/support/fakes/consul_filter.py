"""The part of Consul's filter expressions that is used: comparisons, `in`, `contains`, `is empty`, and, or, not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.support.fakes.consul_state import Refused

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|==|!=|\(|\)|[^\s()=!]+)')

Match = Callable[[Any], bool]


def matcher(text: str) -> Match:
    """What an object must be for `filter=text`; an empty filter takes all. Raises Refused."""
    if not text.strip():
        return lambda thing: True
    words = _Words(TOKEN.findall(text))
    try:
        found = _either(words)
    except IndexError:
        raise Refused(400, f"Failed to create boolean expression evaluator: cannot parse {text!r}") from None
    if words.left:
        raise Refused(400, f"Failed to create boolean expression evaluator: unexpected {words.take()!r}")
    return found


class _Words:
    def __init__(self, words: list[str]) -> None:
        self._words = words

    @property
    def left(self) -> bool:
        return bool(self._words)

    def take(self) -> str:
        return self._words.pop(0)

    def took(self, *wanted: str) -> bool:
        if self._words[: len(wanted)] != list(wanted):
            return False
        del self._words[: len(wanted)]
        return True


def _either(words: _Words) -> Match:
    first = _both(words)
    if not words.took("or"):
        return first
    second = _either(words)
    return lambda thing: first(thing) or second(thing)


def _both(words: _Words) -> Match:
    first = _one(words)
    if not words.took("and"):
        return first
    second = _both(words)
    return lambda thing: first(thing) and second(thing)


def _one(words: _Words) -> Match:
    if words.took("not"):
        inner = _one(words)
        return lambda thing: not inner(thing)
    if words.took("("):
        inner = _either(words)
        if not words.took(")"):
            raise IndexError
        return inner
    left = words.take()
    for phrase, negated in ((("is", "empty"), False), (("is", "not", "empty"), True)):
        if words.took(*phrase):
            return lambda thing, negated=negated: bool(_field(thing, left)) is negated  # type: ignore[misc]
    negated = words.took("not")
    operator, right = words.take(), words.take()
    return lambda thing: _compare(thing, left, operator, right) is not negated


def _compare(thing: Any, left: str, operator: str, right: str) -> bool:
    match operator:
        case "==" | "!=":
            return (str(_field(thing, left)) == _text(right)) is (operator == "==")
        case "in":
            return _text(left) in _field(thing, right)
        case "contains":
            return _text(right) in _field(thing, left)
        case "matches":
            return re.search(_text(right), str(_field(thing, left))) is not None
    raise Refused(400, f"Failed to create boolean expression evaluator: unknown operator {operator!r}")


def _text(word: str) -> str:
    return str(json.loads(word)) if word.startswith('"') else word.strip("`")


def _field(thing: Any, path: str) -> Any:
    for part in re.findall(r'\["?([^"\]]*)"?\]|([^.\[]+)', path):
        name = part[0] or part[1]
        thing = thing.get(name, "") if isinstance(thing, dict) else ""
    return thing
