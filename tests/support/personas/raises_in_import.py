"""The module imports where it is described and raises in the replica."""

import modal

app = modal.App("raises-in-import")

if not modal.is_local():
    raise RuntimeError("only wrong in the replica")


@app.function()
@modal.fastapi_endpoint()
def f():
    return "never"
