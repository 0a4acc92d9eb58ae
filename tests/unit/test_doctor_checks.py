"""What `doctor` says of facts: both ways."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded.checks import home, machine, service
from modalnomad.embedded.checks.certificates import validity
from modalnomad.embedded.checks.home import HomeFacts
from modalnomad.kit.finding import Finding
from modalnomad.settings import EmbeddedSettings, RouterSettings, ScalingSettings, Settings

HOME = Path("/srv/home")
GB = 1000**3
DAY = 86400.0


def mode(number: int) -> HomeFacts:
    return HomeFacts(HOME, True, mode=number)


@pytest.mark.parametrize(
    ("finding", "level", "words"),
    [
        (home.check_home(HomeFacts(HOME, True)), "ok", "/srv/home"),
        (home.check_home(HomeFacts(HOME, False)), "ok", "first deploy makes it"),
        (home.check_home(HomeFacts(HOME, False, writable=False)), "problem", "cannot be made"),
        (home.check_home(HomeFacts(HOME, True, folder=False)), "problem", "no folder"),
        (home.check_home(HomeFacts(HOME, True, owner=7, user=8)), "problem", "belongs to user 7, and this is user 8"),
        (home.check_home(HomeFacts(HOME, True, writable=False)), "problem", "cannot be written"),
        (home.check_home(HomeFacts(HOME, True, refusal="format 9")), "problem", "format 9"),
        (home.check_home(mode(0o755)), "warning", "mode 755"),
        (home.check_space(50 * GB, None), "ok", "50 GB free"),
        (home.check_space(50 * GB, 10**6), "ok", "1000000 files"),
        (home.check_space(GB, None), "warning", "1.0 GB free"),
        (home.check_space(GB // 10, None), "problem", "100 MB free"),
        (home.check_space(50 * GB, 20_000), "warning", "20000 files"),
        (home.check_space(50 * GB, 100), "problem", "100 files"),
        (home.check_sizes({"images": 5 * 10**6, "logs": 0}, True), "ok", "images 5.0 MB"),
        (home.check_sizes({"images": 5 * 10**6}, False), "ok", "at least images"),
        (home.check_records((), 3), "ok", "3 records"),
        (home.check_records(("a is damaged", *"bcdefg"), 9), "problem", "a is damaged; b; c; d; e and 2 more"),
        (home.check_clock(1000.0, 1100.0), "ok", ""),
        (home.check_clock(1000.0, 5000.0), "warning", "4000 seconds in the future"),
        (machine.check_versions("1", "1", "3.11", "Linux"), "ok", "modalnomad 1, Python 3.11, Linux"),
        (machine.check_versions("1", "2", "3.11", "Linux"), "warning", "modalnomad-sdk 2"),
        (machine.check_pythons(["3.11.1"], []), "ok", "3.11.1"),
        (machine.check_pythons(["3.11.1"], ["3.14"]), "ok", "not installed: 3.14"),
        (machine.check_uv("uv 0.5", "", "/c", True), "ok", "uv 0.5, cache /c"),
        (machine.check_uv(None, "not found", "", False), "problem", "not found"),
        (machine.check_uv("uv 0.5", "", "/c", False), "problem", "/c cannot be written"),
        (machine.check_namespaces(True, "auto", ""), "ok", "of its own"),
        (machine.check_namespaces(False, "auto", "user.max = 0"), "warning", "user.max = 0"),
        (machine.check_namespaces(False, "namespace", ""), "problem", "allows no network namespaces"),
        (machine.check_namespaces(True, "exclusive", ""), "warning", "the settings say so"),
        (machine.check_namespaces(True, "host", ""), "warning", "past the router"),
        (machine.check_pasta(True, True, True), "ok", "outside"),
        (machine.check_pasta(False, True, False), "ok", "not needed"),
        (machine.check_pasta(False, True, True), "warning", "not installed"),
        (machine.check_pasta(True, False, True), "warning", "/dev/net/tun"),
        (machine.check_processes(True), "ok", "ends with it"),
        (machine.check_processes(False), "warning", "supervisor"),
        (machine.check_limits({}, "auto"), "ok", "bounded"),
        (machine.check_limits({"pids": "read-only"}, "auto"), "warning", "processes and threads"),
        (machine.check_limits({"pids": "read-only"}, "auto"), "warning", "read-only"),
        (machine.check_limits({}, "off"), "warning", "bounded by nothing"),
        (machine.check_open_files(None, None, 100), "ok", "no limit"),
        (machine.check_open_files(20_000, None, 100), "ok", "20000"),
        (machine.check_open_files(1024, 1_048_576, 100), "warning", "1024 are allowed"),
        (machine.check_open_files(1024, 4096, 100), "warning", "11400"),
        (machine.check_socket_path(90, 107, None), "ok", "90"),
        (machine.check_socket_path(190, 107, "/tmp"), "ok", "in /tmp"),
        (machine.check_socket_path(190, 107, None), "problem", "too long"),
        (machine.check_gpus([]), "ok", "none"),
        (machine.check_gpus(["H100", "H100", "L4"]), "ok", "2 × H100, 1 × L4"),
        (service.check_up(None, ""), "ok", "not running"),
        (service.check_up({"pid": 7, "started_at": 0, "endpoints": [1]}, ""), "ok", "process 7 since 19"),
        (service.check_up(None, "no answer"), "problem", "no answer"),
        (service.check_port("x", 80, "free", ""), "ok", "free for x"),
        (service.check_port("x", 80, "ours", ""), "ok", "held by `up`"),
        (service.check_port("x", 80, "taken", "process 7 (nginx)"), "problem", "process 7 (nginx) has the port"),
        (service.check_port("x", 80, "taken", ""), "problem", "another program"),
        (service.check_port("x", 80, "Permission denied", ""), "problem", "Permission denied"),
        (service.check_certificate("c", 0, 100 * DAY, 50 * DAY), "ok", "valid until 1970-04-11"),
        (service.check_certificate("c", 0, 100 * DAY, 90 * DAY), "warning", "expires on 1970-04-11"),
        (service.check_certificate("c", 0, 100 * DAY, 101 * DAY), "problem", "expired"),
        (service.check_certificate("c", 60 * DAY, 100 * DAY, 50 * DAY), "problem", "not valid yet"),
        (service.check_settings_file("f", False, (), 0), "ok", "no settings file"),
        (service.check_settings_file("f", True, (), 0), "ok", "f"),
        (service.check_settings_file("f", True, ("rooter",), 0), "warning", "rooter"),
        (service.check_settings_file("f", True, (), 0o002), "warning", "other users"),
    ],
)
def test_what_is_said(finding: Finding, level: str, words: str) -> None:
    assert finding.level == level
    assert words in finding.message
    assert bool(finding.fix) == (level != "ok")


def test_another_version_of_a_running_up_is_told() -> None:
    assert service.check_version_of_up(None, "1") is None
    assert service.check_version_of_up("1", "1") is None
    found = service.check_version_of_up("1", "2")
    assert found is not None
    assert (found.level, found.message) == ("warning", "it runs modalnomad 1, and this is 2")


def settings(**router: Any) -> Settings:
    return Settings(router=RouterSettings(**router))


@pytest.mark.parametrize(
    ("given", "levels"),
    [
        (settings(), ["ok"]),
        (settings(host="0.0.0.0"), ["warning"]),
        (settings(host="0.0.0.0", tls_cert=Path("c"), tls_key=Path("k")), ["ok"]),
        (settings(admin_host="0.0.0.0"), ["warning"]),
        (settings(host="0.0.0.0", admin_host="0.0.0.0"), ["warning", "warning"]),
        (settings(admin_host=""), ["ok"]),
    ],
)
def test_what_is_open_to_the_network(given: Settings, levels: list[str]) -> None:
    found = service.check_exposure(given, {"127.0.0.1": True, "0.0.0.0": False})

    assert [finding.level for finding in found] == levels


def test_limits_that_contradict_each_other_are_told() -> None:
    short = Settings(scaling=ScalingSettings(overstay=5), embedded=EmbeddedSettings(grace_period=30))

    assert [finding.level for finding in service.check_times(Settings())] == ["ok"]
    assert [finding.level for finding in service.check_times(short)] == ["warning"]


def element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    return bytes([tag, 0x82]) + size.to_bytes(2, "big") + content


def certificate(begins: bytes, ends: bytes, *, version: bool = True) -> bytes:
    """The outline of one: UTCTime for 13 characters, GeneralizedTime for more."""
    times = b"".join(element(0x17 if len(text) == 13 else 0x18, text) for text in (begins, ends))
    head = element(0xA0, element(2, b"\x02")) if version else b""
    body = head + element(2, b"\x01" * 20) + element(0x30, b"alg") + element(0x30, b"i" * 200) + element(0x30, times)
    return element(0x30, element(0x30, body + element(0x30, b"subject")) + element(0x30, b"alg") + element(3, b"sig"))


@pytest.mark.parametrize("version", [True, False])
def test_a_certificates_times_are_read(version: bool) -> None:
    der = certificate(b"260301120000Z", b"20510301120000Z", version=version)

    assert validity(der) == tuple(ssl.cert_time_to_seconds(f"Mar  1 12:00:00 {year} GMT") for year in (2026, 2051))
    assert validity(certificate(b"500101000000Z", b"491231235959Z"))[0] < 0


@pytest.mark.parametrize("cut", [0, 1, 5, 30, 120])
def test_what_is_no_certificate_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="cut off"):
        validity(certificate(b"260301120000Z", b"270301120000Z")[:cut])
