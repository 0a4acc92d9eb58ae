"""A JSON API: pydantic checks what comes in, the answer is JSON, `docs=True` adds an interactive page at /docs.

modalnomad serve examples/orders_api.py

curl -H 'Content-Type: application/json' -d '{"items": [{"name": "tea", "price": 3.5, "count": 2}]}' "$URL/"
    → {"total":7.0,"count":2}
curl -H 'Content-Type: application/json' -d '{"items": [{"name": "tea", "price": -1}]}' "$URL/"
    → 422, saying which field is wrong
"""

import modal
from pydantic import BaseModel, Field

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("orders", image=image)


class Item(BaseModel):
    name: str
    price: float = Field(ge=0)
    count: int = Field(default=1, ge=1)


class Order(BaseModel):
    items: list[Item] = Field(min_length=1)


class Receipt(BaseModel):
    total: float
    count: int


@app.function()
@modal.concurrent(max_inputs=20)
@modal.fastapi_endpoint(method="POST", docs=True)
async def order(order: Order) -> Receipt:
    total = sum(item.price * item.count for item in order.items)
    return Receipt(total=total, count=sum(item.count for item in order.items))
