"""Descriptions of programs, as the platform asks for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from modalnomad.model.manifest import Description

HELLO = """
import modal

app = modal.App("hello")

@app.function()
@modal.fastapi_endpoint()
def f():
    return 1
"""


class Describe:
    """Runs `python -m modalnomad_sdk.describe` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder.parent / "out.json"
        self.output = ""
        self.environment: dict[str, str] = {}
        self.python = sys.executable

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def run(self, *reference: str) -> Any:
        """The JSON; the exit code must go with it."""
        done = subprocess.run(
            [self.python, "-m", "modalnomad_sdk.describe", *reference, "--out", str(self.out)],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.output = done.stdout + done.stderr
        answer = json.loads(self.out.read_text("utf-8"))
        assert done.returncode == (1 if "error" in answer else 0), self.output
        return answer

    def good(self, *reference: str) -> Description:
        answer = self.run(*reference)
        assert "error" not in answer, answer
        return Description.model_validate(answer)

    def error(self, code: str, *reference: str) -> Any:
        answer = self.run(*reference)
        assert "error" in answer, answer
        assert set(answer["error"]) == {"code", "message", "where", "traceback", "hint"}
        assert answer["error"]["code"] == code, answer
        return answer["error"]
