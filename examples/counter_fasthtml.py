"""FastHTML: pages written as Python, parts of them exchanged without a reload.

modalnomad serve examples/counter_fasthtml.py        then open the URL in a browser

curl "$URL/"                  → the whole page
curl -X POST "$URL/count"     → only the part that changes: <p id="count">1</p>
"""

import modal

image = modal.Image.debian_slim().pip_install("python-fasthtml")
app = modal.App("counter", image=image)


@app.function(max_containers=1)
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def site():
    from fasthtml.common import Button, FastHTML, P, Titled, to_xml
    from starlette.responses import HTMLResponse

    web_app = FastHTML()
    state = {"count": 0}  # one replica at most (max_containers=1), so one count

    def count():
        return P(str(state["count"]), id="count")

    @web_app.get("/")
    def page():
        return Titled("Counter", count(), Button("Add one", hx_post="/count", hx_target="#count", hx_swap="outerHTML"))

    @web_app.post("/count")
    def add():
        state["count"] += 1
        return HTMLResponse(to_xml(count()))

    return web_app
