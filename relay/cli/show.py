"""Messages, dead letters and schedules in full, for people."""

from base64 import b64decode
from collections.abc import Mapping

from relay.cli.document import Document, strange
from relay.cli.output import Output, printable

#: What asks a client to go elsewhere.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: With its header it ends a message whatever retries it had left.
_NEVER_AGAIN = 489


def show_message(output: Output, message: Document, standing: list[tuple[str, str]]) -> None:
    output.details(
        [
            ("message", message["messageId"]),
            ("destination", f"{message['method']} {message['url']}"),
            ("published", output.moment(message["createdAt"])),
            ("not before", _delayed(output, message)),
            *standing,
            *_terms(message),
        ]
    )
    _show_body(output, "body", message, "body", "bodyBase64")


def show_dead_letter(output: Output, letter: Document) -> None:
    output.details(
        [
            ("dead letter", letter["dlqId"]),
            ("message", letter["messageId"]),
            ("destination", f"{letter['method']} {letter['url']}"),
            ("published", output.moment(letter["createdAt"])),
            ("failed", output.moment(failed_at(letter))),
            ("tries", _tries(letter)),
            *_terms(letter),
            # The API says 0 when none arrived.
            ("last answer", str(letter["responseStatus"] or "none")),
            ("last error", ", ".join(_explained(letter))),
            *_headers("answer header", letter.get("responseHeader")),
            ("send it again", f"relay dlq retry {letter['dlqId']}"),
        ]
    )
    _show_body(output, "body", letter, "body", "bodyBase64")
    _show_body(output, "last answer's body", letter, "responseBody", "responseBodyBase64")


def show_schedule(output: Output, schedule: Document) -> None:
    runs = schedule.get("lastScheduleStates", {})
    output.details(
        [
            ("schedule", schedule["scheduleId"]),
            ("cron", schedule["cron"]),
            ("destination", f"{schedule['method']} {schedule['destination']}"),
            ("state", schedule_state(schedule)),
            ("created", output.moment(schedule["createdAt"])),
            ("last run", output.moment(schedule.get("lastScheduleTime"))),
            *(("", f"{message} {state}") for message, state in runs.items()),
            ("next run", output.moment(schedule.get("nextScheduleTime"))),
            ("delay", f"{schedule['delay']} s" if "delay" in schedule else ""),
            ("retries", str(schedule["retries"])),
            *_terms(schedule),
            ("error", schedule.get("error", "")),
        ]
    )
    _show_body(output, "body", schedule, "body", "bodyBase64")


def schedule_state(schedule: Document) -> str:
    if schedule["isPaused"]:
        return "paused"
    return "failing" if schedule.get("error") else "active"


def failed_at(letter: Document) -> int:
    """The instant (Unix ms) in its id, `<Unix ms>-<number>`: nothing else of a dead letter tells when it failed."""
    at = str(letter["dlqId"]).partition("-")[0]
    if not (at.isascii() and at.isdigit()):
        raise strange("with a dead letter whose id has no time in it")
    return int(at)


def reason(letter: Document) -> str:
    """Why a dead letter failed, in a few words."""
    answered = f"answered {letter['responseStatus']}" if letter["responseStatus"] else ""
    return ", ".join(part for part in (answered, *_explained(letter)) if part)


def _explained(letter: Document) -> list[str]:
    """What the status alone does not say."""
    said = [letter["error"]] if letter.get("error") else []
    if letter["responseStatus"] in _REDIRECTS:
        said.append("redirects are not followed")
    if letter["responseStatus"] == _NEVER_AGAIN and letter.get("retried", 0) < letter["maxRetries"]:
        said.append("with Upstash-NonRetryable-Error: not to be tried again")
    return said


def _tries(letter: Document) -> str:
    """The API says nothing of retries when there were none."""
    return f"{letter.get('retried', 0) + 1} of {letter['maxRetries'] + 1}"


def _delayed(output: Output, message: Document) -> str:
    return output.moment(message["notBefore"]) if message["notBefore"] > message["createdAt"] else ""


def _terms(document: Document) -> list[tuple[str, str]]:
    """What messages, dead letters and schedules say in the same words."""
    rows = [("retries", str(document["maxRetries"]))] if "maxRetries" in document else []
    rows += [
        ("retry delay", document.get("retryDelayExpression", "")),
        ("timeout", f"{document['timeout']} s" if "timeout" in document else ""),
        ("labels", ", ".join(document.get("labels", ()))),
        ("url group", _group(document)),
        ("queue", document.get("queueName", "")),
        ("flow key", document.get("flowControlKey", "")),
        ("callback", document.get("callback", "")),
        ("on failure", document.get("failureCallback", "")),
        ("callback of", document.get("sourceMessageId", "")),
        ("from", document.get("callerIP", "")),
    ]
    if "scheduleId" in document and "cron" not in document:
        rows.append(("schedule", document["scheduleId"]))
    return rows + _headers("header", document.get("header"))


def _group(document: Document) -> str:
    """The URL group a message was published to, and the name of the endpoint in it, if it has one."""
    endpoint = f" (endpoint {document['endpointName']})" if "endpointName" in document else ""
    return f"{document['topicName']}{endpoint}" if "topicName" in document else ""


def _headers(title: str, headers: Mapping[str, list[str]] | None) -> list[tuple[str, str]]:
    return [(title, f"{name}: {value}") for name, values in (headers or {}).items() for value in values]


def _show_body(output: Output, title: str, document: Document, text: str, base64: str) -> None:
    if text in document:
        output.line(f"\n{title}:")
        for line in document[text].splitlines():
            output.line(printable(line))
    elif base64 in document:
        size = len(b64decode(document[base64]))
        output.line(f"\n{title}: {size} bytes that are not text; --json shows them in base64")
