from hashlib import sha256

import pytest

from relay.domain.message import Callback, FlowControl, MessageId, Redaction, Request, RetryPolicy
from relay.domain.publish import Draft
from relay.domain.schedule import Schedule
from relay.ids import text_of
from relay.wire.json import schedule_json
from storage.protocol import ScheduleView
from tests.builders import NOW, TENANT


def a_view(
    draft: Draft | None = None,
    *,
    paused: bool = False,
    next_at: int | None = None,
    last_fired_at: int | None = None,
    error: str | None = None,
    last_states: dict[MessageId, bool | None] | None = None,
) -> ScheduleView:
    return ScheduleView(
        schedule=Schedule(
            tenant=TENANT,
            id="scd_1",
            cron="*/10 * * * *",
            draft=draft or Draft(request=Request(url="https://example.com/tick")),
            created_at=NOW,
            revision=3,
            paused=paused,
            next_at=next_at,
            last_fired_at=last_fired_at,
            error=error,
        ),
        last_states=last_states or {},
    )


PLAIN = {
    "scheduleId": "scd_1",
    "cron": "*/10 * * * *",
    "destination": "https://example.com/tick",
    "method": "POST",
    "createdAt": NOW,
    "retries": 3,
    "isPaused": False,
}


def test_a_plain_schedule_has_exactly_these_members() -> None:
    assert schedule_json(a_view()) == PLAIN


def test_a_schedule_with_everything_has_exactly_these_members() -> None:
    draft = Draft(
        request=Request(
            url="https://example.com/tick",
            method="PUT",
            headers=(("Content-Type", "application/json"), ("test-header", "test-value")),
            body=b"{}",
            timeout_ms=20_000,
        ),
        retry=RetryPolicy(max_retries=0, delay="1000"),
        delay_ms=10_000,
        caller_ip="192.0.2.1",
        labels=("a", "b"),
        flow=FlowControl(key="k", rate=5),
        queue="queue",
        callback=Callback(url="https://example.com/cb", headers=(("X-A", "1"),)),
        failure_callback=Callback(url="https://example.com/failed", headers=(("X-B", "2"),)),
    )
    view = a_view(
        draft,
        paused=True,
        next_at=NOW + 1,
        last_fired_at=NOW - 1,
        error="the URL group is gone",
        last_states={MessageId(1): None, MessageId(2): True, MessageId(3): False},
    )
    assert schedule_json(view) == PLAIN | {
        "method": "PUT",
        "retries": 0,
        "isPaused": True,
        "header": {"Content-Type": ["application/json"], "Test-Header": ["test-value"]},
        "body": "{}",
        "delay": 10,
        "timeout": 20,
        "callback": "https://example.com/cb",
        "callbackHeader": {"X-A": ["1"]},
        "failureCallback": "https://example.com/failed",
        "failureCallbackHeader": {"X-B": ["2"]},
        "queueName": "queue",
        "callerIP": "192.0.2.1",
        "callerIp": "192.0.2.1",
        "retryDelayExpression": "1000",
        "label": "a",
        "labels": ["a", "b"],
        "flowControlKey": "k",
        "rate": 5,
        "period": 1,
        "lastScheduleTime": NOW - 1,
        "nextScheduleTime": NOW + 1,
        "lastScheduleStates": {
            text_of("msg_", 1): "IN_PROGRESS",
            text_of("msg_", 2): "SUCCESS",
            text_of("msg_", 3): "FAIL",
        },
        "error": "the URL group is gone",
    }


def test_a_delay_of_nothing_is_absent() -> None:
    draft = Draft(request=Request(url="https://example.com/tick"), delay_ms=0)
    assert schedule_json(a_view(draft)) == PLAIN


@pytest.mark.parametrize(
    ("body", "shown"),
    [(b"", {}), (b"\xff", {"bodyBase64": "/w=="}), (b"x", {"body": "x"})],
)
def test_a_body_is_shown_as_in_messages(body: bytes, shown: dict[str, str]) -> None:
    draft = Draft(request=Request(url="https://example.com/tick", body=body))
    assert schedule_json(a_view(draft)) == PLAIN | shown


def test_redacted_values_are_shown_as_their_hash() -> None:
    draft = Draft(
        request=Request(url="https://example.com/tick", headers=(("X-A", "1"),), body=b"x"),
        redaction=Redaction(body=True, header_names=("x-a",)),
    )
    assert schedule_json(a_view(draft)) == PLAIN | {
        "header": {"X-A": ["REDACTED:" + sha256(b"1").hexdigest()]},
        "body": "REDACTED:" + sha256(b"x").hexdigest(),
    }
