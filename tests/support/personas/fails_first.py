"""Fails its first two starts, then works: `COUNT_FILE` (its environment) holds how often it was started."""

import os
from pathlib import Path

import modal

app = modal.App("fails-first")


@app.cls(secrets=[modal.Secret.from_name("fails-first", required_keys=["COUNT_FILE"])])
class Flapping:
    @modal.enter()
    def load(self):
        counter = Path(os.environ["COUNT_FILE"])
        starts = int(counter.read_text() or 0) + 1 if counter.exists() else 1
        counter.write_text(str(starts))
        if starts <= 2:
            raise RuntimeError(f"start number {starts} fails")
        self.starts = starts

    @modal.fastapi_endpoint()
    def f(self):
        return self.starts
