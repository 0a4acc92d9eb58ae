"""A `serve` from its first event to its end, orderly or not."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.leftovers import family, mentioning, sockets_below, wait_gone
from tests.support.runner import LONG, wait_until
from tests.support.serve import Serve, command_environment, run_command, serve, shared_home
from tests.support.up import own_home

PROGRAM = """
import modal, os, subprocess, sys, time

app = modal.App("life")

@app.function()
@modal.fastapi_endpoint()
def hello():
    print("said hello")
    return "hello"

@app.function()
@modal.fastapi_endpoint(method="POST", label="posted")
def post(body: dict):
    return body

@app.function()
@modal.fastapi_endpoint(requires_proxy_auth=True)
def private():
    return "private"

@app.cls()
class Server:
    @modal.enter()
    def begin(self):
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    @modal.fastapi_endpoint()
    def slow(self):
        print("slow has begun")
        time.sleep(600)

    @modal.fastapi_endpoint()
    def quick(self, seconds: float):
        print("quick has begun")
        time.sleep(seconds)
        return "done"

    @modal.exit()
    def end(self):
        self.child.kill()
        print("exit method ran")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "life.py"
    file.write_text(PROGRAM)
    return file


def get(s: Serve, name: str, path: str = "/", timeout: float = 30) -> httpx.Response:
    return httpx.get(s.url(name) + path, timeout=timeout)


def later(s: Serve, name: str, path: str = "/") -> tuple[threading.Thread, list[str]]:
    """A request on a thread of its own, and what became of it."""
    outcome: list[str] = []

    def ask() -> None:
        try:
            answer = get(s, name, path, timeout=60)
            outcome.append(f"{answer.status_code} {answer.text}")
        except httpx.HTTPError as error:
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, outcome


def test_events_urls_and_logs(program: Path) -> None:
    with serve(program) as s:
        kinds = [event["event"] for event in s.events]
        assert kinds == ["endpoint"] * 5 + ["ready"]
        assert set(s.endpoints) == {"hello", "post", "private", "Server.slow", "Server.quick"}
        assert s.endpoints["hello"]["label"] == "life-hello-dev"
        assert s.endpoints["post"]["label"] == "posted-dev"
        assert s.endpoints["Server.slow"]["label"] == "life-server-slow-dev"
        assert [name for name, event in s.endpoints.items() if event["auth"]] == ["private"]

        url = httpx.URL(s.endpoints["hello"]["url"])
        assert url.host == "life-hello-dev.localhost"
        by_name = httpx.get(f"http://127.0.0.1:{url.port}/", headers={"Host": url.netloc.decode()}, timeout=30)
        assert by_name.json() == "hello"
        answer = get(s, "hello")
        log = s.wait_for(
            lambda event: event["event"] == "log" and event["request_id"] == answer.headers["x-request-id"],
            LONG,
            what="the line of this request",
        )
        assert (log["app"], log["function"], log["replica"], log["stream"]) == ("life", "hello", "0.1", "stdout")
        assert log["line"] == "said hello"
        states = [event["state"] for event in s.events if event["event"] == "replica"]
        assert states == ["starting", "ready"]
        assert not s.bad_lines
    assert s.events[kinds.index("ready") + 1 :]
    assert [event["event"] for event in s.events if event["event"] == "stopping"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(program: Path, number: signal.Signals) -> None:
    s = serve(program).start()
    try:
        assert get(s, "hello").status_code == 200
        waiting, outcome = later(s, "Server.quick", "/?seconds=1")
        s.wait_log("quick has begun")
        processes = family(s.pid)
        os.kill(s.pid, number)
        assert s.wait() == 0
        waiting.join(LONG)
    finally:
        s.stop()
    assert outcome == ['200 "done"'], "the request under way was answered"
    assert s.wait_log("exit method ran")
    wait_gone(processes)
    wait_until(lambda: not mentioning(str(program)), "nothing else is left")


def test_a_second_ctrl_c_ends_it_at_once(program: Path) -> None:
    s = serve(program).start()
    try:
        waiting, outcome = later(s, "Server.slow")
        s.wait_log("slow has begun")
        processes = family(s.pid)
        s.interrupt()
        s.wait_event("stopping")
        s.interrupt()
        assert s.wait() == 130
        waiting.join(LONG)
    finally:
        s.stop()
    assert outcome
    assert not outcome[0].startswith("200")
    wait_gone(processes)


def test_kill_9_leaves_nothing_behind(program: Path, tmp_path: Path) -> None:
    home = own_home(tmp_path)  # in the shared one others come and go
    s = serve(program, home=home).start()
    try:
        waiting, _ = later(s, "Server.slow")
        s.wait_log("slow has begun")
        processes = family(s.pid)
        assert len(processes) > 3
    finally:
        s.kill()
    waiting.join(LONG)
    wait_gone(processes)
    wait_until(lambda: not mentioning(str(program)), "nothing else is left")
    # What a crash leaves on disk is cleared, at the latest by the next one.
    with serve(program, home=home) as after:
        assert get(after, "hello").status_code == 200
    assert not [path for path in (home / "run").iterdir() if sockets_below(path)]


def sleeps(process: psutil.Process) -> bool:
    """The one the program starts. Others come and go."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()[-1:] == ["import time; time.sleep(600)"]
    return False


def test_ctrl_c_while_it_still_builds_ends_everything(tmp_path: Path) -> None:
    file = tmp_path / "slow_import.py"
    file.write_text(
        "import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "serve", str(file)],
        env=command_environment(shared_home()),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        parent = psutil.Process(process.pid)
        for _ in range(600):
            processes = parent.children(recursive=True)
            if any(sleeps(child) for child in processes):
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail(f"the program was not imported: {processes}")
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
    finally:
        process.kill()
        process.communicate()
    wait_gone(processes)


def test_two_at_once_on_one_home(program: Path, tmp_path: Path) -> None:
    with serve(program) as one, serve(program) as two:
        assert get(one, "hello").json() == get(two, "hello").json() == "hello"
        one.stop()
        assert get(two, "hello").json() == "hello"


def test_several_programs_behind_one_router(tmp_path: Path) -> None:
    source = (
        "import modal\napp = modal.App('{0}')\n"
        "@app.function()\n@modal.fastapi_endpoint()\ndef {0}():\n    return '{0}'\n"
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(source.format(name))
    with serve(tmp_path / "one.py", str(tmp_path / "two.py")) as s:
        assert httpx.URL(s.endpoints["one"]["url"]).port == httpx.URL(s.endpoints["two"]["url"]).port
        assert (get(s, "one").json(), get(s, "two").json()) == ("one", "two")
        (tmp_path / "two.py").write_text(source.format("two").replace("return 'two'", "return 'changed'"))
        assert s.wait_event("reloaded", 20)["app"] == "two"
        assert (get(s, "one").json(), get(s, "two").json()) == ("one", "changed")

    (tmp_path / "two.py").write_text(source.format("one"))
    clash = run_command("serve", str(tmp_path / "one.py"), str(tmp_path / "two.py"))
    assert clash.returncode == 1
    assert "one.py" in clash.stderr
    assert "two.py" in clash.stderr


def test_a_token_opens_a_private_endpoint_while_it_runs(program: Path) -> None:
    environment = "life-tokens"
    with serve(program, "--env", environment) as s:
        assert get(s, "private").status_code == 401
        made = run_command("token", "create", "--name", "mine", "--env", environment)
        assert made.returncode == 0
        lines = made.stdout.split()
        key, secret = lines[lines.index("Modal-Key:") + 1], lines[lines.index("Modal-Secret:") + 1]
        headers = {"Modal-Key": key, "Modal-Secret": secret}

        def opened() -> httpx.Response | None:
            answer = httpx.get(s.url("private"), headers=headers, timeout=30)
            return answer if answer.status_code == 200 else None

        assert wait_until(opened, "the token is known").json() == "private"
        assert httpx.URL(s.endpoints["private"]["url"]).host == f"{environment}--life-private-dev.localhost"


def test_for_people_it_says_where_and_how(program: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "modalnomad", "serve", str(program)],
        env=command_environment(shared_home()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line.rstrip())
            if "Ctrl-C" in line:
                break
        text = "\n".join(shown)
        assert "✓ life/hello → http://life-hello-dev.localhost:" in text
        assert "🔑" in text
        assert "Modal-Key" in text
        assert str(program) in text
        (curl,) = [line.strip() for line in shown if line.strip().startswith("curl http") and "hello" not in line][:1]
        assert httpx.get(curl.split()[-1], timeout=30).status_code == 200
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=40)
        assert "hello[0]" in rest
        assert "| said hello" in rest
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken_is_told_with_its_holder(program: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run_command("serve", str(program), "--port", str(port))

    assert refused.returncode == 1
    assert f"127.0.0.1:{port}" in refused.stderr
    assert "Hint" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_home_that_cannot_be_written_is_told(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = run_command("serve", str(program), home=tmp_path / "file" / "home")

    assert refused.returncode == 1
    assert str(tmp_path / "file") in refused.stderr
    assert "Traceback" not in refused.stderr


def test_wrong_settings_are_all_told(program: Path) -> None:
    env = {"MODALNOMAD_ROUTER__PORT": "banana", "MODALNOMAD_SCALING__INTERVAL": "-1"}
    refused = run_command("serve", str(program), env=env)

    assert refused.returncode == 1
    assert "MODALNOMAD_ROUTER__PORT" in refused.stderr
    assert "MODALNOMAD_SCALING__INTERVAL" in refused.stderr
    assert "banana" in refused.stderr


@pytest.mark.parametrize("arguments", [[], ["--no-such-option", "x.py"], ["--port", "99999", "x.py"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run_command("serve", *arguments).returncode == 2


def test_with_json_an_error_is_an_event_too(tmp_path: Path) -> None:
    refused = run_command("serve", "--json", str(tmp_path / "absent.py"))

    assert refused.returncode == 1
    assert '"event": "error"' in refused.stdout
    assert "absent.py" in refused.stdout


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    name = "subjectAltName=DNS:life-hello-dev.localhost"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", name, "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine to make a certificate with")
def test_https_with_a_certificate_of_ones_own(program: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with serve(program, "--tls-cert", str(cert), "--tls-key", str(key)) as s:
        url = httpx.URL(s.endpoints["hello"]["url"])
        assert url.scheme == "https"
        context = ssl.create_default_context(cafile=str(cert))
        with (
            socket.create_connection(("127.0.0.1", url.port or 0), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=url.host) as secure,
        ):
            secure.sendall(f"GET / HTTP/1.1\r\nHost: {url.host}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: secure.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'"hello"')
        assert get(s, "hello").json() == "hello"

    for arguments, says in (
        (["--tls-cert", str(cert)], "--tls-key"),
        (["--tls-cert", str(key), "--tls-key", str(key)], "cannot be used"),
        (["--tls-cert", str(tmp_path / "absent"), "--tls-key", str(key)], "absent"),
    ):
        refused = run_command("serve", str(program), *arguments)
        assert refused.returncode == 1
        assert says in refused.stderr
