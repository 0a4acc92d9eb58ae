"""The import never ends in the replica; it ends at once where it is described."""

import time

import modal

app = modal.App("hangs-in-import")

if not modal.is_local():
    print("hanging", flush=True)
    time.sleep(3600)


@app.function(startup_timeout=2)
@modal.fastapi_endpoint()
def f():
    return "never"
