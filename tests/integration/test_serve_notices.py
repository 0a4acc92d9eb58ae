"""What `serve` says about a program beside its addresses."""

from __future__ import annotations

from pathlib import Path

from tests.support.serve import Serve, serve

PROGRAM = """
import modal

app = modal.App("remarks")

@app.function(memory=512, block_network=True)
@modal.asgi_app()
def site():
    return None

@app.function(schedule=modal.Period(hours=1))
def job():
    return None
"""
SERVERS = """
@app.function()
@modal.web_server(8000)
def one():
    return None

@app.function()
@modal.web_server(8001)
def two():
    return None
"""


def said(s: Serve, code: str) -> list[str]:
    return [event["message"] for event in s.events if event["event"] == "notice" and event["code"] == code]


def test_what_has_no_effect_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "remarks.py").write_text(PROGRAM)
    with serve(tmp_path / "remarks.py") as s:
        assert [message.split(" ")[0] for message in said(s, "no_effect")] == [
            "`schedule`",
            "`memory`",
            "`block_network`",
        ]
        assert said(s, "network") == []


def test_which_network_web_servers_get_is_said_once_for_each_app(tmp_path: Path) -> None:
    file = tmp_path / "remarks.py"
    file.write_text(PROGRAM + SERVERS)
    with serve(file) as s:
        (message,) = said(s, "network")
        assert "network" in message
        file.write_text(PROGRAM + SERVERS + "\nCHANGED = 1\n")
        s.wait_event("reloaded", 60)
        assert said(s, "network") == [message]
        assert len(said(s, "no_effect")) == 3

    with serve(file, env={"MODALNOMAD_EMBEDDED__NETWORK": "host"}) as s:
        (message,) = said(s, "network")
        assert 'network = "host"' in message
