"""What schemathesis is told besides the description: what there is, and where a message can arrive.

Without this every id would be one of nothing, every destination a string that is no URL, and most of the API never
be seen. Every other value stays as it was made up; which, follows from the value.
"""

import json
import os
import time
from functools import lru_cache
from typing import Any
from urllib.request import Request, urlopen

import schemathesis

_RELAY = os.environ["FUZZ_RELAY"]
_TOKEN = os.environ["FUZZ_TOKEN"]
#: The receiver of the sealed relay, and the ways it answers.
_URLS = tuple(f"{os.environ['FUZZ_RECEIVER']}/{path}" for path in ("hook", "404", "489", "500", "hook?q=1"))
_SCHEDULES_BY_DESTINATION = "POST /v2/schedules/{schedule_id}"

#: For each parameter of a path: where to look for something it can name, and which of it is the name.
_LISTED = {
    "message_id": ("/v2/events?count=50", "messageId"),
    "dlq_id": ("/v2/dlq?count=50", "dlqId"),
    "schedule_id": ("/v2/schedules", "scheduleId"),
    "name": ("/v2/topics", "name"),
    "queue": ("/v2/queues", "name"),
    "key": ("/v2/flowControl", "flowControlKey"),
}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    for name, value in (path_parameters or {}).items():
        if name == "destination" or (name, context.operation.label) == (
            "schedule_id",
            _SCHEDULES_BY_DESTINATION,
        ):
            path_parameters[name] = _sendable(value)
        elif name in _LISTED:
            path_parameters[name] = _existing(value, *_LISTED[name])
    return path_parameters


@schemathesis.hook
def map_headers(context: Any, headers: Any) -> Any:
    for name in ("Upstash-Callback", "Upstash-Failure-Callback"):
        if headers and name in headers:
            headers[name] = _sendable(headers[name])
    return headers


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    for item in body if isinstance(body, list) else ():
        if isinstance(item, dict) and "destination" in item:
            item["destination"] = _sendable(item["destination"])
    if isinstance(body, dict) and isinstance(body.get("endpoints"), list):
        for endpoint in body["endpoints"]:
            if isinstance(endpoint, dict) and "url" in endpoint:
                endpoint["url"] = _sendable(endpoint["url"])
    return body


def _chance(value: object) -> int:
    return sum(str(value).encode(errors="replace"))


def _sendable(made_up: Any) -> Any:
    chance = _chance(made_up)
    return made_up if chance % 2 else _URLS[chance // 2 % len(_URLS)]


def _existing(made_up: Any, path: str, member: str) -> Any:
    chance = _chance(made_up)
    if chance % 2:
        return made_up
    listed = _listed(path, int(time.monotonic()))
    return listed[chance // 2 % len(listed)][member] if listed else made_up


@lru_cache(maxsize=16)
def _listed(path: str, second: int) -> Any:
    """What there is of a kind, asked once a `second`."""
    request = Request(_RELAY + path, headers={"Authorization": f"Bearer {_TOKEN}"})
    with urlopen(request, timeout=20) as response:
        listed = json.load(response)
    if isinstance(listed, dict):
        listed = listed.get("events") or listed.get("messages") or []
    return listed
