import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.delivery import State
from relay.domain.errors import Invalid
from relay.domain.selection import Order, Selection
from relay.ids import dead_letter_text, text_of
from relay.wire.cursor import Cursor
from relay.wire.selection import MAX_VALUES, Endpoint, Page, select

CANCEL, LIST, TAKE, LOGS = (
    Endpoint.CANCEL,
    Endpoint.LIST_DEAD_LETTERS,
    Endpoint.TAKE_DEAD_LETTERS,
    Endpoint.LOGS,
)
MSG_1, MSG_2 = text_of("msg_", 1), text_of("msg_", 2)
DLQ_1, DLQ_2 = dead_letter_text(1), dead_letter_text(2)

Query = list[tuple[str, str]]


def selection_of(endpoint: Endpoint, query: Query, body: bytes = b"") -> Selection:
    return select(endpoint, query, body)[0]


@pytest.mark.parametrize(
    ("endpoint", "page"),
    [
        (CANCEL, Page()),
        (LIST, Page(count=100)),
        (TAKE, Page(count=100)),
        (LOGS, Page(count=100, order=Order.LATEST_FIRST)),
    ],
)
def test_without_parameters_everything_is_meant_a_default_page_at_a_time(
    endpoint: Endpoint, page: Page
) -> None:
    assert select(endpoint, []) == (Selection(), page)
    assert select(endpoint, [("qstash_token", "x")]) == (Selection(), page)
    assert page.start is None


FILTERS: dict[str, tuple[str, Selection]] = {
    "messageId": (MSG_1, Selection(message_ids=(1,))),
    "messageIds": (f"{MSG_1},{MSG_2}", Selection(message_ids=(1, 2))),
    "dlqIds": (f"{DLQ_1},{DLQ_2}", Selection(dead_letter_ids=(1, 2))),
    "url": ("https://example.com/?a=1,2", Selection(urls=("https://example.com/?a=1,2",))),
    "host": ("Example.com:443", Selection(hosts=("example.com",))),
    "path": ("/a,/b", Selection(paths=("/a", "/b"))),
    "label": ("a, b", Selection(labels=("a", "b"))),
    "topicName": ("g", Selection(url_groups=("g",))),
    "queueName": ("q", Selection(queues=("q",))),
    "scheduleId": ("scd_1", Selection(schedule_ids=("scd_1",))),
    "flowControlKey": ("k", Selection(flow_keys=("k",))),
    "callerIp": ("192.0.2.1", Selection(caller_ips=("192.0.2.1",))),
    "callerIP": ("192.0.2.1", Selection(caller_ips=("192.0.2.1",))),
    "responseStatus": ("404,0", Selection(response_statuses=(404, 0))),
    "state": ("DELIVERED,FAILED", Selection(states=(State.DELIVERED, State.FAILED))),
    "fromDate": ("1800000000000", Selection(from_at=1_800_000_000_000)),
    "toDate": ("0", Selection(to_at=0)),
}
COMMON = {
    *("url", "label", "topicName", "queueName", "scheduleId", "flowControlKey"),
    *("callerIp", "callerIP", "fromDate", "toDate"),
}
OFFERED = {
    CANCEL: COMMON | {"messageIds", "host", "path"},
    LIST: COMMON | {"dlqIds", "messageId", "responseStatus"},
    TAKE: COMMON | {"dlqIds", "messageId", "responseStatus"},
    LOGS: COMMON | {"messageId", "messageIds", "state", "host", "path"},
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("endpoint", Endpoint)
def test_an_endpoint_has_its_filters_and_refuses_the_others_by_name(endpoint: Endpoint, name: str) -> None:
    value, selection = FILTERS[name]
    if name in OFFERED[endpoint]:
        assert selection_of(endpoint, [(name, value)]) == selection
        assert selection_of(endpoint, [], orjson.dumps({name: value})) == selection
    else:
        with pytest.raises(Invalid, match=f'"{name}": is not a parameter of this endpoint'):
            select(endpoint, [(name, value)])
        with pytest.raises(Invalid, match=f'"{name}": is not a parameter of this endpoint'):
            select(endpoint, [], orjson.dumps({name: value}))


@pytest.mark.parametrize(
    "name", ["labeel", "Label", "labels", "source", "groupBy", "upstash-retries", "", "\udce9"]
)
@pytest.mark.parametrize("endpoint", Endpoint)
def test_a_misspelt_filter_selects_nothing_but_an_error(endpoint: Endpoint, name: str) -> None:
    with pytest.raises(Invalid, match="is not a parameter of this endpoint") as refused:
        select(endpoint, [(name, "x")])
    str(refused.value).encode()


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [(CANCEL, "cursor"), (CANCEL, "order"), (TAKE, "order")],
)
def test_a_bulk_operation_has_no_order_and_a_cancellation_no_cursor(endpoint: Endpoint, name: str) -> None:
    with pytest.raises(Invalid, match="is not a parameter"):
        select(endpoint, [(name, "latestFirst")])


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ([("label", "a"), ("label", "b")], ("a", "b")),
        ([("label", "a,b"), ("label", "c")], ("a", "b", "c")),
        ([("label", "a,,b,"), ("label", "")], ("a", "b")),
        ([("label", " a , a")], ("a",)),
    ],
)
def test_values_of_a_filter_are_repeated_or_separated_by_commas(
    query: Query, labels: tuple[str, ...]
) -> None:
    assert selection_of(LOGS, query) == Selection(labels=labels)


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ("https://a.example/?x=1,2,3", ("https://a.example/?x=1,2,3",)),
        ("https://a.example/,http://b.example/", ("https://a.example/", "http://b.example/")),
        (
            "https://a.example/?x=1,httpx, https://b.example/",
            ("https://a.example/?x=1,httpx", "https://b.example/"),
        ),
        ("HTTPS://a.example/,,Https://b.example/", ("https://a.example/", "https://b.example/")),
        ("https://bücher.example/ü#x", ("https://xn--bcher-kva.example/%C3%BC",)),
        ("not a url, at all", ("not a url, at all",)),
    ],
)
def test_urls_are_separated_only_by_a_comma_before_the_next_one(value: str, urls: tuple[str, ...]) -> None:
    assert selection_of(LOGS, [("url", value)]) == Selection(urls=urls)


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("EXAMPLE.com", "example.com"),
        ("example.com:8080", "example.com"),
        ("[::1]:80", "::1"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("example.com/path", "example.com/path"),
        ("A@example.com", "a@example.com"),
        ("no host!", "no host!"),
    ],
)
def test_a_host_is_compared_without_case_and_port(value: str, host: str) -> None:
    assert selection_of(LOGS, [("host", value)]) == Selection(hosts=(host,))


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("IN_PROGRESS", (State.ACTIVE, State.RETRY, State.ERROR)),
        ("CANCELLED", (State.CANCELED,)),
        ("canceled", (State.CANCELED,)),
        ("ERROR,IN_PROGRESS", (State.ERROR, State.ACTIVE, State.RETRY)),
        *((state.value, (state,)) for state in State),
    ],
)
def test_a_state_may_be_spelled_as_anyone_spells_it(name: str, states: tuple[State, ...]) -> None:
    assert selection_of(LOGS, [("state", name)]) == Selection(states=states)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ([("messageIds", "")], ()),
        ([("messageIds", ",")], ()),
        ([("messageIds", "msg_unknown")], ()),
        ([("messageIds", f"{MSG_1},msg_x,{MSG_1}")], (1,)),
    ],
)
def test_ids_that_cannot_be_ours_match_nothing(query: Query, ids: tuple[int, ...]) -> None:
    assert selection_of(CANCEL, query) == Selection(message_ids=ids)
    assert selection_of(LOGS, query) == Selection(message_ids=ids)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ([("messageId", MSG_2), ("messageId", MSG_1)], (2, 1)),
        ([("messageIds", f"{MSG_1},{MSG_2}"), ("messageId", MSG_2)], (2,)),
        ([("messageIds", MSG_1), ("messageId", "msg_x")], ()),
    ],
)
def test_in_the_log_both_filters_of_ids_must_hold(query: Query, ids: tuple[int, ...]) -> None:
    assert selection_of(LOGS, query) == Selection(message_ids=ids)


def test_ids_of_dead_letters_that_cannot_be_ours_match_nothing() -> None:
    assert selection_of(TAKE, [("dlqIds", "")]) == Selection(dead_letter_ids=())
    assert selection_of(TAKE, [("dlqIds", f"x,{DLQ_2}")]) == Selection(dead_letter_ids=(2,))


def test_ids_select_alone_on_bulk_endpoints_and_among_dead_letters() -> None:
    assert selection_of(CANCEL, [("messageIds", MSG_1), ("label", "x")]) == Selection(message_ids=(1,))
    for endpoint in (LIST, TAKE):
        query = [("dlqIds", DLQ_1), ("messageId", MSG_1), ("label", "x")]
        assert selection_of(endpoint, query) == Selection(dead_letter_ids=(1,))
    with pytest.raises(Invalid, match="fromDate"):
        select(CANCEL, [("messageIds", MSG_1), ("fromDate", "x")])


def test_in_the_log_ids_are_a_filter_like_others() -> None:
    query = [("messageIds", MSG_1), ("state", "DELIVERED")]
    assert selection_of(LOGS, query) == Selection(message_ids=(1,), states=(State.DELIVERED,))


@pytest.mark.parametrize(("endpoint", "most"), [(CANCEL, 500), (LIST, 100), (TAKE, 100), (LOGS, 1000)])
def test_a_count_has_a_range(endpoint: Endpoint, most: int) -> None:
    for count in (1, most):
        assert select(endpoint, [("count", str(count))])[1].count == count
    for text in ("0", str(most + 1), "-1", "1.5", "x", "²", "9" * 5000):
        with pytest.raises(Invalid, match=f"^count: .* is not a whole number from 1 to {most}$"):
            select(endpoint, [("count", text)])


@pytest.mark.parametrize(
    ("endpoint", "cursor"),
    [
        (LOGS, Cursor(position=1686652644442, index=12)),
        (LIST, Cursor(position=1686652644442 << 20 | 12)),
        (TAKE, Cursor(position=1686652644442 << 20 | 12)),
    ],
)
def test_a_cursor_says_where_the_page_begins(endpoint: Endpoint, cursor: Cursor) -> None:
    page = select(endpoint, [("cursor", "1686652644442-12")])[1]
    assert page.cursor == cursor
    assert page.start == cursor.position
    assert select(endpoint, [("cursor", "")])[1].cursor is None
    with pytest.raises(Invalid, match="cursor: "):
        select(endpoint, [("cursor", "nonsense")])


@pytest.mark.parametrize("endpoint", [LIST, LOGS])
@pytest.mark.parametrize("order", Order)
def test_a_list_can_be_asked_for_in_either_order(endpoint: Endpoint, order: Order) -> None:
    assert select(endpoint, [("order", order.value)])[1].order is order
    with pytest.raises(Invalid, match='order: "newest" is neither earliestFirst nor latestFirst'):
        select(endpoint, [("order", "newest")])


@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"messageIds", "dlqIds"} | {"count", "order"}))
def test_an_empty_filter_is_refused_instead_of_meaning_everything(name: str) -> None:
    endpoint = next(e for e in (LOGS, LIST) if name in OFFERED[e] or name in ("count", "order"))
    with pytest.raises(Invalid, match="must not be empty"):
        select(endpoint, [(name, " ")])


def test_commas_alone_are_an_empty_filter() -> None:
    with pytest.raises(Invalid, match="label: must not be empty"):
        select(TAKE, [("label", ", ,")])


@pytest.mark.parametrize("name", ["count", "cursor", "order", "fromDate", "toDate"])
def test_what_can_only_be_said_once_is_refused_twice(name: str) -> None:
    value = {"cursor": "1-1", "order": "latestFirst"}.get(name, "1")
    with pytest.raises(Invalid, match=f"{name}: must be given once"):
        select(LOGS, [(name, value), (name, value)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fromDate", "2027-01-15"),
        ("toDate", "-1"),
        ("toDate", "1e3"),
        ("toDate", "9" * 16),
        ("state", "DONE"),
        ("path", "no/slash"),
        ("label", "a\0b"),
        ("label", "\ud800"),
        ("flowControlKey", "\udce9"),
        ("url", "https://example.com/\0"),
    ],
)
def test_a_value_that_no_entry_can_have_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(Invalid) as refused:
        select(LOGS, [(name, value)])
    assert refused.value.field == name
    str(refused.value).encode()


@pytest.mark.parametrize("value", ["1000", "-1", "2xx", "20.0"])
def test_a_response_status_is_a_number(value: str) -> None:
    with pytest.raises(Invalid, match="responseStatus: "):
        select(LIST, [("responseStatus", value)])


def test_a_filter_has_a_bounded_number_of_values() -> None:
    values = [("label", str(n)) for n in range(MAX_VALUES)]
    assert len(selection_of(LOGS, values).labels) == MAX_VALUES
    with pytest.raises(Invalid, match="label: has more than 10000 values"):
        select(LOGS, [*values, ("label", "one more")])


# --- bodies


@pytest.mark.parametrize(
    ("endpoint", "body", "selection"),
    [
        (CANCEL, {"messageIds": [MSG_1, MSG_2]}, Selection(message_ids=(1, 2))),
        (CANCEL, {"messageIds": []}, Selection(message_ids=())),
        (CANCEL, {"label": ["a,b", "", "c"]}, Selection(labels=("a,b", "c"))),
        (CANCEL, {"label": "a,b"}, Selection(labels=("a", "b"))),
        (CANCEL, {"fromDate": 5, "toDate": "6"}, Selection(from_at=5, to_at=6)),
        (CANCEL, {"callerIP": "a", "callerIp": ["b"]}, Selection(caller_ips=("a", "b"))),
        (CANCEL, {}, Selection()),
        (TAKE, {"dlqIds": [DLQ_1]}, Selection(dead_letter_ids=(1,))),
        (TAKE, {"responseStatus": [404, "500"]}, Selection(response_statuses=(404, 500))),
    ],
)
def test_parameters_may_come_in_a_json_body(
    endpoint: Endpoint, body: dict[str, object], selection: Selection
) -> None:
    assert selection_of(endpoint, [], json.dumps(body).encode()) == selection


def test_a_parameter_of_the_query_wins_over_the_same_one_of_the_body() -> None:
    body = orjson.dumps({"label": "body", "queueName": "body", "count": 5})
    selection, page = select(CANCEL, [("label", "query")], body)
    assert (selection, page.count) == (Selection(labels=("query",), queues=("body",)), 5)
    assert select(CANCEL, [("count", "6")], body)[1].count == 6


def test_what_the_query_overrides_must_make_sense_too() -> None:
    with pytest.raises(Invalid, match="count"):
        select(CANCEL, [("count", "5")], b'{"count": ""}')
    with pytest.raises(Invalid, match="path"):
        select(CANCEL, [("path", "/a")], b'{"path": "a"}')


def test_a_blank_body_is_none() -> None:
    assert select(CANCEL, [], b" \r\n\t") == (Selection(), Page())


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "body: is not valid JSON"),
        (b"\xff", "body: is not valid JSON"),
        (b"[" * 100_000, "body: is not valid JSON"),
        (b"[]", "body: must be a JSON object"),
        (b'"all"', "body: must be a JSON object"),
        (b"null", "body: must be a JSON object"),
        (b'{"messageIds": null}', "messageIds: must be a string"),
        (b'{"messageIds": [null]}', "messageIds: must be a string"),
        (b'{"messageIds": {}}', "messageIds: must be a string"),
        (b'{"label": true}', "label: must be a string"),
        (b'{"count": 1.5}', "count: must be a string"),
        (b'{"label": []}', "label: must not be empty"),
        (b'{"label": [["a"]]}', "label: must be a string"),
        (b'{"labeel": "a"}', '"labeel": is not a parameter'),
    ],
)
def test_a_body_that_is_not_understood_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(Invalid) as refused:
        select(CANCEL, [], body)
    assert problem in str(refused.value)


NAMES = st.one_of(
    st.sampled_from([*FILTERS, "count", "cursor", "order", "qstash_token"]), st.text(max_size=6)
)
VALUES = st.one_of(
    st.text(st.characters(), max_size=12),
    st.sampled_from([value for value, _ in FILTERS.values()]),
    st.text("0123456789-,", max_size=20),
)


@given(st.sampled_from(Endpoint), st.lists(st.tuples(NAMES, VALUES), max_size=4), st.binary(max_size=10))
def test_any_query_is_a_selection_or_refused(endpoint: Endpoint, query: Query, body: bytes) -> None:
    try:
        selection, _ = select(endpoint, query, body)
    except Invalid as refused:
        str(refused).encode()
        return
    for texts in (selection.urls, selection.hosts, selection.labels, selection.flow_keys, selection.paths):
        assert all("\0" not in text for text in texts)
        "".join(texts).encode()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just(MSG_1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([CANCEL, TAKE]), JSON)
def test_any_json_body_is_a_selection_or_refused(endpoint: Endpoint, body: object) -> None:
    try:
        select(endpoint, [], json.dumps(body).encode())
    except Invalid as refused:
        str(refused).encode()
