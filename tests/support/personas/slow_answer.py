"""Answers take as long as the caller says; `timeout` is two seconds."""

import modal

app = modal.App("slow-answer")


@app.function(timeout=2, startup_timeout=30)
@modal.concurrent(max_inputs=2)
@modal.fastapi_endpoint()
async def f(seconds: float = 0.0):
    import asyncio

    await asyncio.sleep(seconds)
    return seconds
