"""The App: two Functions that share the package's modules and data."""

import modal

from . import books
from .pages import titles_page

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("shelf", image=image)


@app.function()
@modal.fastapi_endpoint()
def search(word: str):
    return [book.title for book in books.ALL if word.lower() in book.title.lower()]


@app.function()
@modal.asgi_app()
def titles():
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

    web_app = FastAPI()

    @web_app.get("/titles", response_class=HTMLResponse)
    async def page():
        return titles_page(books.ALL)

    return web_app
