"""URL groups: who is in them, and what a publish to one becomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.message import Message, MessageId, Request, RetryPolicy
from relay.domain.publish import Draft, message_of
from relay.domain.url_group import Endpoint, EndpointRef, UrlGroup, fan_out, upserted, without
from tests.builders import NOW, TENANT, a_message_id

A, B, C = "https://a.example", "https://b.example", "https://c.example"


def end(url: str, name: str | None = None) -> Endpoint:
    return Endpoint(url=url, name=name)


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ([], [end(A), end(B, "b")], [end(A), end(B, "b")]),
        ([end(A)], [end(B)], [end(A), end(B)]),
        # A name that is known gets the new URL, a URL that is known the new name.
        ([end(A, "n"), end(C)], [end(B, "n")], [end(B, "n"), end(C)]),
        ([end(A, "n"), end(C)], [end(A, "m")], [end(A, "m"), end(C)]),
        ([end(A), end(C)], [end(A, "m")], [end(A, "m"), end(C)]),
        # Without a name nothing is said about the name.
        ([end(A, "n")], [end(A)], [end(A, "n")]),
        ([end(A, "n")], [end(A, "n")], [end(A, "n")]),
        # The name of one and the URL of another make the two one.
        ([end(A, "a"), end(B, "b"), end(C)], [end(B, "a")], [end(B, "a"), end(C)]),
        ([end(B, "b"), end(A, "a"), end(C)], [end(B, "a")], [end(B, "a"), end(C)]),
        # Later changes see what earlier ones did.
        ([], [end(A, "n"), end(B, "n"), end(B, "m")], [end(B, "m")]),
        ([], [end(A), end(A)], [end(A)]),
    ],
)
def test_endpoints_are_put_by_name_and_by_url(
    before: list[Endpoint], changes: list[Endpoint], after: list[Endpoint]
) -> None:
    assert upserted(before, changes) == tuple(after)


ENDPOINTS = st.lists(
    st.builds(Endpoint, url=st.sampled_from([A, B, C]), name=st.sampled_from([None, "a", "b", "c"])),
    max_size=6,
)


@given(ENDPOINTS, ENDPOINTS)
def test_no_group_has_two_endpoints_of_one_name_or_one_url(
    first: list[Endpoint], second: list[Endpoint]
) -> None:
    endpoints = upserted(upserted((), first), second)
    urls = [endpoint.url for endpoint in endpoints]
    names = [endpoint.name for endpoint in endpoints if endpoint.name is not None]
    assert (len(set(urls)), len(set(names))) == (len(urls), len(names))
    if second:
        last = second[-1]
        assert any(last.url == one.url and last.name in (None, one.name) for one in endpoints)


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        ([EndpointRef(name="a")], [end(B)]),
        ([EndpointRef(url=B)], [end(A, "a")]),
        ([EndpointRef(name="a", url=A)], [end(B)]),
        ([EndpointRef(name="a", url=B)], [end(A, "a"), end(B)]),
        ([EndpointRef(name="b")], [end(A, "a"), end(B)]),
        ([EndpointRef(name="a"), EndpointRef(url=B), EndpointRef(url=C)], []),
        ([], [end(A, "a"), end(B)]),
    ],
)
def test_endpoints_are_removed_by_what_is_said_about_them(
    removed: list[EndpointRef], left: list[Endpoint]
) -> None:
    assert without([end(A, "a"), end(B)], removed) == tuple(left)


def published(draft: Draft) -> list[Message]:
    group = UrlGroup(
        tenant=TENANT, name="group", created_at=NOW, updated_at=NOW, endpoints=(end(A, "a"), end(B))
    )
    return [message_of(one, tenant=TENANT, id=a_message_id(), now=NOW) for one in fan_out(draft, group)]


def test_a_publish_to_a_group_is_one_message_for_each_endpoint_alike_in_all_else() -> None:
    draft = Draft(
        request=Request(url="", method="PUT", headers=(("X", "y"),), body=b"body"),
        url_group="group",
        retry=RetryPolicy(max_retries=7),
        delay_ms=5,
        labels=("l",),
        caller_ip="192.0.2.1",
    )
    first, second = published(draft)
    assert [(one.request.url, one.origin.endpoint) for one in (first, second)] == [(A, "a"), (B, None)]
    for one in (first, second):
        assert one.origin.url_group == "group"
        assert (one.request.method, one.request.headers, one.request.body) == ("PUT", (("X", "y"),), b"body")
        assert (one.retry.max_retries, one.not_before, one.labels) == (7, NOW + 5, ("l",))
        assert one.origin.caller_ip == "192.0.2.1"


@pytest.mark.parametrize(
    "draft",
    [
        Draft(request=Request(url=""), url_group="group", deduplication_id="once"),
        Draft(request=Request(url="", body=b"x"), url_group="group", content_based_deduplication=True),
    ],
)
def test_every_endpoint_has_a_decision_about_duplicates_of_its_own(draft: Draft) -> None:
    first, second = published(draft)
    assert first.dedup_key is not None
    assert first.dedup_key != second.dedup_key
    assert [one.dedup_key for one in published(draft)] == [first.dedup_key, second.dedup_key]


def test_a_deduplication_id_of_a_group_is_none_of_a_plain_url() -> None:
    draft = Draft(request=Request(url=A), deduplication_id="once")
    plain = message_of(draft, tenant=TENANT, id=MessageId(1), now=NOW)
    in_group = published(Draft(request=Request(url=""), url_group="group", deduplication_id="once"))
    assert plain.dedup_key not in {one.dedup_key for one in in_group}
