"""`enter` raises."""

import modal

app = modal.App("raises-in-enter")


@app.cls()
class Model:
    @modal.enter()
    def load(self):
        raise RuntimeError("the weights are gone")

    @modal.fastapi_endpoint()
    def ask(self):
        return "never"
