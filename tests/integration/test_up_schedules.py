"""Functions with a schedule under `up`: they run in replicas, their lines are kept, deploys and stops are followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runner import wait_until
from tests.support.serve import run_command
from tests.support.up import own_home, store, up

PROGRAM = """
import modal

app = modal.App("ticking")

@app.function(schedule=modal.Period(seconds=1))
def tick():
    print("tick of VERSION")

@app.function(schedule=modal.Period(seconds=1))
def fails():
    raise LookupError("nothing of VERSION")
"""


def test_schedules_run_under_up_and_follow_deploys(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    program = tmp_path / "ticking.py"
    program.write_text(PROGRAM.replace("VERSION", "one"))
    store(home, program)
    with up(home) as u:
        u.wait_log("tick of one", timeout=60)
        u.wait_log("LookupError: nothing of one", timeout=60)

        def ticks(version: str) -> int:
            return sum(e["event"] == "log" and e["line"] == f"tick of {version}" for e in list(u.events))

        wait_until(lambda: ticks("one") >= 3, "it runs again and again", within=60)
        assert {e["function"] for e in u.events if e["event"] == "replica"} == {"tick", "fails"}

        program.write_text(PROGRAM.replace("VERSION", "two"))
        store(home, program)
        u.wait_log("tick of two", timeout=60)

        stopped = run_command("app", "stop", "ticking", "--yes", home=home)
        assert stopped.returncode == 0, stopped.stderr
        wait_until(lambda: all(state == "gone" for state in _states(u.events).values()), "replicas end", within=60)
        failed = "fails, run by its schedule, failed: LookupError: nothing"
        wait_until(lambda: any(failed in line for line in list(u.stderr_lines)), "its failure is told")
    assert u.exit_code == 0


def _states(events: list[dict[str, object]]) -> dict[tuple[object, object], object]:
    return {(e["pool"], e["replica"]): e["state"] for e in list(events) if e["event"] == "replica"}


@pytest.mark.timeout(240)  # six commands, one after the other, each of which imports all it has
def test_a_wrong_schedule_is_refused_with_its_line(tmp_path: Path) -> None:
    home = own_home(tmp_path)
    for schedule, words in (
        (
            'modal.Cron("61 * * * *")',
            "`f` has the cron expression '61 * * * *', which is wrong: bad minute",
        ),
        ('modal.Cron("0 9 * * *", timezone="Mars/Olympus")', "wrong.py:3: `f` has the timezone 'Mars/Olympus'"),
        ('modal.Cron("9 * *")', "five fields are needed"),
        ('modal.Cron("0 9 * * !")', "'!' is no field"),
        ("modal.Period(minutes=-1)", "time goes forward"),
        ("modal.Period()", "no time"),
    ):
        program = f"import modal\napp = modal.App('wrong')\n@app.function(schedule={schedule})\ndef f(): pass\n"
        (tmp_path / "wrong.py").write_text(program)
        refused = run_command("deploy", "wrong.py", home=home, cwd=tmp_path)
        assert refused.returncode == 1
        assert words in refused.stderr, refused.stderr
        assert "wrong.py:3" in refused.stderr
