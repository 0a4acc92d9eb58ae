"""Output in whatever pieces it is read."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from modalnomad.kit import log_lines as logs

OUTPUT = st.lists(st.sampled_from([b"\n", b"\r\n", b"\x1ereq-1\x1f", b"abc", "🐎".encode(), b"\xff", b"x" * 40])).map(
    b"".join
)
CUTS = st.lists(st.integers(0, 400))


def split(*chunks: bytes) -> list[tuple[str | None, str]]:
    splitter = logs.LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()


@given(OUTPUT, CUTS)
@example(b"a\n\xf0\x9f\x90\x8e", [3, 4])
def test_lines_do_not_depend_on_how_the_output_is_read(output: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(output), *(cut for cut in cuts if cut < len(output))})
    chunks = [output[start:end] for start, end in pairwise(places)]

    assert split(*chunks) == split(output)


@given(st.text(st.characters(exclude_characters="\n\r\x1e", exclude_categories=["Cs"])), st.integers(1, 30), CUTS)
def test_no_character_is_lost_or_cut_in_an_overlong_line(text: str, limit: int, cuts: list[int]) -> None:
    output = text.encode()
    places = sorted({0, len(output), *(cut for cut in cuts if cut < len(output))})
    usual, logs.LINE_LIMIT = logs.LINE_LIMIT, limit + 3  # type: ignore[misc]
    try:
        lines = split(*(output[start:end] for start, end in pairwise(places)))
    finally:
        logs.LINE_LIMIT = usual  # type: ignore[misc]

    assert "".join(line for _, line in lines) == text
