"""From what a client asked for to the message it becomes."""

from hypothesis import given
from hypothesis import strategies as st

from relay.domain.message import (
    Headers,
    Message,
    Request,
    RetryPolicy,
    SignedBy,
    content_dedup_key,
    explicit_dedup_key,
)
from relay.domain.publish import Draft, message_of, redrive
from tests.builders import NOW, TENANT, a_message, a_message_id

URL = "https://example.com/hook"


def message(draft: Draft) -> Message:
    return message_of(draft, tenant=TENANT, id=a_message_id(), now=NOW)


def a_draft(*, delay_ms: int | None = None, not_before: int | None = None) -> Draft:
    return Draft(request=Request(url=URL), delay_ms=delay_ms, not_before=not_before)


def a_request(*, url: str = URL, body: bytes = b"body", headers: Headers = ()) -> Request:
    return Request(url=url, body=body, headers=headers)


def test_without_a_delay_a_message_is_due_when_it_is_created() -> None:
    made = message(a_draft())
    assert (made.created_at, made.not_before) == (NOW, NOW)


def test_a_delay_counts_from_acceptance() -> None:
    assert message(a_draft(delay_ms=5_000)).not_before == NOW + 5_000


def test_a_not_before_wins_over_a_delay_and_in_the_past_means_now() -> None:
    assert message(a_draft(delay_ms=5_000, not_before=NOW + 60_000)).not_before == NOW + 60_000
    assert message(a_draft(delay_ms=5_000, not_before=NOW - 60_000)).not_before == NOW


def test_an_explicit_id_wins_over_the_content() -> None:
    draft = Draft(request=a_request(), deduplication_id="order-1", content_based_deduplication=True)
    assert message(draft).dedup_key == explicit_dedup_key("order-1")
    assert message(Draft(request=a_request())).dedup_key is None


def test_an_explicit_id_decides_whatever_the_destination_and_for_each_endpoint_of_a_group() -> None:
    assert explicit_dedup_key("order-1") == explicit_dedup_key("order-1")
    keys = {explicit_dedup_key("order-1"), explicit_dedup_key("order-2"), explicit_dedup_key("order-1", URL)}
    assert len(keys) == 3


def test_content_is_destination_body_content_type_and_forwarded_headers() -> None:
    base = content_dedup_key(a_request(headers=(("Content-Type", "text/plain"), ("X-One", "1"))))
    same = a_request(headers=(("x-one", "1"), ("content-type", "text/plain")))
    assert content_dedup_key(same) == base
    others = [
        a_request(url=URL + "?a", headers=(("Content-Type", "text/plain"), ("X-One", "1"))),
        a_request(body=b"other", headers=(("Content-Type", "text/plain"), ("X-One", "1"))),
        a_request(headers=(("Content-Type", "text/html"), ("X-One", "1"))),
        a_request(headers=(("Content-Type", "text/plain"), ("X-One", "2"))),
        a_request(headers=(("Content-Type", "text/plain"),)),
    ]
    assert base not in {content_dedup_key(other) for other in others}


@given(st.lists(st.text(), min_size=2, max_size=2), st.lists(st.text(), min_size=2, max_size=2))
def test_parts_of_a_key_never_run_into_each_other(one: list[str], two: list[str]) -> None:
    first = content_dedup_key(a_request(headers=((one[0], one[1]),)))
    second = content_dedup_key(a_request(headers=((two[0], two[1]),)))
    assert (first == second) == ((one[0].lower(), one[1]) == (two[0].lower(), two[1]))


def test_a_redriven_message_is_new_due_now_and_not_deduplicated() -> None:
    dead = a_message(
        created_at=NOW - 60_000,
        not_before=NOW - 30_000,
        dedup_key=b"key",
        labels=("label",),
        signed_by=SignedBy.BOTH,
    )
    id = a_message_id()
    again = redrive(dead, id=id, now=NOW, override=lambda message: message)
    assert (again.id, again.created_at, again.not_before, again.dedup_key) == (id, NOW, NOW, None)
    assert (again.request, again.retry, again.labels) == (dead.request, dead.retry, dead.labels)
    assert again.signed_by is SignedBy.BOTH


def test_a_redrive_changes_what_it_was_asked_to() -> None:
    def override(message: Message) -> Message:
        return a_message(id=message.id, max_retries=0, not_before=NOW + 5_000)

    again = redrive(a_message(), id=a_message_id(), now=NOW, override=override)
    assert again.retry == RetryPolicy(max_retries=0)
    assert again.not_before == NOW + 5_000
