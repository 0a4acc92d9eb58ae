"""A server that opens its port and ends when it is asked for `/die`."""

import modal

app = modal.App("server-dies")

SERVER = """
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(1)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


@app.function()
@modal.concurrent(max_inputs=10)
@modal.web_server(8000, startup_timeout=30)
def server():
    import subprocess
    import sys

    subprocess.Popen([sys.executable, "-c", SERVER])
