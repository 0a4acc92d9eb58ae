"""Who may come in, and what the program may know: a proxy-auth token at the door, a Secret inside.

modalnomad secret create weather-key API_KEY=k-123
modalnomad token create                                  → prints a key and its secret, once
modalnomad serve examples/private_api.py

curl "$URL/"                                                        → 401: no replica was even started
curl -H "Modal-Key: wk-…" -H "Modal-Secret: ws-…" "$URL/?city=Oslo" → {"city":"Oslo","key_ends_with":"23"}
"""

import os

import modal

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("private-api", image=image)


@app.function(secrets=[modal.Secret.from_name("weather-key", required_keys=["API_KEY"])])
@modal.fastapi_endpoint(requires_proxy_auth=True)
def weather(city: str):
    return {"city": city, "key_ends_with": os.environ["API_KEY"][-2:]}


@app.function(secrets=[modal.Secret.from_dict({"GREETING": "come in"})])
@modal.fastapi_endpoint()
def door():
    return os.environ["GREETING"]
