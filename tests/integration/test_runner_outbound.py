"""What a `web_server` in a network of its own reaches outside."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import running

CAN_SEPARATE = os.getuid() == 0
NAMESPACE = {c.ENV_NETWORK: "namespace", c.ENV_WEB_PORTS: "8000", c.ENV_MAX_INPUTS: "4"}
HAS_PASTA = shutil.which("pasta") is not None and os.access("/dev/net/tun", os.R_OK | os.W_OK)

LOOKS_OUTSIDE = """
    import http.server, pathlib, threading
    import modal
    app = modal.App("app")
    pathlib.Path("routes").write_text(pathlib.Path("/proc/net/route").read_text())
    pathlib.Path("resolver").write_text(pathlib.Path("/etc/resolv.conf").read_text())

    @app.function()
    @modal.web_server(8000)
    def f():
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), http.server.SimpleHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
"""


@pytest.mark.skipif(not HAS_PASTA, reason="pasta (Debian: passt) is not installed, or /dev/net/tun is closed to us")
@pytest.mark.skipif(not CAN_SEPARATE, reason="only root can give the runner another resolv.conf to find")
def test_outbound_traffic_and_a_resolver_on_the_hosts_loopback(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\n")
    covered = f'mount --bind {stub} "$(realpath /etc/resolv.conf)" && exec "$0" "$@"'
    before = Path("/etc/resolv.conf").read_text()
    away = ("unshare", "--mount", "sh", "-c", covered)
    with running(tmp_path, LOOKS_OUTSIDE, extra=NAMESPACE, prefix=away) as runner:
        runner.ready()
        assert runner.ask("/").status == 200
        assert runner.err.count("pasta") == 0
    assert len((tmp_path / "routes").read_text().splitlines()) > 1  # besides the heading
    assert (tmp_path / "resolver").read_text() == "nameserver 169.254.77.53\noptions edns0\n"
    assert stub.read_text().startswith("nameserver 127.0.0.53")
    assert Path("/etc/resolv.conf").read_text() == before
