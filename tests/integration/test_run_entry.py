"""The command's end of the socket to a local entrypoint (deploy/entry.py), with a real entrypoint behind it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from modalnomad.deploy.collect import Reference
from modalnomad.deploy.entry import EntryProcess

PROGRAM = """
import modal

app = modal.App("entry")

@app.local_entrypoint()
def main():
    return "done"
"""


async def test_an_answer_that_comes_as_the_program_ends_costs_nothing_of_what_it_returned(tmp_path: Path) -> None:
    """As that of a call which nobody waits for does."""
    (tmp_path / "prog.py").write_text(PROGRAM)
    process = await EntryProcess.start(Reference(str(tmp_path / "prog.py")), [], on_line=lambda name, line: None)
    try:
        assert await process.described() is not None
        await process.tell({"start": True})
        ending = asyncio.create_task(process.ended(), name="ending")
        await asyncio.wait({ending}, timeout=1)  # as long as one who does not listen
        for _ in range(3):
            await process.tell({"answer": 1, "outcome": "result"}, b"late")
        async with asyncio.timeout(60), aclosing(process.messages()) as messages:  # type: ignore[type-var]
            assert [message.record async for message in messages] == [{"returned": {"result": "done", "text": None}}]
        assert await ending == 0
    finally:
        await process.close()
