"""The replica's process ends during import, with an exit status of its own."""

import os
import sys

import modal

app = modal.App("exits-at-once")

if not modal.is_local():
    print("leaving already", flush=True)
    sys.stdout.flush()
    os._exit(3)


@app.function()
@modal.fastapi_endpoint()
def f():
    return "never"
