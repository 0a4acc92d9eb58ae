"""The function returns, but no server ever listens on its port."""

import modal

app = modal.App("never-opens-port")


@app.function()
@modal.web_server(8000, startup_timeout=1)
def server():
    print("not starting anything")
