"""Orders that are paid for later: each is a job this application publishes to itself, and does when called."""

import json
import os
from base64 import b64decode
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from qstash import AsyncQStash, Receiver
from qstash.errors import SignatureError
from qstash.message import PublishResponse

queue = AsyncQStash(os.environ["QSTASH_TOKEN"])  # and QSTASH_URL
receiver = Receiver(os.environ["QSTASH_CURRENT_SIGNING_KEY"], os.environ["QSTASH_NEXT_SIGNING_KEY"])
own_url = os.environ["APP_URL"]
orders: dict[str, Any] = {}

app = FastAPI()


async def signed(request: Request) -> Any:
    """The body of what was signed for this very address, and of nothing else."""
    body = (await request.body()).decode()
    try:
        receiver.verify(
            signature=request.headers.get("Upstash-Signature", ""), body=body, url=own_url + request.url.path
        )
    except SignatureError as problem:
        raise HTTPException(401) from problem
    return json.loads(body)


Signed = Annotated[Any, Depends(signed)]


@app.post("/orders", status_code=202)
async def order(placed: dict[str, str]) -> dict[str, str]:
    orders[placed["id"]] = {"state": "ordered"}
    answer = await queue.message.publish_json(
        url=f"{own_url}/jobs/pay",
        body=placed,
        retries=1,
        retry_delay="100",
        deduplication_id=f"pay-{placed['id']}",
        failure_callback=f"{own_url}/jobs/unpaid",
    )
    assert isinstance(answer, PublishResponse)
    return {"messageId": answer.message_id}


@app.get("/orders/{order_id}")
async def show(order_id: str) -> Any:
    return orders[order_id]


@app.post("/jobs/pay")
async def pay(job: Signed, request: Request) -> None:
    if job["card"] == "empty":
        raise HTTPException(402)
    orders[job["id"]] = {"state": "paid", "message": request.headers["Upstash-Message-Id"]}


@app.post("/jobs/unpaid")
async def unpaid(report: Signed) -> None:
    placed = json.loads(b64decode(report["sourceBody"]))
    orders[placed["id"]] = {
        "state": "unpaid",
        "status": report["status"],
        "deadLetter": report["dlqId"],
    }
