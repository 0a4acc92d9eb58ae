"""The pages people read: every link leads somewhere, every page can be found, every code of the router is explained."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from modalnomad.model.replica import FailureCode
from modalnomad.router.codes import CODES
from tests.support.repository import PLATFORM, ROOT, committed, shown, sources, tree

PAGES = [path for path in committed() if path.suffix == ".md" and "tests" not in path.relative_to(ROOT).parts]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> list[tuple[str, Path, str]]:
    """What is written, the file it means, the heading it means."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`(?!\]\()", "", text)
    found = [target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]
    return [
        (target, (page.parent / target.partition("#")[0]).resolve() if target[0] != "#" else page, anchor)
        for target in found
        for anchor in [target.partition("#")[2]]
    ]


def anchors(page: Path) -> set[str]:
    """Of headings, as the usual viewers name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = [
        written
        for written, file, anchor in links(page)
        if not file.exists() or (anchor and anchor not in anchors(file))
    ]

    assert not broken


def test_every_page_is_found_from_the_readme() -> None:
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen:
            continue
        seen.add(page)
        ahead += [file for _, file, _ in links(page) if file.suffix == ".md"]

    assert not [shown(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page not in seen]


def answered() -> set[tuple[str, str]]:
    """(status, code) of every answer written in the router's code."""
    found = set()
    for path in sources(PLATFORM / "router"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"Reply", "Answer"}:
                given = [argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)]
                if len(given) == 2:
                    found.add((str(given[0]), str(given[1])))
    return found


def test_every_code_of_the_router_is_explained_and_no_other() -> None:
    explained = {(status, code) for statuses, code, *_ in CODES for status in statuses.split(", ")}
    written = answered()
    codes = {code for _, code in explained}

    assert len(written) > 20
    assert not written - explained
    assert set(get_args(FailureCode)) <= codes
    assert not {code for status, code in explained - written} - set(get_args(FailureCode))
