"""Children and grandchildren that leave their session, ignore signals and hold everything they inherited."""

import modal

app = modal.App("forks-grandchildren")

GRANDCHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}], start_new_session=True, close_fds=False)
print(child.pid, flush=True)
"""


@app.function()
@modal.concurrent(max_inputs=10)
@modal.fastapi_endpoint()
def f():
    import os
    import subprocess
    import sys

    options = {"start_new_session": True, "close_fds": False}
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, **options)
    grandchild = int(child.stdout.readline())
    child.wait()  # the grandchild is an orphan now
    sleeper = subprocess.Popen([sys.executable, "-c", GRANDCHILD], **options)
    return {"replica": os.getpid(), "sleeper": sleeper.pid, "grandchild": grandchild}
