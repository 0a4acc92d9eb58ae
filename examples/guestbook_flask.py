"""A Flask app with a form, on threads: `wsgi_app` runs one thread per request.

modalnomad serve examples/guestbook_flask.py

curl "$URL/"                                  → the page with its form
curl -L -d name=Ada -d text=Hi "$URL/sign"    → the page with Ada's line
curl "$URL/who"                               → your address and the path, as WSGI sees them
"""

import modal

image = modal.Image.debian_slim().pip_install("flask")
app = modal.App("guestbook")

PAGE = """<!doctype html>
<title>Guestbook</title>
<h1>Guestbook</h1>
<form method="post" action="/sign">
  <input name="name" placeholder="Name"> <input name="text" placeholder="Text"> <button>Sign</button>
</form>
<ul>{% for name, text in entries %}<li>{{ name }}: {{ text }}</li>{% endfor %}</ul>
"""


@app.function(image=image, max_containers=1)
@modal.concurrent(max_inputs=20)
@modal.wsgi_app()
def site():
    from flask import Flask, jsonify, redirect, render_template_string, request

    web_app = Flask(__name__)
    entries = []  # lives as long as the replica: a real guestbook would use a database

    @web_app.get("/")
    def page():
        return render_template_string(PAGE, entries=entries)

    @web_app.post("/sign")
    def sign():
        entries.append((request.form["name"], request.form["text"]))
        return redirect("/")

    @web_app.get("/who")
    def who():
        return jsonify(address=request.remote_addr, host=request.host, path=request.path)

    return web_app
