"""Every program of `examples/`, through `modalnomad serve`, does what its docstring says."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import uuid
from collections.abc import Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.doors import direct_door, doors, host_door, replicas, replicas_told, web_socket
from tests.support.repository import ROOT
from tests.support.serve import run_command, serve

EXAMPLES = ROOT / "examples"


def test_hello() -> None:
    with serve(EXAMPLES / "hello.py") as s, doors(s) as clients:
        assert s.endpoints["greet"]["label"] == "hello-greet-dev"
        for client in clients:
            assert client.get("/").json() == "Hello, world!"
            assert client.get("/", params={"name": "Ada"}).json() == "Hello, Ada!"
            assert client.post("/").status_code == 405
            assert client.get("/elsewhere").status_code == 404


def test_orders_api() -> None:
    order = {"items": [{"name": "tea", "price": 3.5, "count": 2}, {"name": "cup", "price": 1}]}
    with serve(EXAMPLES / "orders_api.py") as s, direct_door(s) as client:
        assert client.post("/", json=order).json() == {"total": 8.0, "count": 3}
        refused = client.post("/", json={"items": [{"name": "tea", "price": -1}]})
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", "items", 0, "price"]
        assert "swagger" in client.get("/docs").text
        assert "/" in client.get("/openapi.json").json()["paths"]
        preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/", headers=preflight).headers["access-control-allow-origin"] == "https://shop.example"


def test_live_page() -> None:
    with serve(EXAMPLES / "live_page.py") as s:
        with doors(s) as clients:
            for client in clients:
                assert "<h1>Live page</h1>" in client.get("/").text
                events = client.get("/ticks", params={"pause": 0})
                assert events.headers["content-type"].startswith("text/event-stream")
                assert re.findall(r"^data: (.*)$", events.text, re.MULTILINE) == ["1", "2", "3", ""]
        for by_host in (True, False):
            with web_socket(s, "/echo", by_host=by_host, subprotocols=["whisper", "shout"]) as connection:
                assert connection.subprotocol == "shout"
                connection.send("good morning")
                assert connection.recv(timeout=60) == "GOOD MORNING"
                connection.close(4321, "enough")
            s.wait_log("socket closed with 4321")
        s.wait_log("the page wakes up")
    s_lines = [log["line"] for log in s.logs()]
    assert "the page goes to sleep" in s_lines


def test_live_page_events_come_one_by_one() -> None:
    with serve(EXAMPLES / "live_page.py") as s, direct_door(s) as client:
        client.get("/")
        # The answer never ends within this test's patience: what is read has come while it was being made.
        with client.stream("GET", "/ticks", params={"count": 1_000_000, "pause": 0.01}) as events:
            lines = events.iter_lines()
            assert [line for line, _ in zip(lines, range(8), strict=False)][5] == "id: 2"


def test_guestbook_flask() -> None:
    with serve(EXAMPLES / "guestbook_flask.py") as s, direct_door(s, follow_redirects=True) as client:
        signed = client.post("/sign", data={"name": "Ada & Co", "text": "<hi>"})
        assert signed.status_code == 200
        assert "Ada &amp; Co: &lt;hi&gt;" in signed.text
        assert client.post("/sign", data={"name": "only"}).status_code == 400
        who = client.get("/who", headers={"X-Forwarded-For": "203.0.113.9"}).json()
        assert who == {"address": "127.0.0.1", "host": client.base_url.netloc.decode(), "path": "/who"}


def test_django_site() -> None:
    with serve(EXAMPLES / "django_site.py") as s, doors(s) as clients:
        for client in clients:
            page = client.get("/")
            assert page.status_code == 200
            assert "<h1>Django 5" in page.text
            assert client.get("/squares/?n=4").json() == {"n": 4, "squares": [1, 4, 9, 16]}
            assert client.post("/", data={"name": "x"}).status_code == 403, "the CSRF check holds"
            token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
            assert token is not None
            posted = client.post("/", data={"name": "Ada", "csrfmiddlewaretoken": token[1]})
            assert "Thank you, Ada." in posted.text


def test_counter_fasthtml() -> None:
    with serve(EXAMPLES / "counter_fasthtml.py") as s, direct_door(s) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "<title>Counter</title>" in page.text
        assert 'hx-post="/count"' in page.text
        assert client.post("/count").text.strip() == '<p id="count">1</p>'
        assert client.post("/count").text.strip() == '<p id="count">2</p>'


def test_dashboard_streamlit() -> None:
    with serve(EXAMPLES / "dashboard_streamlit.py", ready_timeout=250) as s:
        with doors(s) as clients:
            for client in clients:
                assert client.get("/_stcore/health").text == "ok"
                assert "<title>Streamlit</title>" in client.get("/").text
        # Streamlit's page is drawn from what comes over its WebSocket: the session starts with a first message.
        with web_socket(s, "/_stcore/stream", by_host=True, subprotocols=["streamlit"]) as connection:
            assert connection.subprotocol == "streamlit"


def test_raw_server() -> None:
    with serve(EXAMPLES / "raw_server.py") as s:
        with doors(s) as clients:
            for client in clients:
                seen = client.get("/a%20b//c?x=%2F&x", headers={"X-Request-Id": "one-of-mine"}).json()
                assert seen["path"] == "/a%20b//c?x=%2F&x"
                assert seen["host"] == client.headers.get("Host", client.base_url.netloc.decode())
                assert seen["X-Forwarded-For"] == "127.0.0.1"
                assert seen["X-Forwarded-Proto"] == "http"
                assert seen["X-Request-Id"] == "one-of-mine"
                assert client.get("/count?to=4").text == "1\n2\n3\n4\n"
        for by_host in (True, False):
            with web_socket(s, "/ws", by_host=by_host, subprotocols=["reverse"]) as connection:
                assert connection.subprotocol == "reverse"
                connection.send("abc")
                assert connection.recv(timeout=60) == "cba"
                connection.send(bytes(range(256)) * 1000)
                assert connection.recv(timeout=60) == (bytes(range(256)) * 1000)[::-1]
                connection.send("bye")
                with pytest.raises(ConnectionClosed):
                    connection.recv(timeout=60)
                assert (connection.close_code, connection.close_reason) == (4001, "as you wish")


def test_dictionary_class() -> None:
    with serve(EXAMPLES / "dictionary_class.py") as s, direct_door(s) as client:
        assert client.get("/?word=tree").json() == {"language": "german", "word": "Baum"}
        assert client.get("/?word=tree&language=latin").json() == {"language": "latin", "word": "arbor"}
        assert client.get("/?word=star&size=1").json() == {"language": "german", "word": None}
        assert client.get("/?word=star&size=big").status_code == 422
        assert client.get("/").status_code == 422, "the handler's own argument is missing"
        assert len(replicas_told(s, 3)) == 3
    lines = [log["line"] for log in s.logs()]
    for language in ("german", "latin"):
        said = [line for line in lines if language in line]
        assert said.index(f"loading {language}") < said.index(f"{language} has 3 words") < len(said) - 1
        assert said[-1] == f"closing {language}"


def test_toolbox() -> None:
    with serve(EXAMPLES / "toolbox.py") as s:
        assert sorted(s.endpoints) == [
            "Clock.time",
            "Statistics.add",
            "Statistics.mean",
            "Statistics.report",
            "sorted-letters",
            "upper",
        ]
        assert s.endpoints["Statistics.add"]["label"] == "toolbox-statistics-add-dev"
        assert s.endpoints["sorted-letters"]["label"] == "toolbox-sorted-dev"
        for door in (host_door, direct_door):
            with door(s, "upper") as upper, door(s, "sorted-letters") as letters, door(s, "Clock.time") as clock:
                assert upper.get("/?text=hi").json() == "HI"
                assert letters.get("/?text=hello").json() == "ehllo"
                assert clock.get("/now").json()["path"] == "/now"
        with (
            direct_door(s, "Statistics.add") as add,
            host_door(s, "Statistics.mean") as mean,
            direct_door(s, "Statistics.report") as report,
        ):
            assert mean.get("/").json() == {"mean": None}
            assert add.post("/", json=[1, 2, 3]).json() == {"count": 3}
            assert mean.get("/").json() == {"mean": 2.0}, "one object answers for all methods of a class"
            assert report.get("/count").json() == {"count": 3}
            assert mean.post("/").status_code == 405


def test_uploads() -> None:
    content = bytes(range(256)) * 20_000
    with serve(EXAMPLES / "uploads.py") as s, doors(s) as clients:
        for client in clients:
            files = {"file": ("notes ü.bin", content, "application/octet-stream")}
            form = client.post("/form", files=files, data={"note": "mine"}).json()
            assert form == {"name": "notes ü.bin", "size": len(content), "note": "mine"}

            def pieces() -> Iterator[bytes]:
                for start in range(0, len(content), 70_000):
                    yield content[start : start + 70_000]

            digest = client.post("/digest", content=pieces()).json()
            assert digest == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            with client.stream("GET", "/zeros?mib=8") as answer:
                assert sum(map(len, answer.iter_bytes())) == 8 * 1024 * 1024


def test_uploads_answers_while_the_request_still_comes() -> None:
    with serve(EXAMPLES / "uploads.py") as s:
        url = httpx.URL(s.url())
        with socket.create_connection((url.host, url.port), timeout=60) as raw, raw.makefile("rb") as answer:
            raw.sendall(f"POST /shout HTTP/1.1\r\nHost: {url.netloc.decode()}\r\n".encode())
            raw.sendall(b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            while answer.readline() != b"\r\n":
                pass
            assert answer.read(10) == b"5\r\nFIRST\r\n", "the first piece came back before the second was sent"
            raw.sendall(b"6\r\nsecond\r\n")
            assert answer.read(11) == b"6\r\nSECOND\r\n"
            raw.sendall(b"0\r\n\r\n")
            assert answer.read(5) == b"0\r\n\r\n"


def test_private_api() -> None:
    environment = f"private-{uuid.uuid4().hex[:8]}"
    created = run_command("secret", "create", "weather-key", "API_KEY=weather-k-123", "--env", environment)
    assert created.returncode == 0, created.stderr
    made = run_command("token", "create", "--json", "--env", environment)
    elsewhere = run_command("token", "create", "--json", "--env", f"{environment}-b")
    token, foreign = json.loads(made.stdout), json.loads(elsewhere.stdout)

    with serve(EXAMPLES / "private_api.py", "--env", environment) as s, doors(s, "weather") as clients:
        assert s.endpoints["weather"]["auth"] != s.endpoints["door"]["auth"]
        for client in clients:
            assert client.get("/?city=Oslo").status_code == 401
            wrong = {"Modal-Key": token["id"], "Modal-Secret": "ws-wrong"}
            assert client.get("/?city=Oslo", headers=wrong).status_code == 401
            other = {"Modal-Key": foreign["id"], "Modal-Secret": foreign["secret"]}
            assert client.get("/?city=Oslo", headers=other).status_code == 403
        assert not replicas(s), "a stranger never starts a replica"
        for client in clients:
            right = {"Modal-Key": token["id"], "Modal-Secret": token["secret"]}
            assert client.get("/?city=Oslo", headers=right).json() == {"city": "Oslo", "key_ends_with": "23"}
            bearer = {"Authorization": f"Bearer {token['id']}.{token['secret']}"}
            assert client.get("/?city=Rome", headers=bearer).json() == {"city": "Rome", "key_ends_with": "23"}
        with direct_door(s, "door") as door:
            assert door.get("/").json() == "come in"
    everything = s.output()
    assert "weather-k-123" not in everything
    assert token["secret"] not in everything


def test_shelf() -> None:  # examples/shelf/
    with serve("-m", "shelf.app", cwd=EXAMPLES) as s:
        for door in (host_door, direct_door):
            with door(s, "search") as search, door(s, "titles") as titles:
                assert search.get("/?word=SEA").json() == [
                    "The Sea-Wolf",
                    "Twenty Thousand Leagues Under the Seas",
                ]
                assert "<li>Walden (1854)</li>" in titles.get("/titles").text


def test_batch() -> None:  # examples/batch.py
    counted = run_command("run", str(EXAMPLES / "batch.py"), "--longest", "3")
    assert counted.returncode == 0, counted.stderr
    assert "the: 5\n" in counted.stdout
    assert "tree is Baum and arbor\n" in counted.stdout

    one = run_command("run", "-q", str(EXAMPLES / "batch.py::count"), "--text", "to be or not to be")
    assert (one.stdout, one.returncode) == ("{'to': 2, 'be': 2, 'or': 1, 'not': 1}\n", 0), one.stderr

    word = run_command(
        *("run", "--json", str(EXAMPLES / "batch.py::Dictionary.lookup"), "--language", "latin", "--word", "tree")
    )
    assert json.loads(word.stdout.splitlines()[-1]) == {"event": "returned", "exit_code": 0, "result": "arbor"}


def test_clockwork() -> None:  # examples/clockwork.py; that schedules run is tested under `up`
    once = run_command("run", str(EXAMPLES / "clockwork.py::tidy"))
    assert once.returncode == 0, once.stderr
    assert "| tidying outbox\n" in once.stdout
    assert once.stdout.endswith("tidied in 3 places\n")
