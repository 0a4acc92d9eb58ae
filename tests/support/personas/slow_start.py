"""Ready only after a second and a half."""

import time

import modal

app = modal.App("slow-start")


@app.cls()
@modal.concurrent(max_inputs=100)
class Slow:
    @modal.enter()
    def load(self):
        time.sleep(1.5)
        self.loads = 1

    @modal.fastapi_endpoint()
    def f(self):
        import os

        return os.getpid()
