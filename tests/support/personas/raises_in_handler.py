"""The handler raises; the replica lives on."""

import modal

app = modal.App("raises-in-handler")


@app.function()
@modal.fastapi_endpoint()
def f(wrong: bool = True):
    if wrong:
        raise RuntimeError("something the caller must not read")
    return "fine"
