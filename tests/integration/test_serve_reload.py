"""Live reload: what an edit does to what is served, and what it must not do."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.fixed_port import fixed_port
from tests.support.pace import turn
from tests.support.runner import LONG, wait_until
from tests.support.serve import Serve, serve

PROGRAM = """
import modal
from fastapi import FastAPI

app = modal.App("reloaded")
web = FastAPI()

@web.get("/")
def version():
    return "{version}"

@app.function()
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def site():
    {extra}
    return web
"""


def program(version: str, extra: str = "pass") -> str:
    return PROGRAM.format(version=version, extra=extra)


def save(file: Path, content: str, beside: Path | None = None) -> None:
    """As editors do: a new file renamed over the old one, so that no half-written one is ever seen. `beside`: where the
    new one is written, for a file whose whole folder counts."""
    fresh = (beside or file.parent) / f"{file.stem}.new"
    fresh.write_text(content)
    fresh.replace(file)


def get(s: Serve, name: str | None = None) -> str:
    answer = httpx.get(s.url(name), timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json())


@contextlib.contextmanager
def asking_all_the_time(s: Serve) -> Iterator[list[str]]:
    """Two clients that ask again and again; yields the answers, an answer that is no 200 fails the test."""
    answers: list[str] = []
    wrong: list[str] = []
    stop = threading.Event()
    url = s.url()

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.get(url)
                except httpx.HTTPError as error:
                    wrong.append(repr(error))
                    return
                if answer.status_code != 200:
                    wrong.append(f"{answer.status_code} {answer.text}")
                    return
                answers.append(answer.json())
                time.sleep(turn(3))  # the test itself is the third

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        stop.set()
        for client in clients:
            client.join(30)
    assert not wrong, f"lost: {wrong}\n{s.output()}"


def test_an_edit_is_live_and_no_request_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    save(file, program("one"))
    with serve(file) as s:
        assert get(s) == "one"
        with asking_all_the_time(s) as answers:
            for version in ("two", "three", "four"):
                mark = len(s.events)
                save(file, program(version))
                assert s.wait_event("reloaded", LONG, after=mark)["functions"] == ["site"]
                assert get(s) == version
                wait_until(lambda version=version: version in answers, "the clients get it too")
        url = s.url()
        s.wait_event("replica", state="gone")
    assert s.exit_code == 0
    assert len({event["direct_url"] for event in s.events if event["event"] == "endpoint"} | {url}) == 1, (
        "the URL stays"
    )


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("def f(:\n", "SyntaxError"),
        (program("two") + "\n{}['absent']\n", "KeyError: 'absent'"),
        (program("two", "raise RuntimeError('not today')"), "RuntimeError: not today"),
        ("import modal\n", "modal.App"),
    ],
    ids=["syntax", "import", "start", "no app"],
)
def test_an_edit_that_does_not_work_leaves_the_old_version_serving(tmp_path: Path, broken: str, says: str) -> None:
    file = tmp_path / "program.py"
    save(file, program("one"))
    with serve(file) as s:
        assert get(s) == "one"
        with asking_all_the_time(s) as answers:
            wait_until(lambda: "one" in answers)
            mark = len(s.events)
            save(file, broken)
            failed = s.wait_event("reload_failed", 30, after=mark)
            assert says in f"{failed['message']}\n{failed.get('output')}"
            assert get(s) == "one"
            save(file, program("three"))
            s.wait_event("reloaded", 30, after=mark)
            assert get(s) == "three"
            wait_until(lambda: "three" in answers)
        assert set(answers) == {"one", "three"}


def test_a_file_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    save(file, program("one"))
    with serve(file) as s:
        assert get(s) == "one"
        mark = len(s.events)
        file.unlink()
        s.wait_event("reload_failed", after=mark)
        assert get(s) == "one"
        save(file, program("two"))
        s.wait_event("reloaded", after=mark)
        assert get(s) == "two"


def test_a_save_without_a_change_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    save(file, program("one"))
    with serve(file) as s:
        assert get(s) == "one"
        mark = len(s.events)
        os.utime(file)
        save(file, program("one"))
        time.sleep(0.1)  # two bursts, not one
        save(file, program("two"))
        s.wait_event("reloaded", after=mark)
        assert get(s) == "two"
        assert sum(event["event"] == "reloaded" for event in s.events) == 1


def test_the_last_of_many_quick_saves_wins(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    save(file, program("0"))
    with serve(file) as s:
        assert get(s) == "0"
        with asking_all_the_time(s):
            for version in range(1, 13):
                save(file, program(str(version)))
                time.sleep(0.07)
            deadline = time.monotonic() + 30
            while get(s) != "12":
                assert time.monotonic() < deadline, s.output()
                time.sleep(turn(3))
        s.wait_event("reloaded")
    assert s.exit_code == 0


def test_a_pool_that_sleeps_is_not_woken_by_an_edit(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    save(file, program("one"))
    with serve(file) as s:
        save(file, program("two"))
        s.wait_event("reloaded")
        assert not [event for event in s.events if event["event"] == "replica"]
        assert get(s) == "two"


TWO = (
    program("one")
    + """
@app.function()
@modal.fastapi_endpoint()
def added():
    return "added"
"""
)


def test_endpoints_come_and_go(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    save(file, program("one"))
    with serve(file) as s:
        mark = len(s.events)
        save(file, TWO)
        s.wait_event("endpoint", after=mark, name="added")
        s.wait_event("reloaded", after=mark)
        assert get(s, "added") == "added"
        gone = s.url("added")
        mark = len(s.events)
        save(file, program("one"))
        s.wait_event("reloaded", after=mark)
        with pytest.raises(httpx.ConnectError):
            httpx.get(gone, timeout=LONG)
        assert get(s, "site") == "one"


def test_an_app_that_is_renamed_moves(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    save(file, program("one"))
    with serve(file) as s:
        assert get(s) == "one"
        mark = len(s.events)
        save(file, program("one").replace("reloaded", "renamed"))
        event = s.wait_event("endpoint", after=mark)
        assert event["label"] == "renamed-site-dev"
        assert httpx.get(event["direct_url"], timeout=30).json() == "one"


def test_every_local_file_of_a_module_is_watched(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("VERSION = 'one'\n")
    (package / "main.py").write_text(
        "import modal\nfrom .helper import VERSION\napp = modal.App('packaged')\n"
        "@app.function()\n@modal.fastapi_endpoint()\ndef f():\n    return VERSION\n"
    )
    with Serve(["-m", "pkg.main"], cwd=tmp_path) as s:
        assert get(s) == "one"
        save(package / "helper.py", "VERSION = 'second'\n")
        s.wait_event("reloaded")
        assert get(s) == "second"


def test_files_added_to_the_image_are_watched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.txt").write_text("one")
    (tmp_path / "program.py").write_text(
        "import modal\nfrom pathlib import Path\n"
        "image = modal.Image.debian_slim().add_local_dir(Path(__file__).parent / 'data', '/root/data')\n"
        "app = modal.App('filed', image=image)\n"
        "@app.function()\n@modal.fastapi_endpoint()\ndef f():\n    return Path('data/text.txt').read_text()\n"
    )
    with serve(tmp_path / "program.py") as s:
        assert get(s) == "one"
        save(tmp_path / "data" / "text.txt", "second", tmp_path)
        s.wait_event("reloaded")
        assert get(s) == "second"


@pytest.mark.parametrize("network", ["auto", "exclusive"])
def test_a_server_on_a_fixed_port_is_replaced_without_losing_a_request(tmp_path: Path, network: str) -> None:
    file = tmp_path / "program.py"
    port = 18731
    save(file, fixed_port("ported", port, '"one"', tmp_path))
    with serve(file, env={"MODALNOMAD_EMBEDDED__NETWORK": network}) as s:
        assert get(s) == "one"
        with asking_all_the_time(s):
            mark = len(s.events)
            save(file, fixed_port("ported", port, '"two"', tmp_path))
            s.wait_event("reloaded", after=mark)
            assert get(s) == "two"
        assert not [e for e in s.events if e["event"] == "replica" and e["state"] == "failed"], s.output()


def test_two_edits_during_one_request_wait_for_the_port_it_has(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    answers: dict[str, str] = {}

    def ask(path: str) -> None:
        answers[path] = httpx.get(s.url() + path, timeout=60).text

    def version(number: int) -> str:
        return fixed_port("ported", 18732, f'"{number}"', tmp_path)

    save(file, version(1))
    with serve(file, env={"MODALNOMAD_EMBEDDED__NETWORK": "exclusive"}) as s:
        clients = [threading.Thread(target=ask, args=(path,)) for path in ("/slow", "/")]
        clients[0].start()
        deadline = time.monotonic() + 30
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline, s.output()
            time.sleep(turn())
        for number in (2, 3):
            mark = len(s.events)
            save(file, version(number))
            s.wait_event("reloaded", after=mark)
        clients[1].start()
        clients[1].join(1.0)
        assert not answers, s.output()
        (tmp_path / "over").touch()
        for client in clients:
            client.join(60)
        assert answers == {"/slow": '"1"', "/": '"3"'}, s.output()


def test_a_save_while_the_program_is_first_read_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    slow = "import time, pathlib\npathlib.Path(__file__).with_name('begun').touch()\ntime.sleep(0.5)\n"
    save(file, slow + program("one"))
    s = serve(file)
    starting = threading.Thread(target=s.start)
    starting.start()
    try:
        wait_until((tmp_path / "begun").exists)
        save(file, program("two"))
    finally:
        starting.join(60)
    try:
        deadline = time.monotonic() + LONG
        while get(s) != "two":
            assert time.monotonic() < deadline, s.output()
            time.sleep(turn())
    finally:
        s.stop()
