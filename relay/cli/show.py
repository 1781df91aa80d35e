"""Messages, dead letters and schedules in full, for people."""

from base64 import b64decode
from collections.abc import Mapping

from relay.cli.document import Document, strange
from relay.cli.output import Output, printable


def show_message(output: Output, message: Document) -> None:
    output.details(
        [
            ("message", message["messageId"]),
            ("destination", f"{message['method']} {message['url']}"),
            ("published", output.moment(message["createdAt"])),
            ("not before", _delayed(output, message)),
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
            *_terms(letter),
            # The API says 0 when none arrived.
            ("last answer", str(letter["responseStatus"] or "none")),
            ("last error", letter.get("error", "")),
            *_headers("answer header", letter.get("responseHeader")),
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
    return ", ".join(part for part in (answered, letter.get("error", "")) if part)


def _delayed(output: Output, message: Document) -> str:
    return output.moment(message["notBefore"]) if message["notBefore"] > message["createdAt"] else ""


def _terms(document: Document) -> list[tuple[str, str]]:
    """What messages, dead letters and schedules say in the same words."""
    rows = [("retries", str(document["maxRetries"]))] if "maxRetries" in document else []
    rows += [
        ("retry delay", document.get("retryDelayExpression", "")),
        ("timeout", f"{document['timeout']} s" if "timeout" in document else ""),
        ("labels", ", ".join(document.get("labels", ()))),
        ("queue", document.get("queueName", "")),
        ("flow key", document.get("flowControlKey", "")),
        ("from", document.get("callerIP", "")),
    ]
    if "scheduleId" in document and "cron" not in document:
        rows.append(("schedule", document["scheduleId"]))
    return rows + _headers("header", document.get("header"))


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
