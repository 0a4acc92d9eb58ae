"""Streamlit behind `web_server`: a program with a port of its own, WebSocket included.

    modalnomad serve examples/dashboard_streamlit.py        then open the URL in a browser

    curl "$URL/_stcore/health"    → ok

Every replica has port 8000 to itself: each runs in a network namespace of its own where the system allows it.
"""

import modal

image = modal.Image.debian_slim().pip_install("streamlit")
app = modal.App("dashboard", image=image)

SCRIPT = """
import streamlit as st

st.title("Dashboard")
days = st.slider("Days", 1, 30, 7)
st.line_chart({"visits": [day * day for day in range(days)]})
"""


@app.function()
@modal.concurrent(max_inputs=100)
@modal.web_server(8000, startup_timeout=60)
def dashboard():
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    script = Path(tempfile.mkdtemp()) / "dashboard.py"
    script.write_text(SCRIPT)
    options = {
        "server.port": "8000",
        "server.address": "127.0.0.1",
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "server.enableCORS": "false",
        "server.enableXsrfProtection": "false",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    subprocess.Popen([sys.executable, "-m", "streamlit", "run", str(script), *flags])
