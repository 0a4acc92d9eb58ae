"""An `exit` method that takes longer than anybody waits."""

import time

import modal

app = modal.App("slow-exit")


@app.cls()
class Slow:
    @modal.fastapi_endpoint()
    def f(self):
        return "fine"

    @modal.exit()
    def leave(self):
        print("leaving slowly", flush=True)
        time.sleep(3600)
