"""A command that does not end in time says where it stands, so that a hang seen once can be understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.serve import ServeError, serve

PROGRAM = """
import modal

app = modal.App("stacks")

@app.function()
@modal.fastapi_endpoint()
def f():
    return 1
"""


def test_what_its_tasks_wait_for_and_its_threads_do_is_in_the_error(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    command = serve(file).start()
    with pytest.raises(ServeError, match="did not stop") as caught:
        command.wait(0.1)
    assert command.exit_code is not None
    said = str(caught.value)
    for part in ("task serve:logs", "LinesTold.follow", "generator", "Cell.watch", "Current thread", "loop.py"):
        assert part in said, said
