"""Answers of the API with only the relevant fields named."""

from typing import Any

from tests.cli.console import NOW


def a_message(**fields: Any) -> dict[str, Any]:
    return {
        "messageId": "msg_1",
        "url": "https://example.com/hook",
        "method": "POST",
        "header": {},
        "maxRetries": 3,
        "notBefore": NOW,
        "createdAt": NOW,
        **fields,
    }


def a_letter(**fields: Any) -> dict[str, Any]:
    return a_message(**{"dlqId": "1800000000000-0", "responseStatus": 500, **fields})


def a_schedule(**fields: Any) -> dict[str, Any]:
    return {
        "scheduleId": "scd_1",
        "cron": "0 9 * * *",
        "destination": "https://example.com/report",
        "method": "POST",
        "createdAt": NOW,
        "retries": 3,
        "isPaused": False,
        **fields,
    }


def an_entry(**fields: Any) -> dict[str, Any]:
    return {
        "time": NOW,
        "messageId": "msg_1",
        "state": "CREATED",
        "url": "https://example.com/hook",
        **fields,
    }
