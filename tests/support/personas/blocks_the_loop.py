"""An `async` handler that blocks its event loop: nothing else in this replica runs meanwhile."""

import time

import modal

app = modal.App("blocks-the-loop")


@app.function()
@modal.concurrent(max_inputs=10)
@modal.fastapi_endpoint()
async def f(seconds: float = 0.0):
    time.sleep(seconds)  # noqa: ASYNC251 - the misbehaviour
    return seconds
