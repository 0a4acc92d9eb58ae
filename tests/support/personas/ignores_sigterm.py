"""User code takes SIGTERM and SIGINT for itself and goes on; a child of its does the same."""

import modal

app = modal.App("ignores-sigterm")


@app.function()
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def site():
    import os
    import signal
    import subprocess
    import sys

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    child = subprocess.Popen([sys.executable, "-c", deaf])

    async def web_app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{os.getpid()} {child.pid}".encode()})

    return web_app
