"""Several Functions and classes in one App, each with a URL of its own; one class has several web methods.

modalnomad serve examples/toolbox.py

curl "$UPPER/?text=hi"                    → "HI"
curl "$SORTED/?text=hello"                → "ehllo"
curl "$STATISTICS_ADD/" -d '[1, 2, 3]' -H 'Content-Type: application/json'     → {"count":3}
curl "$STATISTICS_MEAN/"                  → {"mean":2.0}: the same replica, the same object
curl "$STATISTICS_REPORT/count"           → {"count":3}: an ASGI app on the same object
curl "$CLOCK_TIME/now"                    → the time, from a WSGI app
"""

import modal

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("toolbox", image=image)


@app.function()
@modal.fastapi_endpoint()
def upper(text: str):
    return text.upper()


@app.function(name="sorted-letters")
@modal.fastapi_endpoint(label="toolbox-sorted")
async def sort_letters(text: str):
    return "".join(sorted(text))


@app.cls(max_containers=1)
@modal.concurrent(max_inputs=10)
class Statistics:
    @modal.enter()
    def start(self):
        self.numbers = []

    @modal.fastapi_endpoint(method="POST")
    def add(self, numbers: list[float]):
        self.numbers += numbers
        return {"count": len(self.numbers)}

    @modal.fastapi_endpoint()
    def mean(self):
        return {"mean": sum(self.numbers) / len(self.numbers) if self.numbers else None}

    @modal.asgi_app()
    def report(self):
        from fastapi import FastAPI

        web_app = FastAPI()

        @web_app.get("/count")
        def count():
            return {"count": len(self.numbers)}

        return web_app


@app.cls()
class Clock:
    @modal.wsgi_app()
    def time(self):
        import json
        import time

        def application(environ, start_response):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"path": environ["PATH_INFO"], "unix": time.time()}).encode()]

        return application
