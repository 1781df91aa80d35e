import pytest

from relay.domain.cron import Cron
from relay.domain.errors import Invalid, OverLimit
from relay.domain.message import Redaction, Request, RetryPolicy, SignedBy
from relay.domain.publish import Draft
from relay.domain.schedule import CatchUp, Overlap
from relay.wire.headers import ScheduleRequest
from tests.wire.drafts import draft_of, schedule_of

CRON = {"Upstash-Cron": "*/10 * * * * "}


def test_a_schedule_is_a_cron_and_a_draft() -> None:
    request = schedule_of(
        {
            **CRON,
            "Upstash-Schedule-Id": "my.schedule_1-A",
            "Relay-Schedule-Catch-Up": "ALL",
            "relay-schedule-overlap": "skip",
            "Content-Type": "text/plain",
            "Upstash-Method": "PUT",
            "Upstash-Retries": "1",
            "Upstash-Retry-Delay": "retried",
            "Upstash-Delay": "10s",
            "Upstash-Timeout": "20s",
            "Upstash-Label": "a, b",
            "Upstash-Redact-Fields": "body",
            "Upstash-Forward-X": "1",
            "Relay-Signature": "standard",
        }
    )
    assert request == ScheduleRequest(
        cron=Cron.parse("*/10 * * * *"),
        schedule_id="my.schedule_1-A",
        catch_up=CatchUp.ALL,
        overlap=Overlap.SKIP,
        draft=Draft(
            request=Request(
                url="https://example.com/hook",
                method="PUT",
                headers=(("Content-Type", "text/plain"), ("X", "1")),
                body=b"tick",
                timeout_ms=20_000,
            ),
            retry=RetryPolicy(max_retries=1, delay="retried"),
            delay_ms=10_000,
            labels=("a", "b"),
            redaction=Redaction(body=True),
            signed_by=SignedBy.STANDARD,
        ),
    )
    assert request.cron.text == "*/10 * * * *"


def test_a_schedule_without_more_has_the_defaults() -> None:
    request = schedule_of(CRON)
    assert (request.schedule_id, request.catch_up, request.overlap) == (None, CatchUp.LAST, Overlap.ALLOW)
    assert request.draft == draft_of({}, body=b"tick")


def test_a_schedule_can_be_configured_by_the_query() -> None:
    request = schedule_of(
        {}, config=[("upstash-cron", "CRON_TZ=Europe/Berlin 0 9 * * *"), ("upstash-schedule-id", "x")]
    )
    assert (request.cron.text, request.schedule_id) == ("CRON_TZ=Europe/Berlin 0 9 * * *", "x")


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({}, "Upstash-Cron: is required for a schedule"),
        ({"Upstash-Cron": "* * * *"}, 'Upstash-Cron: "* * * *" has 4 fields'),
        ({"Upstash-Cron": ""}, 'Upstash-Cron: "" has 0 fields'),
        ({**CRON, "Upstash-Schedule-Id": "a/b"}, 'Upstash-Schedule-Id: "a/b" must be'),
        ({**CRON, "Upstash-Schedule-Id": ""}, 'Upstash-Schedule-Id: "" must be'),
        ({**CRON, "Upstash-Schedule-Id": "x" * 257}, "must be 1 to 256"),
        (
            {**CRON, "Relay-Schedule-Catch-Up": "some"},
            'Relay-Schedule-Catch-Up: "some" is not one of last, none, all',
        ),
        ({**CRON, "Relay-Schedule-Overlap": ""}, 'Relay-Schedule-Overlap: "" is not one of allow, skip'),
        ({**CRON, "Relay-Schedule-Grace": "1s"}, "Relay-Schedule-Grace: is not a header the relay knows"),
        ({**CRON, "Upstash-Not-Before": "1"}, "Upstash-Not-Before: cannot be used with a schedule"),
        (
            {**CRON, "Upstash-Deduplication-Id": "1"},
            "Upstash-Deduplication-Id: cannot be used with a schedule",
        ),
        (
            {**CRON, "Upstash-Content-Based-Deduplication": "true"},
            "Upstash-Content-Based-Deduplication: cannot be used with a schedule",
        ),
        (
            {**CRON, "Upstash-Queue-Name": "a b"},
            'Upstash-Queue-Name: "a b" must be 1 to 256 of the characters',
        ),
    ],
)
def test_a_wrong_schedule_is_refused_by_the_header(headers: dict[str, str], problem: str) -> None:
    with pytest.raises(Invalid) as refused:
        schedule_of(headers)
    assert problem in str(refused.value)


def test_a_schedule_has_the_quotas_of_a_message() -> None:
    with pytest.raises(OverLimit, match="Upstash-Retries"):
        schedule_of({**CRON, "Upstash-Retries": "1000000"})


def test_a_schedule_may_name_a_queue() -> None:
    headers = {"Upstash-Cron": "* * * * *", "Upstash-Queue-Name": "my.queue_1-a"}
    assert schedule_of(headers).draft.queue == "my.queue_1-a"
    with pytest.raises(Invalid, match=r"Upstash-Queue-Name: .* must be 1 to 256 of the characters"):
        schedule_of(headers | {"Upstash-Queue-Name": "my queue"})
