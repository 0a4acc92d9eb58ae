"""A program whose server has a fixed port, and a request that lasts until the test lets it end."""

from __future__ import annotations

from pathlib import Path

PROGRAM = """
import modal, subprocess, sys

app = modal.App("{app}")

CODE = '''
import http.server, pathlib, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            pathlib.Path({folder!r}, "begun").touch()
            while not pathlib.Path({folder!r}, "over").exists():
                time.sleep(0.01)
        body = {body!r}
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
'''

@app.function()
@modal.concurrent(max_inputs=10)
@modal.web_server({port})
def server():
    subprocess.Popen([sys.executable, "-c", CODE])
"""


def fixed_port(app: str, port: int, answer: str, folder: Path) -> str:
    """Its text. GET /slow makes the file `begun` in `folder`, and is answered once there is `over`."""
    return PROGRAM.format(app=app, port=port, body=answer.encode(), folder=str(folder))
