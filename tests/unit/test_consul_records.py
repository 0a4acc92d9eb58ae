"""Records as Consul's keys hold them."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import threading

import pytest

from modalnomad.hashicorp.consul import records
from modalnomad.hashicorp.consul.api import Entry
from modalnomad.hashicorp.consul.records import APPS, GUARD, TOKENS, Keys, Reader, decode, encode
from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendRefused
from modalnomad.model.routes import Token

KEYS = Keys("modalnomad")
APP = AppRecord(app="shop", environment="main", serial=3)
TOKEN = Token(id="wk-1", secret_sha256="0" * 64, environment="main")


def entry(value: bytes, key: str = "modalnomad/apps/main/shop", index: int = 7) -> Entry:
    return Entry(key, value, index)


def packed(**changes: object) -> bytes:
    content = {"kind": "app", "format": 1, "content": APP.model_dump(mode="json")}
    return gzip.compress(json.dumps({**content, **changes}).encode())


def test_records_come_back_as_they_were_and_equal_ones_are_equal_bytes() -> None:
    assert decode(entry(encode(APP)), APPS) == APP
    assert decode(entry(encode(TOKEN), KEYS.token("wk-1", "main")), TOKENS) == TOKEN
    assert encode(APP) == encode(APP.model_copy())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "is damaged: it is no app record"),
        (b"hello", "is damaged: it is no app record"),
        (b"\x1f\x8bhello", "is damaged: it is no app record"),
        (encode(APP)[:-9], "is damaged: it is no app record"),
        (gzip.compress(b"[" * 100_000), "is damaged: it is no app record"),
        (encode(TOKEN), "is damaged: it is no app record"),
        (packed(format="1"), "is damaged: it is no app record"),
        (packed(content=[]), "is damaged: it is no app record"),
        (packed(content={"app": "shop"}), "is damaged: 2 wrong fields"),
        (encode(APP.model_copy(update={"app": "other"})), "is damaged: it is the record of other in environment main"),
        (packed(format=2), "was written by a newer modalnomad (format 2, this one knows 1)"),
    ],
    ids=itertools.count(),  # the values hold times
)
def test_what_is_no_record_is_refused_naming_the_key(value: bytes, message: str) -> None:
    with pytest.raises(BackendRefused) as refused:
        decode(entry(value), APPS)

    assert refused.value.message == f"Consul's key modalnomad/apps/main/shop {message}"
    assert refused.value.hint


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "UNPACKED_LIMIT", len(gzip.decompress(encode(APP))) - 1)

    with pytest.raises(BackendRefused, match="is damaged"):
        decode(entry(encode(APP)), APPS)


def test_the_last_readable_content_stands_in_for_a_damaged_record(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(KEYS, APPS)
    assert reader.records([entry(encode(APP))], whole=True) == (APP,)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert reader.records([entry(b"oops", index=8)], whole=True) == (APP,)

    assert [record.getMessage() for record in caplog.records] == [
        "Consul's key modalnomad/apps/main/shop is damaged: it is no app record; its last readable content stays in "
        "force. Restore it from a copy, or remove it (consul kv delete modalnomad/apps/main/shop) and deploy again."
    ]
    assert [one.value for one in reader.stand_ins] == [encode(APP)]
    (problem,) = reader.problems([entry(b"oops", index=8)])
    assert str(problem).startswith("Consul key modalnomad/apps/main/shop: is damaged: it is no app record. Restore it")


def test_a_damaged_record_hides_no_other_and_a_removed_one_is_forgotten() -> None:
    reader = Reader(KEYS, APPS)
    other = APP.model_copy(update={"app": "b"})
    both = [entry(b"oops"), entry(encode(other), "modalnomad/apps/main/b")]

    assert reader.records(both, whole=True) == (other,)
    assert reader.records(both[1:], whole=True) == (other,)
    assert reader.problems(both[1:]) == ()


def test_the_guard_and_folders_are_no_records() -> None:
    reader = Reader(KEYS, APPS)

    assert reader.records([entry(b"x", f"modalnomad/apps/{GUARD}"), entry(b"", "modalnomad/apps/main/")]) == ()
    assert reader.problems([entry(b"", "modalnomad/apps/main/")]) == ()


def test_the_contents_that_stand_in_are_told_whole_while_another_thread_reads_a_new_record() -> None:
    reader = Reader(KEYS, APPS)
    new = entry(encode(APP.model_copy(update={"app": "b"})), "modalnomad/apps/main/b")
    other = threading.Thread(target=lambda: reader.records([new]))

    class Read:
        """Another thread comes in between two of them."""

        good = None

        @property
        def error(self) -> None:
            if other.ident is None:
                other.start()
                other.join(10)

    reader._read = {"modalnomad/apps/main/a": Read(), "modalnomad/apps/main/c": Read()}  # type: ignore[dict-item]  # stands in

    assert reader.stand_ins == ()
    other.join()
    assert "modalnomad/apps/main/b" in reader._read
