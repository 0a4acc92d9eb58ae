"""The usual `.env` format, without variable expansion."""

from __future__ import annotations

import re

from modalnomad.model.errors import UserError

_LINE = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$", "'": "'"}


def parse_dotenv(text: str, name: str) -> dict[str, str]:
    """`KEY=value`, `KEY='as it is'`, `KEY="with \\n escapes"` (both may span lines), `# comment`, `export KEY=…`.

    Raises UserError with the number of the line; nothing of the line is repeated.
    """
    values: dict[str, str] = {}
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        number = index + 1
        line = lines[index].strip()
        index += 1
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{name}:{number} is not of the form KEY=VALUE")
        key, rest = match.group(1), match.group(2)
        quote = rest[:1]
        if quote in ("'", '"'):
            while (end := _closing(rest, quote)) is None:
                if index == len(lines):
                    raise UserError(f"{name}:{number} has a quote that is never closed")
                rest += "\n" + lines[index]
                index += 1
            if (tail := rest[end + 1 :].strip()) and not tail.startswith("#"):
                raise UserError(f"{name}:{number} has text after the closing quote")
            value = rest[1:end]
            values[key] = _unescape(value) if quote == '"' else value
        else:
            values[key] = re.split(r"[ \t]#", rest, maxsplit=1)[0].strip() if not rest.startswith("#") else ""
    return values


def _closing(text: str, quote: str) -> int | None:
    index = 1
    while index < len(text):
        if text[index] == "\\" and quote == '"':
            index += 1
        elif text[index] == quote:
            return index
        index += 1
    return None


def _unescape(value: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match.group(1), match.group(0)), value, flags=re.DOTALL)
