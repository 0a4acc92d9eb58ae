"""The part of consul-template's language that the platform's templates use. Pure.

`{{ with secret "PATH" }}…{{ end }}`, `{{ range $k, $v := .Data.data }}…{{ end }}`, and the values `.Data.data`,
`.Data.data.KEY`, `index .Data.data "KEY"`, `$k`, `$v`, `env "NAME"`, each also `| toJSON`. Anything else is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

ACTION: Final = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
SECRET: Final = re.compile(r'with secret "([^"]+)"')
RANGE: Final = re.compile(r"range (\$\w+), (\$\w+) := (\.[\w.]+)")
INDEX: Final = re.compile(r'index (\.[\w.]+) "([^"]*)"')
ENV: Final = re.compile(r'env "([^"]*)"')
HTML: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What Go escapes beyond JSON's own rules."""


class NotRendered(Exception):
    """Text as after `Template failed: `."""


def secrets_of(text: str) -> list[str]:
    """Paths it reads, in order, each once."""
    return list(dict.fromkeys(SECRET.findall(text)))


def render(text: str, secrets: Mapping[str, Any], variables: Mapping[str, str], *, strict: bool) -> str:
    """`secrets`: path → the `data` of Vault's answer; `strict`: ErrMissingKey. Raises NotRendered."""
    words = _words(text)
    rendered, rest = _block(words, {"": None, "env": variables}, secrets, strict)
    if rest:
        raise NotRendered("(dynamic): parse: template: :1: unexpected {{end}}")
    return rendered


def to_json(value: Any) -> str:
    """As Go's encoding/json writes it: sorted keys, no blanks, `<`, `>`, `&` and two line separators escaped."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return "".join(HTML.get(letter, letter) for letter in text)


def _words(text: str) -> list[tuple[bool, str]]:
    """(is an action, its text), blanks trimmed where `{{-` and `-}}` say so."""
    found: list[tuple[bool, str]] = []
    at, trim = 0, False
    for match in ACTION.finditer(text):
        plain = text[at : match.start()]
        plain = plain.lstrip() if trim else plain
        found += [(False, plain.rstrip() if match[1] else plain), (True, match[2])]
        at, trim = match.end(), bool(match[3])
    rest = text[at:]
    if "{{" in rest:
        raise NotRendered("(dynamic): parse: template: :1: unclosed action")
    return [*found, (False, rest.lstrip() if trim else rest)]


def _block(
    words: list[tuple[bool, str]], scope: Mapping[str, Any], secrets: Mapping[str, Any], strict: bool
) -> tuple[str, list[tuple[bool, str]]]:
    """Up to the block's end → its text, and what follows (with its `end` first, when there is one)."""
    out = []
    while words:
        (action, text), words = words[0], words[1:]
        if not action:
            out.append(text)
        elif text == "end":
            return "".join(out), [(True, "end"), *words]
        elif found := SECRET.fullmatch(text):
            inside = {**scope, "": {"Data": secrets.get(found[1])}}
            words = _inner(words, [inside], out, secrets, strict)
        elif found := RANGE.fullmatch(text):
            items = _dotted(found[3], scope, strict)
            scopes = [{**scope, found[1]: key, found[2]: items[key]} for key in sorted(items)]
            words = _inner(words, scopes, out, secrets, strict)
        else:
            out.append(_value(text, scope, strict))
    return "".join(out), []


def _inner(
    words: list[tuple[bool, str]],
    scopes: list[dict[str, Any]],
    out: list[str],
    secrets: Mapping[str, Any],
    strict: bool,
) -> list[tuple[bool, str]]:
    rest = words
    for scope in scopes:
        text, rest = _block(words, scope, secrets, strict)
        out.append(text)
    if not scopes:
        depth = 1
        while rest and depth:
            action, text = rest[0]
            depth += (text.startswith(("with", "range")) - (text == "end")) if action else 0
            rest = rest[1:]
        return rest
    if not rest:
        raise NotRendered("(dynamic): parse: template: :1: unexpected EOF")
    return rest[1:]


def _value(text: str, scope: Mapping[str, Any], strict: bool) -> str:
    what, *pipes = [each.strip() for each in text.split("|")]
    if found := INDEX.fullmatch(what):
        value = _dotted(found[1], scope, strict).get(found[2])
    elif found := ENV.fullmatch(what):
        value = scope["env"].get(found[1], "")
    elif what.startswith("$") and what in scope:
        value = scope[what]
    elif re.fullmatch(r"(\.\w+)+", what):
        value = _dotted(what, scope, strict)
    else:
        raise NotRendered(f"(dynamic): parse: template: this fake does not know {{{{ {text} }}}}")
    if pipes == ["toJSON"]:
        return to_json(value)
    if pipes:
        raise NotRendered(f"(dynamic): parse: template: this fake does not know {{{{ {text} }}}}")
    return value if isinstance(value, str) else "<no value>" if value is None else to_json(value)


def _dotted(what: str, scope: Mapping[str, Any], strict: bool) -> Any:
    value = scope[""]
    for name in what[1:].split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif strict:
            raise NotRendered(
                f'(dynamic): execute: template: :1: executing "" at <{what}>: map has no entry for key "{name}"'
            )
        else:
            return None
    return value


def variables_of(text: str) -> dict[str, str]:
    """The variables of a rendered file with `Envvars`. Raises NotRendered."""
    found = {}
    for line in text.split("\n"):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, there, value = line.partition("=")
        if not there or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./]*", name.strip()):
            raise NotRendered("failed to read environment variables: missing =")
        quoted = value.startswith('"') and value.endswith('"')
        found[name.strip()] = str(json.loads(value, strict=False)) if quoted else value.partition("#")[0].strip()
    return found
