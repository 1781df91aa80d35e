"""Where a message stands: what the log, the dead letters, its queue and its flow-control key say of it."""

from relay.cli.client import Fields, Relay, segment
from relay.cli.document import Document
from relay.cli.outcome import NOT_FOUND, Failure
from relay.cli.output import Output

Rows = list[tuple[str, str]]

_WAITING = ("CREATED", "RETRY")


def standing(relay: Relay, message: Document, output: Output, now: int) -> Rows:
    """For people, name and value. The message may move on between the questions: each answer is of its moment."""
    query = [("messageId", message["messageId"]), ("order", "latestFirst"), ("count", "2")]
    entries = relay.get("/v2/events", query).objects("events")
    if not entries:
        return []
    latest = entries[0]
    state = latest["state"]
    rows = [("state", f"{state}, since {output.moment(latest['time'])}")]
    if state == "FAILED":
        rows.append(("dead letter", _dead_letter(relay, message)))
    rows += [("last error", entry["error"]) for entry in entries if entry.get("error")]
    if state in _WAITING:
        due_at = latest.get("nextDeliveryTime")
        rows.append(("next attempt", output.moment(due_at) or "as soon as it can be made"))
        rows += _held_by(relay, message, first=state == "CREATED", due=due_at is None or due_at <= now)
    return rows


def _dead_letter(relay: Relay, message: Document) -> str:
    query: Fields = [("messageId", message["messageId"]), ("count", "1")]
    letters = relay.get("/v2/dlq", query).objects("messages")
    return str(letters[0]["dlqId"]) if letters else "none any more: sent again, deleted or forgotten"


def _held_by(relay: Relay, message: Document, *, first: bool, due: bool) -> Rows:
    """What is paused, or full, and has to let it pass. A message that was attempted has its lane of the queue."""
    rows = []
    if "queueName" in message:
        name = message["queueName"]
        queue = _found(relay, f"/v2/queues/{segment(name)}")
        if queue is not None and queue["paused"]:
            rows.append(("waits for", f"queue {name}, which is paused: relay queues resume {name}"))
        elif first and queue is not None and queue["lag"] > queue["parallelism"]:
            ahead = f"{queue['lag']} unfinished, {queue['parallelism']} at a time"
            rows.append(("waits for", f"its turn in queue {name}: {ahead}"))
    if "flowControlKey" in message:
        name = message["flowControlKey"]
        key = _found(relay, f"/v2/flowControl/{segment(name)}")
        if key is not None and key["isPaused"]:
            rows.append(("waits for", f"flow key {name}, which is paused: relay flow-control resume {name}"))
        elif due and key is not None and key["waitListSize"]:
            rows.append(("waits for", f"its turn at flow key {name}: {key['waitListSize']} waiting"))
    return rows


def _found(relay: Relay, path: str) -> Document | None:
    try:
        return relay.get(path)
    except Failure as failure:
        if failure.code != NOT_FOUND:
            raise
        return None
