from collections.abc import Collection, Mapping

import pytest

from relay.domain.errors import Invalid, OverLimit
from relay.domain.message import Callback, FlowControl, Message, Redaction, SignedBy
from relay.domain.publish import redrive
from relay.wire.headers import NOT_OFFERED, parse_override
from tests.builders import NOW, a_message, a_message_id
from tests.wire.drafts import LIMITS, all_addresses

STORED = a_message(
    created_at=NOW - 100_000,
    url="https://example.com/hook",
    method="PUT",
    headers=(("Content-Type", "text/plain"), ("X-A", "stored"), ("X-B", "stored")),
    timeout_ms=5000,
    max_retries=7,
    retry_delay="1000",
    caller_ip="192.0.2.1",
    labels=("stored",),
    flow=FlowControl(key="stored", rate=1),
    callback=Callback(url="https://example.com/stored"),
    failure_callback=Callback(url="https://example.com/stored/failed"),
    redaction=Redaction(body=True),
    signed_by=SignedBy.STANDARD,
)


def overridden(
    headers: Mapping[str, str],
    *,
    config: tuple[tuple[str, str], ...] = (),
    not_offered: Collection[str] = NOT_OFFERED,
) -> Message:
    override = parse_override(
        headers.items(),
        now=NOW,
        limits=LIMITS,
        refusal=all_addresses,
        config=config,
        not_offered=not_offered,
    )
    return override(STORED)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {
            "Host": "relay.example",
            "Authorization": "Bearer x",
            "Content-Type": "application/json",
            "Content-Length": "2",
        },
        {"Upstash-Telemetry-Sdk": "js"},
    ],
)
def test_a_retry_without_settings_changes_nothing(headers: dict[str, str]) -> None:
    assert overridden(headers) == STORED


def test_settings_of_the_retry_override_the_stored_ones() -> None:
    message = overridden(
        {
            "Upstash-Method": "POST",
            "Upstash-Retries": "0",
            "Upstash-Retry-Delay": "retried",
            "Upstash-Timeout": "9s",
            "Upstash-Label": "new",
            "Upstash-Redact-Fields": "header",
            "Relay-Signature": "both",
            "Upstash-Forward-x-b": "new",
            "Upstash-Forward-X-C": "new",
            "Upstash-Forward-Content-Type": "a/b",
            "Upstash-Flow-Control-Key": "new",
            "Upstash-Flow-Control-Value": "rate=2",
            "Upstash-Callback": "https://example.com/new",
            "Upstash-Failure-Callback": "https://example.com/new/failed",
        },
        not_offered=(),
    )
    assert message == a_message(
        id=STORED.id,
        created_at=STORED.created_at,
        url="https://example.com/hook",
        method="POST",
        headers=(("X-A", "stored"), ("X-B", "new"), ("X-C", "new"), ("Content-Type", "a/b")),
        timeout_ms=9000,
        max_retries=0,
        retry_delay="retried",
        caller_ip="192.0.2.1",
        labels=("new",),
        flow=FlowControl(key="new", rate=2),
        callback=Callback(url="https://example.com/new"),
        failure_callback=Callback(url="https://example.com/new/failed"),
        redaction=Redaction(headers=True),
        signed_by=SignedBy.BOTH,
    )


def test_an_empty_label_takes_the_stored_labels_away() -> None:
    assert overridden({"Upstash-Label": ""}).labels == ()


@pytest.mark.parametrize(
    ("headers", "not_before"),
    [
        ({"Upstash-Delay": "10s"}, NOW + 10_000),
        ({"Upstash-Delay": "0"}, NOW),
        ({"Upstash-Not-Before": "1800000005"}, NOW + 5000),
        ({"Upstash-Delay": "10s", "Upstash-Not-Before": "1800000005"}, NOW + 5000),
        ({"Upstash-Not-Before": "0"}, NOW),
        ({}, NOW),
    ],
)
def test_a_delay_of_the_retry_counts_from_the_retry(headers: dict[str, str], not_before: int) -> None:
    override = parse_override(headers.items(), now=NOW, limits=LIMITS, refusal=all_addresses)
    assert redrive(STORED, id=a_message_id(), now=NOW, override=override).not_before == not_before


def test_settings_of_the_retry_can_come_with_the_query() -> None:
    assert overridden({}, config=(("upstash-retries", "0"),)).retry.max_retries == 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Upstash-Deduplication-Id", "cannot be used with a retry of dead letters"),
        ("Upstash-Content-Based-Deduplication", "cannot be used with a retry of dead letters"),
        ("Upstash-Header-Forward", "cannot be used with a retry of dead letters"),
        ("Upstash-Cron", "cannot be used with a retry of dead letters"),
        ("Upstash-Callback", "does not begin with http"),
        ("Upstash-Retries", "is not a whole number"),
        ("Relay-X", "is not a header the relay knows"),
    ],
)
def test_what_a_retry_cannot_change_is_refused_by_its_name(name: str, problem: str) -> None:
    with pytest.raises(Invalid, match=problem) as refused:
        overridden({name: "x"})
    assert refused.value.field == name


def test_a_retry_has_the_quotas_of_a_publish() -> None:
    with pytest.raises(OverLimit, match="Upstash-Retries"):
        overridden({"Upstash-Retries": "101"})
    with pytest.raises(Invalid, match="Upstash-Forward: headers have more than"):
        overridden({"Upstash-Forward-X": "x" * 70_000})
