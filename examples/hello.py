"""One function, one URL. Nothing runs until the first request comes.

modalnomad serve examples/hello.py

curl "$URL/"             → "Hello, world!"
curl "$URL/?name=Ada"    → "Hello, Ada!"
"""

import modal

app = modal.App("hello")


@app.function()
@modal.fastapi_endpoint()
def greet(name: str = "world"):
    return f"Hello, {name}!"
