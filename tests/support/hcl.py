"""HCL as data for tests: blocks, arguments with their lines, what an expression says literally and what it refers to.

python-hcl2 has the grammar only; its own dictionaries know neither lines nor which text is an expression."""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hcl2.api import parses_to_tree
from lark import Token, Tree
from lark.exceptions import UnexpectedInput

INDEX: Final = "[]"
SPLAT: Final = "[*]"


_STANDS_FOR: Final = {"$${": "\ue000" * 3, "%%{": "\ue001" * 3}
_ESCAPED: Final = re.compile(r"\$\$\{|%%\{")
"""python-hcl2 takes these escapes only with their closing brace: what is as long stands for them while it reads."""


class HclError(Exception):
    """The text is no HCL: `line` and what the parser stumbled over."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line


class Unknown:
    """A value that only Terraform can tell."""


UNKNOWN: Final = Unknown()


class Reference(NamedTuple):
    """`module.x["a"].y` is `("module", "x", "[]", "y")`; splats are `"[*]"`."""

    parts: tuple[str, ...]
    line: int

    def __str__(self) -> str:
        return ".".join(self.parts).replace(".[", "[")


@dataclass(frozen=True)
class Value:
    """One expression: the file it is from, where it begins, and its syntax tree."""

    source: str = field(repr=False)
    line: int
    node: Any = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """As written."""
        return self.source[self.node.meta.start_pos : self.node.meta.end_pos]

    @functools.cached_property
    def literal(self) -> Any:
        """str, int, float, bool, None, list or dict; `UNKNOWN`, also within those, where Terraform must compute it."""
        return _literal(self.node)

    @functools.cached_property
    def references(self) -> tuple[Reference, ...]:
        """What it reads, without names that a `for` brings; those of a `for` over a reference begin with that one."""
        return tuple(_references(self.node, {}))

    @property
    def reference(self) -> Reference | None:
        """Where the whole expression is one, as in `local.a["x"].b`."""
        node = _bare(self.node)
        return next(iter(self.references), None) if node.data in CHAINS else None

    @functools.cached_property
    def call(self) -> tuple[str, tuple[Value, ...]] | None:
        """Of a function called: its name and what it is given."""
        node = _bare(self.node)
        if node.data != "function_call":
            return None
        given = [one for part in _trees(node, "arguments") for one in part.children if isinstance(one, Tree)]
        return _word(_trees(node, "identifier")[0]), tuple(
            value_of(one, self.source) for one in given if _is_expression(one)
        )

    def items(self) -> Mapping[str, Value]:
        """Of an object written out: its elements with known keys."""
        node = _bare(self.node)
        found = {}
        if isinstance(node, Tree) and node.data == "object":
            for element in _trees(node, "object_elem"):
                key = _key(element.children[0])
                if isinstance(key, str):
                    found[key] = value_of(element.children[2], self.source)
        return found


@dataclass(frozen=True)
class Block:
    """`kind "label" … { arguments and blocks }`. `arguments` have unique names, as in HCL."""

    kind: str
    labels: tuple[str, ...]
    arguments: Mapping[str, Value]
    blocks: tuple[Block, ...]
    line: int
    twice: tuple[tuple[str, int], ...] = ()

    def named(self, kind: str) -> Iterator[Block]:
        """Blocks of one kind directly in this one."""
        return (block for block in self.blocks if block.kind == kind)

    def everywhere(self) -> Iterator[Block]:
        """This block and all within."""
        yield self
        for block in self.blocks:
            yield from block.everywhere()

    def references(self) -> Iterator[Reference]:
        """All, of this block and those within."""
        for block in self.everywhere():
            for value in block.arguments.values():
                yield from value.references


@functools.lru_cache(maxsize=512)
def parse(text: str) -> Block:
    """A file as a block without a name. Raises `HclError`."""
    try:
        tree = parses_to_tree(_ESCAPED.sub(lambda found: _STANDS_FOR[found[0]], text))
    except UnexpectedInput as error:
        raise HclError(getattr(error, "line", 0), str(error).splitlines()[0]) from None
    return _block("", (), tree.children[0], 1, text)


def value_of(node: Any, text: str) -> Value:
    """An expression out of a tree of `text`."""
    return Value(text, node.meta.line, node)


def _block(kind: str, labels: tuple[str, ...], body: Any, line: int, text: str) -> Block:
    arguments: dict[str, Value] = {}
    twice, blocks = [], []
    for child in _trees(body, "attribute", "block"):
        if child.data == "attribute":
            name = _word(child.children[0])
            if name in arguments:
                twice.append((name, child.meta.line))
            arguments[name] = value_of(child.children[2], text)
        else:
            words = [_word(part) for part in _trees(child, "identifier", "keyword", "string", "literal_value")]
            (inner,) = _trees(child, "body")
            blocks.append(_block(words[0], tuple(words[1:]), inner, child.meta.line, text))
    return Block(kind, labels, arguments, tuple(blocks), line, tuple(twice))


def _trees(node: Any, *names: str) -> list[Any]:
    return [child for child in node.children if isinstance(child, Tree) and child.data in names]


def _word(node: Any) -> str:
    """Of an identifier, or of a string without anything computed in it."""
    return "".join(str(token) for token in node.scan_values(lambda token: token.type != "DBLQUOTE"))


def _bare(node: Any) -> Any:
    """Without the wrapping that means nothing, parentheses among it."""
    while isinstance(node, Tree) and node.data == "expr_term":
        inner = [child for child in node.children if isinstance(child, Tree) and child.data != "new_line_or_comment"]
        if len(inner) != 1:
            break
        node = inner[0]
    return node


def _literal(node: Any) -> Any:
    node = _bare(node)
    match node.data:
        case "string":
            return _string(node)
        case "int_lit" | "float_lit":
            return ast.literal_eval(str(node.children[0]))
        case "literal_value":
            return {"true": True, "false": False, "null": None}[str(node.children[0])]
        case "tuple":
            return [_literal(child) for child in node.children if isinstance(child, Tree) and _is_expression(child)]
        case "object":
            return {_key(one.children[0]): _literal(one.children[2]) for one in _trees(node, "object_elem")}
        case "heredoc_template" | "heredoc_template_trim" if not re.search(r"[$%]\{", str(node.children[0])):
            body = "".join(f"{line}\n" for line in str(node.children[0]).splitlines()[1:-1])
            return textwrap.dedent(body) if node.data.endswith("trim") else body
        case "unary_op" if str(node.children[0]) == "-" and isinstance(
            number := _literal(node.children[1]), int | float
        ):
            return -number
    return UNKNOWN


def _is_expression(node: Any) -> bool:
    return bool(node.data != "new_line_or_comment")


def _string(node: Any) -> Any:
    parts = [token for part in _trees(node, "string_part") for token in part.children]
    if any(isinstance(token, Tree) for token in parts):
        return UNKNOWN
    text = "".join(map(str, parts))
    for escape, stand_in in _STANDS_FOR.items():
        text = text.replace(stand_in, escape[1:])
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t", "r": "\r"}.get(found[1], found[1]), text)


def _key(node: Any) -> Any:
    """Of an object's element: a bare word is its own name."""
    inner = node.children[0]
    if isinstance(inner, Token):
        return str(inner)
    if len(inner.children) == 1 and isinstance(inner.children[0], Tree) and inner.children[0].data == "identifier":
        return _word(inner.children[0])
    known = _literal(inner)
    return known if isinstance(known, str) else UNKNOWN


# --- references ----------------------------------------------------------------------------------------------

CHAINS = {"get_attr_expr_term", "index_expr_term", "attr_splat_expr_term", "full_splat_expr_term"}

Scope = Mapping[str, tuple[str, ...] | None]
"""Names that a `for` brings: what they stand for, where that is an element of something referred to."""


def _references(node: Any, scope: Scope) -> Iterator[Reference]:
    if isinstance(node, Token):
        if node.type.startswith("HEREDOC"):
            yield from _in_heredoc(node, scope)
        return
    if node.data == "identifier":
        yield from _found((_word(node),), node.meta.line, scope)
    elif node.data in CHAINS:
        parts, inner = _chain(node)
        if parts:
            yield from _found(parts, node.meta.line, scope)
        for one in inner:
            yield from _references(one, scope)
    elif node.data in {"for_tuple_expr", "for_object_expr"}:
        yield from _in_for(node, scope)
    elif node.data == "string":
        yield from _in_string(node, scope)
    elif node.data == "function_call":
        for child in _trees(node, "arguments"):
            yield from _references(child, scope)
    elif node.data == "object_elem":
        if _key(node.children[0]) is UNKNOWN:
            yield from _references(node.children[0], scope)
        yield from _references(node.children[2], scope)
    else:
        for child in node.children:
            yield from _references(child, scope)


def _found(parts: tuple[str, ...], line: int, scope: Scope) -> Iterator[Reference]:
    if parts[0] not in scope:
        yield Reference(parts, line)
    elif (meant := scope[parts[0]]) is not None:
        yield Reference((*meant, *parts[1:]), line)


def _in_for(node: Any, scope: Scope) -> Iterator[Reference]:
    (intro,) = _trees(node, "for_intro")
    collection, inside = _over(intro, scope)
    yield from _references(collection, scope)
    for child in node.children:
        if isinstance(child, Tree) and child is not intro:
            yield from _references(child, inside)


def _over(intro: Any, scope: Scope) -> tuple[Any, Scope]:
    """What a `for` goes through, and the scope with the names that it brings."""
    names = [_word(name) for name in _trees(intro, "identifier")]
    collection = next(child for child in intro.children[::-1] if isinstance(child, Tree) and _is_expression(child))
    return collection, _wider(scope, names, collection)


def _wider(scope: Scope, names: list[str], collection: Any) -> Scope:
    over = list(_references(collection, scope)) if _bare(collection).data in CHAINS else []
    element = (*over[0].parts, INDEX) if over else None
    return {**scope, **dict.fromkeys(names), names[-1]: element}


def _in_string(node: Any, scope: Scope) -> Iterator[Reference]:
    """The names of a `%{ for }` are there to the end of the text: what follows its `endfor` does not use them."""
    for part in _trees(node, "string_part"):
        for child in part.children:
            if isinstance(child, Tree) and child.data == "template_for_start":
                collection, wider = _over(child, scope)
                yield from _references(collection, scope)
                scope = wider
            else:
                yield from _references(child, scope)


def _chain(node: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Names from the left, empty where it begins with something computed; further expressions to look into."""
    base, *steps = node.children
    base = _bare(base)
    parts: tuple[str, ...] = ()
    inner: list[Any] = []
    if base.data == "identifier":
        parts = (_word(base),)
    elif base.data in CHAINS:
        parts, inner = _chain(base)
    else:
        inner = [base]
    for step in steps:
        parts, inner = _step(step, parts, inner)
    return parts, inner


def _step(step: Any, parts: tuple[str, ...], inner: list[Any]) -> tuple[tuple[str, ...], list[Any]]:
    if step.data == "get_attr":
        return (*parts, _word(step.children[1])) if parts else (), inner
    if step.data in {"attr_splat", "full_splat"}:
        parts = (*parts, SPLAT) if parts else ()
        for one in step.children[1:]:
            parts, inner = _step(one, parts, inner)
        return parts, inner
    inside = [child for child in step.children if isinstance(child, Tree) and _is_expression(child)]
    return (*parts, INDEX) if parts else (), [*inner, *inside]


_QUOTED: Final = r'"(?:\\.|[^"\\])*"'
_FLAT: Final = rf'(?:[^{{}}"]|{_QUOTED})*'
_TEMPLATE: Final = re.compile(
    rf'(?:(?<!\$)\$|(?<!%)(?P<directive>%))\{{~?\s*(?P<words>(?:[^{{}}"]|{_QUOTED}|\{{{_FLAT}\}})*?)\s*~?\}}'
)


def _in_heredoc(token: Token, scope: Scope) -> Iterator[Reference]:
    """python-hcl2 leaves these texts alone."""
    text = str(token)
    for found in _TEMPLATE.finditer(text):
        above = (token.line or 1) + text.count("\n", 0, found.start("words")) - 1
        names, words = "", found["words"]
        if found["directive"]:
            keyword, _, words = words.partition(" ")
            if keyword == "for":
                names, _, words = words.partition(" in ")
            elif keyword != "if":
                continue
        node = parse(f"x = ({words})\n").arguments["x"].node
        for reference in _references(node, scope):
            yield Reference(reference.parts, above + reference.line)
        if names:
            scope = _wider(scope, [name.strip() for name in names.split(",")], node)
