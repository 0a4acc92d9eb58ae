"""READMEs of Terraform's modules and examples, made from what they declare.

`scripts/docs` writes them (`python -m tests.support.terraform_docs`), a test compares. What a module is for stands at
the top of its main.tf; its usage is how an example calls it."""

from __future__ import annotations

import json
import re
from typing import Final

from modalnomad.cli.reference import MADE
from tests.support.hcl import Value
from tests.support.repository import ROOT
from tests.support.terraform_check.model import Module, Placed, Texts, modules, texts
from tests.support.terraform_check.shape import required

EXAMPLES: Final = ("full", "minimal")
"""Where usages are looked for, first to last."""


def pages() -> dict[str, str]:
    """Path below the checkout → content."""
    files = texts()
    return {f"{folder}/README.md": page(module, files) for folder, module in modules(files).items()}


def page(module: Module, files: Texts) -> str:
    """One README."""
    kind = "Example" if module.is_root else "Module"
    parts = [
        [MADE.rstrip("\n")],
        [f"# {kind} {module.folder.rpartition('/')[2]}"],
        *introduction(files[f"{module.folder}/main.tf"]),
        usage(module, files),
        section("Needs", ["what", "version"], needs(module)),
        section("Variables", ["variable", "type", "default", "meaning"], variables(module)),
        section("Outputs", ["output", "meaning"], outputs(module)),
        section("Modules", ["module", "source"], called(module)) if module.is_root else [],
        section("Makes", ["resource", "how often"], made(module, "resource")),
        section("Reads", ["data source", "how often"], made(module, "data")),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def introduction(text: str) -> list[list[str]]:
    """The comment at the top of a file: paragraphs, and commands where it is indented."""
    comment = re.match(r"(?:#[^\n]*\n)*", text)
    lines = [line[1:].rstrip() for line in (comment[0] if comment else "").splitlines()]
    found: list[list[str]] = [[]]
    for line in lines:
        if not line:
            found.append([])
        elif line.startswith("   "):
            found[-1].append(line.strip())
            found[-1] = found[-1] if found[-1][0] == "```sh" else ["```sh", *found[-1]]
        else:
            found[-1].append(line.strip())
    return [[*part, "```"] if part and part[0] == "```sh" else part for part in found if part]


def usage(module: Module, files: Texts) -> list[str]:
    """How an example calls it."""
    name = module.folder.rpartition("/")[2]
    for example in EXAMPLES:
        text = files.get(f"terraform/examples/{example}/main.tf", "")
        for call in re.findall(r'^module "[^"]+" \{\n.*?^\}$', text, re.MULTILINE | re.DOTALL):
            if f'/modules/{name}"' in call and not module.is_root:
                said = f"As [examples/{example}](../../examples/{example}/main.tf) calls it:"
                return ["## Usage", "", said, "", "```hcl", *call.splitlines(), "```"]
    return []


def section(title: str, heads: list[str], rows: list[list[str]]) -> list[str]:
    """A heading and a table; nothing where there are no rows."""
    if not rows:
        return []
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"## {title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]


def needs(module: Module) -> list[list[str]]:
    """Terraform and providers."""
    rows = [
        ["Terraform", f"`{placed.block.arguments['required_version'].literal}`"] for placed in module.of("terraform")
    ]
    return rows + [[f"`{name}`", f"`{value.literal['version']}`"] for name, value in required(module).items()]


def variables(module: Module) -> list[list[str]]:
    """Those that must be written come first."""
    rows = [
        [f"`{name}`", f"`{shown(placed.block.arguments['type'])}`", default(placed), text(placed)]
        for name, placed in module.variables.items()
    ]
    return sorted(rows, key=lambda row: row[2] != REQUIRED)


REQUIRED: Final = "**required**"


def default(placed: Placed) -> str:
    """Of a variable."""
    value = placed.block.arguments.get("default")
    if value is None:
        return REQUIRED
    if isinstance(value.literal, dict | list) and not value.literal:
        return f"`{json.dumps(value.literal)}`"
    return f"`{shown(value)}`"


def text(placed: Placed) -> str:
    """Its description."""
    return str(placed.block.arguments["description"].literal).replace("\n", " ")


def shown(value: Value) -> str:
    """An expression on one line."""
    lines = [re.sub(r"\s+", " ", line).strip() for line in re.sub(r"#.*", "", value.text).splitlines()]
    joined = ""
    for line in filter(None, lines):
        apart = "" if not joined else " " if joined[-1] in "{[(," or line[0] in "}])" else ", "
        joined += apart + line
    return joined.replace("( ", "(").replace(" )", ")")


def outputs(module: Module) -> list[list[str]]:
    """With a word where the value is not shown."""
    return [[f"`{name}`", f"{text(one)}{' Sensitive.' * secret(one)}"] for name, one in module.outputs.items()]


def secret(placed: Placed) -> bool:
    """An output that is marked so."""
    return "sensitive" in placed.block.arguments


def called(module: Module) -> list[list[str]]:
    """Modules, linked."""
    return [
        [f"`{name}`", f"[{source}]({source}/README.md)"]
        for name, call in module.calls.items()
        for source in [str(call.block.arguments["source"].literal)]
    ]


def made(module: Module, kind: str) -> list[list[str]]:
    """Resources or data sources."""
    return [[f"`{placed.address}`", often(placed)] for placed in module.of(kind)]


def often(placed: Placed) -> str:
    """How many there are of it."""
    arguments = placed.block.arguments
    if "for_each" in arguments:
        return f"for each of `{shown(arguments['for_each'])}`"
    if "count" not in arguments:
        return "one"
    condition, _, rest = shown(arguments["count"]).rpartition(" ? ")
    return f"one if `{condition}`" if rest == "1 : 0" else f"`{shown(arguments['count'])}`"


if __name__ == "__main__":
    for name, content in pages().items():
        (ROOT / name).write_text(content, "utf-8")
