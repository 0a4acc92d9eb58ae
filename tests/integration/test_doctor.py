"""`modalnomad doctor` on homes and machines that are well, and on others."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve import run_command
from tests.support.up import own_home, up

FREE = {"MODALNOMAD_ROUTER__PORT": "0", "MODALNOMAD_ROUTER__ADMIN_PORT": "0"}
"""Whatever listens on the usual ports of the machine that runs the tests is none of their business."""


def doctor(home: Path, env: Mapping[str, str] | None = None, *, code: int | None = None) -> dict[str, dict[str, Any]]:
    """Check → finding; the worst of several of one name."""
    done = run_command("doctor", "--json", home=home, env={**FREE, **(env or {})})
    assert done.stderr == ""
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(finding) == {"check", "level", "message", "fix"} for finding in findings)
    problems = [finding for finding in findings if finding["level"] == "problem"]
    assert done.returncode == (1 if problems else 0), problems
    assert code is None or done.returncode == code, problems
    order = ["ok", "warning", "problem"]
    return {finding["check"]: finding for finding in sorted(findings, key=lambda f: order.index(f["level"]))}


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


def test_a_home_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    found = doctor(tmp_path / "absent", code=0)

    assert "first deploy makes it" in found["home"]["message"]
    assert not (tmp_path / "absent").exists()
    assert {"versions", "settings", "disk", "records", "up", "python", "uv", "network", "processes", "limits"} <= set(
        found
    )


def test_a_running_up_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    with up(home) as u:
        before = contents(home)
        found = doctor(home, {"MODALNOMAD_ROUTER__PORT": str(u.port)}, code=0)
        assert contents(home) == before
    assert f"process {u.pid} " in found["up"]["message"]
    assert "held by `up`" in found[f"port {u.port}"]["message"]
    assert "not running" in doctor(home, code=0)["up"]["message"]


def test_an_up_that_cannot_be_asked_is_told_beside_all_else(tmp_path: Path) -> None:
    """Somebody else's folder where the control socket should be."""
    home = own_home(tmp_path)
    (open_to_all := tmp_path / "open").mkdir()
    open_to_all.chmod(0o777)
    (home / "control").symlink_to(open_to_all)

    found = doctor(home, code=1)

    assert "is not only for the owner" in found["up"]["message"]
    assert "records" in found


def test_who_has_the_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = doctor(tmp_path / "home", {"MODALNOMAD_ROUTER__PORT": str(port)}, code=1)[f"port {port}"]

    assert f"process {os.getpid()} (" in found["message"]
    assert "--port" in found["fix"]


def test_damaged_records_are_named(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    assert run_command("token", "create", home=home).returncode == 0
    assert run_command("secret", "create", "s", "PASSWORD=tell-nobody", home=home).returncode == 0
    assert doctor(home, code=0)["records"]["message"] == "2 records are whole"
    (token,) = (home / "discovery" / "tokens").rglob("*.json")
    (secret,) = (home / "secrets").rglob("*.json")
    token.write_bytes(token.read_bytes()[:-5])
    secret.write_bytes(secret.read_bytes()[:-5])
    found = doctor(home, code=1)["records"]

    assert str(token) in found["message"]
    assert str(secret) in found["message"]
    assert "tell-nobody" not in json.dumps(found)


def test_a_home_of_a_newer_format_and_one_that_is_open_to_all(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    assert run_command("token", "create", home=home).returncode == 0
    home.chmod(0o755)
    assert doctor(home, code=0)["home"]["fix"] == f"chmod 700 {home}"
    marker = home / "format"
    marker.write_text(marker.read_text().replace('"version":1', '"version":99'))
    assert "newer modalnomad (format 99" in doctor(home, code=1)["home"]["message"]
    shutil.rmtree(home)
    home.write_text("")
    assert "no folder" in doctor(home, code=1)["home"]["message"]


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("[rooter]\nport = 1\n", "warning", "rooter mean nothing"),
        ('[router]\nhost = "127.0.0.1"\n', "ok", "config.toml"),
        ("[router]\nport = 'x'\n", "problem", "PORT"),
        ("not toml", "problem", "cannot be read"),
    ],
)
def test_the_settings_file_is_read(tmp_path: Path, text: str, level: str, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    done = run_command("doctor", "--json", home=tmp_path / "home", env={"MODALNOMAD_CONFIG": str(file)})
    found = next(f for f in map(json.loads, done.stdout.splitlines()) if f["check"] == "settings")

    assert found["level"] == level
    assert words in found["message"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine to make a certificate with")
def test_the_certificate_of_the_settings_is_looked_at(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "3", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    pair = {"MODALNOMAD_ROUTER__TLS_CERT": str(cert), "MODALNOMAD_ROUTER__TLS_KEY": str(key)}

    found = doctor(tmp_path / "home", pair, code=0)["certificate"]
    assert (found["level"], "expires on 2" in found["message"]) == ("warning", True)
    found = doctor(tmp_path / "home", pair | {"MODALNOMAD_ROUTER__TLS_KEY": str(cert)}, code=1)["certificate"]
    assert "cannot be used" in found["message"]


def test_a_check_that_fails_is_told_and_the_others_are_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    found = doctor(file / "below")

    assert found["home"]["level"] == "problem"
    assert found["uv"]["level"] == "ok"


def test_people_get_marks_and_ways_out(tmp_path: Path) -> None:
    done = run_command("doctor", home=tmp_path / "home", env=FREE | {"MODALNOMAD_EMBEDDED__LIMITS": "off"})

    assert done.returncode == 0
    assert "✓ home " in done.stdout
    assert "! limits " in done.stdout
    assert '→ take "auto"' in done.stdout
