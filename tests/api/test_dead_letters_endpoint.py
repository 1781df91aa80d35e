"""/v2/dlq: what failed for good; look, delete, send once more."""

import asyncio
from base64 import b64decode
from itertools import chain

import pytest

from tests.api.rig import READ_ONLY, Rig

URL = "https://example.com/hook"


async def test_a_dead_letter_is_the_message_with_its_last_response(rig: Rig) -> None:
    published_at = rig.clock.now()
    message_id, dlq_id = await rig.dead_letter(
        f"{URL}?a=b", headers={"Content-Type": "text/plain", "Upstash-Label": "a,b"}
    )
    reply = await rig.call("GET", f"/v2/dlq/{dlq_id}")
    assert reply.status == 200
    assert reply.json == {
        "dlqId": dlq_id,
        "messageId": message_id,
        "url": f"{URL}?a=b",
        "method": "POST",
        "header": {"Content-Type": ["text/plain"]},
        "body": "hello",
        "maxRetries": 0,
        "notBefore": published_at,
        "createdAt": published_at,
        "callerIP": "127.0.0.1",
        "label": "a",
        "labels": ["a", "b"],
        "responseStatus": 404,
        "responseHeader": {"Content-Type": ["text/plain"]},
        "responseBody": "404 Not Found",
    }
    milliseconds, _, _ = dlq_id.partition("-")
    assert 0 <= int(milliseconds) - published_at < 60_000


async def test_the_list_shows_what_the_single_entry_shows(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/dlq")).json == {"messages": []}
    _, dlq_id = await rig.dead_letter()
    single = (await rig.call("GET", f"/v2/dlq/{dlq_id}")).json
    assert (await rig.call("GET", "/v2/dlq")).json == {"messages": [single]}


async def test_without_an_http_response_the_status_is_zero(rig: Rig) -> None:
    await rig.publish(headers={"Upstash-Retries": "0"})
    await rig.attempt(None, error="connection refused")
    (entry,) = (await rig.call("GET", "/v2/dlq")).json["messages"]
    assert (entry["responseStatus"], entry["error"]) == (0, "connection refused")
    assert not {"responseHeader", "responseBody", "responseBodyBase64"} & set(entry)
    assert (await rig.call("GET", "/v2/dlq?responseStatus=0")).json["messages"] == [entry]


async def test_a_response_that_is_not_text_is_shown_in_base64(rig: Rig) -> None:
    await rig.publish(headers={"Upstash-Retries": "0"})
    await rig.attempt(500, headers=(("set-cookie", "a"), ("set-cookie", "b")), body=b"\xff\x00")
    (entry,) = (await rig.call("GET", "/v2/dlq")).json["messages"]
    assert b64decode(entry["responseBodyBase64"]) == b"\xff\x00"
    assert "responseBody" not in entry
    assert entry["responseHeader"] == {"Set-Cookie": ["a", "b"]}


@pytest.mark.parametrize("dlq_id", ["1800000000000-0", "nonsense", "msg_1", "%2F", "%ff", "1-01", "9" * 30])
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "retry/")])
async def test_an_unknown_dead_letter_is_not_found(rig: Rig, method: str, path: str, dlq_id: str) -> None:
    reply = await rig.call(method, f"/v2/dlq/{path}{dlq_id}")
    assert reply.status == 404
    assert reply.error.startswith("dead letter ")


async def test_a_dead_letter_is_deleted_once(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter()
    reply = await rig.call("DELETE", f"/v2/dlq/{dlq_id}")
    assert (reply.status, reply.json) == (200, {})
    assert (await rig.call("DELETE", f"/v2/dlq/{dlq_id}")).status == 404
    assert (await rig.call("GET", f"/v2/dlq/{dlq_id}")).status == 404
    assert (await rig.call("POST", f"/v2/dlq/retry/{dlq_id}")).status == 404


# --- lists


async def test_pages_join_to_the_whole_list(rig: Rig) -> None:
    ids = [(await rig.dead_letter())[1] for _ in range(5)]
    for order, expected in (("earliestFirst", ids), ("latestFirst", ids[::-1])):
        pages = await rig.pages("messages", f"/v2/dlq?count=2&order={order}")
        assert [len(page) for page in pages] == [2, 2, 1]
        assert [entry["dlqId"] for entry in chain(*pages)] == expected


async def test_a_page_that_ends_with_the_list_has_no_cursor(rig: Rig) -> None:
    for _ in range(2):
        await rig.dead_letter()
    assert set((await rig.call("GET", "/v2/dlq?count=2")).json) == {"messages"}
    assert set((await rig.call("GET", "/v2/dlq?count=1")).json) == {"messages", "cursor"}


async def test_a_list_longer_than_one_look_is_listed_whole(rig: Rig) -> None:
    for _ in range(60):
        await rig.publish(headers={"Upstash-Retries": "0"})
    assert await rig.attempt(500) == 60
    page = (await rig.call("GET", "/v2/dlq")).json
    assert len({entry["dlqId"] for entry in page["messages"]}) == 60
    assert set(page) == {"messages"}
    short = (await rig.call("GET", "/v2/dlq?count=55")).json
    assert len(short["messages"]) == 55
    assert len((await rig.call("GET", f"/v2/dlq?cursor={short['cursor']}")).json["messages"]) == 5


async def test_a_page_of_large_bodies_is_shorter_and_goes_on(rig: Rig) -> None:
    for _ in range(60):
        await rig.publish(body=b"x" * (1 << 20), headers={"Upstash-Retries": "0"})
    assert await rig.attempt(500) == 60
    sizes = [len(page) for page in await rig.pages("messages", "/v2/dlq?order=latestFirst")]
    assert sum(sizes) == 60
    assert max(sizes) < 20


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("label=orders", [0]),
        ("label=orders,eu", [0, 2]),
        ("label=nothing", []),
        ("url=https://example.com/a", [0]),
        ("url=https://example.com/a&url=https://example.org/b", [0, 1]),
        ("url=https://example.com/a,https://example.org/b", [0, 1]),
        ("url=https://example.com/a&label=eu", []),
        ("responseStatus=500", [1]),
        ("responseStatus=404,500", [0, 1, 2]),
        ("responseStatus=404&label=eu", [2]),
        ("callerIp=127.0.0.1", [0, 1, 2]),
        ("callerIP=10.0.0.1", []),
        ("scheduleId=scd_1", []),
        ("topicName=t", []),
        ("queueName=q", []),
        ("flowControlKey=k", []),
        ("fromDate=1800000000000", [0, 1, 2]),
        ("fromDate=1800000001000", [1, 2]),
        ("fromDate=1800000001000&toDate=1800000001999", [1]),
        ("toDate=1799999999999", []),
    ],
)
async def test_filters_are_joined_and_their_values_are_alternatives(
    rig: Rig, filters: str, expected: list[int]
) -> None:
    dlq_ids = []
    for destination, label, status in (
        ("https://example.com/a", "orders", 404),
        ("https://example.org/b", "us", 500),
        ("https://example.com/c", "eu", 404),
    ):
        await rig.publish(destination, headers={"Upstash-Label": label, "Upstash-Retries": "0"})
        await rig.attempt(status)
        dlq_ids.append((await rig.dead_letter_ids())[-1])
        rig.clock.advance(1_000)
    listed = (await rig.call("GET", f"/v2/dlq?{filters}")).json["messages"]
    assert [entry["dlqId"] for entry in listed] == [dlq_ids[index] for index in expected]
    deleted = (await rig.call("DELETE", f"/v2/dlq?{filters}")).json
    assert deleted == {"deleted": len(expected)}
    assert await rig.dead_letter_ids() == [id for index, id in enumerate(dlq_ids) if index not in expected]


async def test_a_message_id_filters_by_the_message(rig: Rig) -> None:
    _, first = await rig.dead_letter()
    message_id, second = await rig.dead_letter()
    assert first != second
    listed = (await rig.call("GET", f"/v2/dlq?messageId={message_id}")).json["messages"]
    assert [entry["dlqId"] for entry in listed] == [second]
    assert (await rig.call("GET", "/v2/dlq?messageId=nonsense")).json == {"messages": []}


async def test_given_ids_other_filters_do_not_count(rig: Rig) -> None:
    ids = [(await rig.dead_letter())[1] for _ in range(3)]
    listed = (await rig.call("GET", f"/v2/dlq?dlqIds={ids[0]},{ids[2]}&label=nothing")).json["messages"]
    assert [entry["dlqId"] for entry in listed] == [ids[0], ids[2]]


@pytest.mark.parametrize(
    "query",
    [
        "labeel=a",
        "host=example.com",
        "path=/a",
        "state=FAILED",
        "count=0",
        "count=101",
        "count=-1",
        "cursor=nonsense",
        "cursor=1-2-3",
        "order=sideways",
        "responseStatus=many",
        "fromDate=yesterday",
        "label=",
    ],
)
async def test_a_filter_that_is_unknown_or_wrong_is_refused_by_its_name(rig: Rig, query: str) -> None:
    _, dlq_id = await rig.dead_letter()
    for method, path in (("GET", "/v2/dlq"), ("DELETE", "/v2/dlq"), ("POST", "/v2/dlq/retry")):
        reply = await rig.call(method, f"{path}?{query}")
        assert reply.status == 400
        assert query.partition("=")[0] in reply.error
    assert await rig.dead_letter_ids() == [dlq_id]


async def test_an_order_is_for_lists_only(rig: Rig) -> None:
    assert (await rig.call("DELETE", "/v2/dlq?order=latestFirst")).status == 400


# --- delete many


async def test_ids_to_delete_come_in_the_query_or_in_a_body(rig: Rig) -> None:
    a, b, c, d = [(await rig.dead_letter())[1] for _ in range(4)]
    assert (await rig.call("DELETE", f"/v2/dlq?dlqIds={a}&dlqIds={b}")).json == {"deleted": 2}
    assert (await rig.call_json("DELETE", "/v2/dlq", {"dlqIds": [c]})).json == {"deleted": 1}
    assert await rig.dead_letter_ids() == [d]


async def test_unknown_ids_are_passed_over(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter()
    reply = await rig.call_json("DELETE", "/v2/dlq", {"dlqIds": [dlq_id, "1-1", "nonsense", dlq_id]})
    assert reply.json == {"deleted": 1}
    assert (await rig.call_json("DELETE", "/v2/dlq", {"dlqIds": [dlq_id]})).json == {"deleted": 0}


@pytest.mark.parametrize("body", [{"dlqIds": []}, {"dlqIds": ["nonsense"]}])
async def test_a_list_without_a_known_id_deletes_nothing(rig: Rig, body: object) -> None:
    _, dlq_id = await rig.dead_letter()
    assert (await rig.call_json("DELETE", "/v2/dlq", body)).json == {"deleted": 0}
    assert await rig.dead_letter_ids() == [dlq_id]


async def test_without_a_filter_everything_is_deleted_page_by_page(rig: Rig) -> None:
    for _ in range(3):
        await rig.dead_letter()
    first = (await rig.call("DELETE", "/v2/dlq?count=2")).json
    assert first["deleted"] == 2
    second = (await rig.call("DELETE", f"/v2/dlq?count=2&cursor={first['cursor']}")).json
    assert second == {"deleted": 1}
    assert (await rig.call("DELETE", "/v2/dlq")).json == {"deleted": 0}


async def test_a_hundred_are_deleted_in_one_call(rig: Rig) -> None:
    for _ in range(102):
        await rig.publish(headers={"Upstash-Retries": "0"})
    await rig.attempt(500)
    first = (await rig.call("DELETE", "/v2/dlq/")).json
    assert first["deleted"] == 100
    assert (await rig.call("DELETE", f"/v2/dlq?cursor={first['cursor']}")).json == {"deleted": 2}


# --- send once more


async def test_a_retried_dead_letter_is_a_new_message_like_the_old_one(rig: Rig) -> None:
    old_id, dlq_id = await rig.dead_letter(
        body=b"again", headers={"Upstash-Forward-X": "y", "Upstash-Label": "a", "Upstash-Timeout": "5s"}
    )
    rig.clock.advance(60_000)
    reply = await rig.call("POST", f"/v2/dlq/retry/{dlq_id}")
    assert reply.status == 201
    assert set(reply.json) == {"messageId", "url"}
    assert reply.json["url"] == URL
    new_id = reply.json["messageId"]
    assert new_id != old_id
    old, new = await rig.show(old_id), await rig.show(new_id)
    assert new == {
        **old,
        "messageId": new_id,
        "createdAt": rig.clock.now(),
        "notBefore": rig.clock.now(),
    }
    assert await rig.dead_letter_ids() == []
    assert await rig.attempt(200) == 1


async def test_headers_of_a_retry_override_what_was_stored(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter(headers={"Upstash-Forward-X": "old", "Upstash-Label": "a"})
    reply = await rig.call(
        "POST",
        f"/v2/dlq/retry/{dlq_id}?upstash-method=PUT",
        headers={
            "Upstash-Retries": "5",
            "Upstash-Forward-X": "new",
            "Upstash-Delay": "10s",
            "Upstash-Label": "b",
            "Content-Type": "application/json",
        },
    )
    shown = await rig.show(reply.json["messageId"])
    assert (shown["maxRetries"], shown["method"], shown["labels"]) == (5, "PUT", ["b"])
    assert shown["header"] == {"X": ["new"]}
    assert shown["notBefore"] == rig.clock.now() + 10_000


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Upstash-Retries", "x", 400),
        ("Upstash-Retries", "1000000", 412),
        ("Upstash-Callback", "a.b", 400),
        ("Upstash-Cron", "* * * * *", 400),
        ("Upstash-Deduplication-Id", "a", 400),
    ],
)
async def test_a_retry_that_cannot_be_accepted_changes_nothing(
    rig: Rig, name: str, value: str, status: int
) -> None:
    _, dlq_id = await rig.dead_letter()
    for path in (f"/v2/dlq/retry/{dlq_id}", "/v2/dlq/retry", f"/v2/dlq/retry?dlqIds={dlq_id}"):
        reply = await rig.call("POST", path, headers={name: value})
        assert reply.status == status
        assert name in reply.error
    assert await rig.dead_letter_ids() == [dlq_id]


async def test_a_redacted_dead_letter_is_retried_with_the_original(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter(body=b"secret", headers={"Upstash-Redact-Fields": "body"})
    shown = (await rig.call("GET", f"/v2/dlq/{dlq_id}")).json
    assert shown["body"].startswith("REDACTED:")
    reply = await rig.call("POST", f"/v2/dlq/retry/{dlq_id}")
    assert (await rig.show(reply.json["messageId"]))["body"] == shown["body"]


async def test_a_retry_is_no_duplicate_of_the_first_try(rig: Rig) -> None:
    old_id, dlq_id = await rig.dead_letter(headers={"Upstash-Deduplication-Id": "once"})
    reply = await rig.call("POST", f"/v2/dlq/retry/{dlq_id}")
    assert set(reply.json) == {"messageId", "url"}
    assert reply.json["messageId"] != old_id


async def test_all_are_retried_page_by_page(rig: Rig) -> None:
    ids = [(await rig.dead_letter())[1] for _ in range(3)]
    first = await rig.call("POST", "/v2/dlq/retry?count=1")
    assert first.status == 201
    assert len(first.json["responses"]) == 1
    assert await rig.dead_letter_ids() == ids[1:]
    second = await rig.call("POST", f"/v2/dlq/retry?cursor={first.json['cursor']}")
    assert second.status == 201
    assert set(second.json) == {"responses"}
    assert [set(entry) for entry in second.json["responses"]] == [{"messageId", "url"}] * 2
    assert await rig.dead_letter_ids() == []
    assert await rig.attempt(200) == 3


async def test_a_filter_that_matches_nothing_retries_nothing(rig: Rig) -> None:
    await rig.dead_letter()
    reply = await rig.call("POST", "/v2/dlq/retry?label=nothing")
    assert (reply.status, reply.json) == (201, {"responses": []})


async def test_a_retry_may_be_filtered_by_query_or_body(rig: Rig) -> None:
    _, a = await rig.dead_letter(headers={"Upstash-Label": "a"})
    _, b = await rig.dead_letter(headers={"Upstash-Label": "b"})
    _, c = await rig.dead_letter(headers={"Upstash-Label": "c"})
    assert len((await rig.call("POST", "/v2/dlq/retry?label=a&upstash-retries=1")).json["responses"]) == 1
    assert await rig.dead_letter_ids() == [b, c]
    assert len((await rig.call_json("POST", "/v2/dlq/retry", {"label": "b"})).json["responses"]) == 1
    assert await rig.dead_letter_ids() == [c]
    assert a not in (b, c)


async def test_the_settings_of_a_retry_are_not_filters(rig: Rig) -> None:
    await rig.dead_letter()
    reply = await rig.call("POST", "/v2/dlq/retry?upstash-retries=2")
    (entry,) = reply.json["responses"]
    assert (await rig.show(entry["messageId"]))["maxRetries"] == 2


async def test_given_ids_are_retried(rig: Rig) -> None:
    a, b, c = [(await rig.dead_letter())[1] for _ in range(3)]
    by_query = await rig.call("POST", f"/v2/dlq/retry?dlqIds={a}")
    by_body = await rig.call_json("POST", "/v2/dlq/retry", {"dlqIds": [c]})
    assert (by_query.status, by_body.status) == (201, 201)
    assert [len(reply.json["responses"]) for reply in (by_query, by_body)] == [1, 1]
    assert await rig.dead_letter_ids() == [b]


async def test_more_ids_than_one_look_are_retried(rig: Rig) -> None:
    for _ in range(60):
        await rig.publish(headers={"Upstash-Retries": "0"})
    await rig.attempt(500)
    ids = await rig.dead_letter_ids()
    reply = await rig.call_json("POST", "/v2/dlq/retry", {"dlqIds": ids})
    assert len(reply.json["responses"]) == 60
    assert await rig.dead_letter_ids() == []


@pytest.mark.parametrize("others", ["1-1", "nonsense-only"])
async def test_when_one_of_the_ids_is_missing_nothing_is_retried(rig: Rig, others: str) -> None:
    _, dlq_id = await rig.dead_letter()
    ids = [dlq_id, others] if others == "1-1" else [others]
    reply = await rig.call_json("POST", "/v2/dlq/retry", {"dlqIds": ids})
    assert reply.status == 404
    assert await rig.dead_letter_ids() == [dlq_id]


async def test_a_read_only_token_looks_at_dead_letters_only(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter()
    assert await rig.dead_letter_ids(token=READ_ONLY) == [dlq_id]
    for method, path in (
        ("DELETE", ""),
        ("DELETE", f"/{dlq_id}"),
        ("POST", "/retry"),
        ("POST", f"/retry/{dlq_id}"),
    ):
        assert (await rig.call(method, f"/v2/dlq{path}", token=READ_ONLY)).status == 403
    assert await rig.dead_letter_ids() == [dlq_id]


async def test_of_two_retries_at_once_one_finds_nothing_left(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter()
    replies = await asyncio.gather(*(rig.call("POST", f"/v2/dlq/retry/{dlq_id}") for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [201] + [404] * 7
    assert await rig.attempt(200) == 1


async def test_bulk_retries_at_once_send_nothing_twice(rig: Rig) -> None:
    for _ in range(30):
        await rig.publish(headers={"Upstash-Retries": "0"})
    await rig.attempt(500)
    replies = await asyncio.gather(*(rig.call("POST", "/v2/dlq/retry") for _ in range(4)))
    assert sum(len(reply.json["responses"]) for reply in replies) == 30
    assert await rig.attempt(200) == 30
