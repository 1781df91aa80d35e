"""The bytes of a delivery: what was published, the relay's own headers, nothing smuggled in."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.message import METHODS, Headers, MessageId
from relay.wire.outbound import Outgoing, Peer, outgoing
from tests.builders import a_claim, a_message


def the_request(
    url: str = "https://example.com/hook",
    *,
    method: str = "POST",
    headers: Headers = (),
    body: bytes = b"hello",
    retried: int = 0,
    caller_ip: str | None = None,
    url_group: str | None = None,
    schedule_id: str | None = None,
    signature: str = "e30.e30.sig",
    standard: Headers = (),
    region: str = "EU-CENTRAL-1",
) -> Outgoing:
    message = a_message(
        id=MessageId(1),
        url=url,
        method=method,
        headers=headers,
        body=body,
        caller_ip=caller_ip,
        url_group=url_group,
        schedule_id=schedule_id,
    )
    signatures = (("Upstash-Signature", signature), *standard)
    return outgoing(a_claim(message, retried=retried), signatures, region=region)


def fields(request: Outgoing) -> list[tuple[str, str]]:
    """The header as a receiver reads it."""
    assert request.problem is None
    lines = request.head.partition(b"\r\n\r\n")[0].decode("utf-8", "surrogateescape").split("\r\n")[1:]
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


def values(request: Outgoing, name: str) -> list[str]:
    return [value for each, value in fields(request) if each.lower() == name.lower()]


def line(request: Outgoing) -> str:
    assert request.problem is None
    return request.head.partition(b"\r\n")[0].decode()


def test_a_plain_delivery_is_exactly_these_bytes() -> None:
    request = the_request(
        headers=(("Content-Type", "application/json"), ("X-Mine", "1")), caller_ip="192.0.2.1"
    )
    assert request == Outgoing(
        peer=Peer("example.com", 443, True),
        head=(
            b"POST /hook HTTP/1.1\r\n"
            b"Host: example.com\r\n"
            b"Content-Type: application/json\r\n"
            b"X-Mine: 1\r\n"
            b"User-Agent: Upstash-QStash\r\n"
            b"Upstash-Signature: e30.e30.sig\r\n"
            b"Upstash-Message-Id: msg_0000000000001\r\n"
            b"Upstash-Retried: 0\r\n"
            b"Upstash-Caller-Ip: 192.0.2.1\r\n"
            b"upstash-region: EU-CENTRAL-1\r\n"
            b"Content-Length: 5\r\n"
            b"\r\n"
            b"hello"
        ),
    )


# --- where it goes


@pytest.mark.parametrize(
    ("url", "peer", "host"),
    [
        ("http://example.com/", Peer("example.com", 80, False), "example.com"),
        ("https://example.com/", Peer("example.com", 443, True), "example.com"),
        ("http://example.com:80/", Peer("example.com", 80, False), "example.com"),
        ("https://example.com:443/", Peer("example.com", 443, True), "example.com"),
        ("https://example.com:80/", Peer("example.com", 80, True), "example.com:80"),
        ("http://example.com:8080/", Peer("example.com", 8080, False), "example.com:8080"),
        ("HTTPS://Example.COM/", Peer("example.com", 443, True), "example.com"),
        ("https://example.com./", Peer("example.com.", 443, True), "example.com."),
        ("http://under_score.example/", Peer("under_score.example", 80, False), "under_score.example"),
        ("http://192.0.2.1/", Peer("192.0.2.1", 80, False), "192.0.2.1"),
        ("http://[2001:DB8::1]/", Peer("2001:db8::1", 80, False), "[2001:db8::1]"),
        ("http://[2001:db8::1]:81/", Peer("2001:db8::1", 81, False), "[2001:db8::1]:81"),
        ("https://b\u00fccher.example/", Peer("xn--bcher-kva.example", 443, True), "xn--bcher-kva.example"),
        ("http://\uff11\uff12\uff17.0.0.1/", Peer("127.0.0.1", 80, False), "127.0.0.1"),
    ],
)
def test_a_url_leads_to_a_peer_and_a_host_header(url: str, peer: Peer, host: str) -> None:
    request = the_request(url)
    assert request.peer == peer
    assert values(request, "Host") == [host]


@pytest.mark.parametrize(
    ("peer", "text"), [(Peer("a.example", 80, False), "a.example:80"), (Peer("::1", 443, True), "[::1]:443")]
)
def test_a_peer_is_written_as_operators_know_it(peer: Peer, text: str) -> None:
    assert str(peer) == text


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com", "/"),
        ("https://example.com/", "/"),
        ("https://example.com?a=1", "/?a=1"),
        ("https://example.com//a///b/", "//a///b/"),
        ("https://example.com/a/../b/./c", "/a/../b/./c"),
        ("https://example.com/%7Ea%2fb%zz%", "/%7Ea%2fb%zz%"),
        ("https://example.com/a?b=c&b=%20&&x", "/a?b=c&b=%20&&x"),
        ("https://example.com/?", "/?"),
        ("https://example.com/?u=https://other.example/?x=1", "/?u=https://other.example/?x=1"),
        ("https://example.com/a;b=1,2|3{4}'5\"", "/a;b=1,2|3{4}'5\""),
        ("https://example.com/a#fragment?x", "/a"),
        ("https://example.com/?q=a@b:c", "/?q=a@b:c"),
        ("https://example.com/gr\u00fc\u00dfe?n=\u65e5", "/gr%C3%BC%C3%9Fe?n=%E6%97%A5"),
    ],
)
def test_path_and_query_go_out_as_they_were_published(url: str, target: str) -> None:
    assert line(the_request(url)) == f"POST {target} HTTP/1.1"


@pytest.mark.parametrize(
    ("credentials", "plain"),
    [
        ("user:pass", b"user:pass"),
        ("user", b"user"),
        ("us%40er:p%3Ass", b"us@er:p:ss"),
        ("user:gr%C3%BC%C3%9Fe", "user:gr\u00fc\u00dfe".encode()),
        ("user:" + "p" * 100, b"user:" + b"p" * 100),
    ],
)
def test_credentials_of_a_url_become_basic_authorization(credentials: str, plain: bytes) -> None:
    request = the_request(f"https://{credentials}@example.com/")
    assert values(request, "Authorization") == [f"Basic {base64.b64encode(plain).decode()}"]
    assert values(request, "Host") == ["example.com"]


def test_a_forwarded_authorization_wins_over_credentials_of_the_url() -> None:
    request = the_request("https://user:pass@example.com/", headers=(("authorization", "Bearer mine"),))
    assert values(request, "Authorization") == ["Bearer mine"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/",
        "ftp://example.com/",
        "https://",
        "https:///path",
        "https://exa mple.com/",
        "https://example.com:port/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://[::1/",
        "https://[zz]/",
        "https://a..b/",
        f"https://{'a' * 64}.example/",
        "https://host\\@evil.example/",
        "https://example.com/a b",
        "https://example.com/a\r\nX-Evil: 1",
        "https://example.com/\0",
        "https://user name@example.com/",
        "https://example.com/\ud800",
    ],
)
def test_a_url_that_cannot_be_called_is_a_problem_and_not_an_exception(url: str) -> None:
    request = the_request(url)
    assert request.problem is not None
    assert request.problem.startswith("url: ")
    assert request.head == b""
    assert request.problem.encode()


# --- headers


def test_the_headers_of_the_door_a_message_came_through_are_sent() -> None:
    request = the_request(url_group="billing", schedule_id="scd_1", caller_ip="2001:db8::1", retried=3)
    assert values(request, "Upstash-Topic-Name") == ["billing"]
    assert values(request, "Upstash-Schedule-Id") == ["scd_1"]
    assert values(request, "Upstash-Caller-Ip") == ["2001:db8::1"]
    assert values(request, "Upstash-Retried") == ["3"]


def test_headers_of_doors_a_message_did_not_come_through_are_absent() -> None:
    names = {name.lower() for name, _ in fields(the_request())}
    assert not names & {"upstash-topic-name", "upstash-schedule-id", "upstash-caller-ip", "authorization"}


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("Upstash-Signature", "e30.e30.sig"),
        ("Upstash-Message-Id", "msg_0000000000001"),
        ("Upstash-Retried", "0"),
        ("Upstash-Region", "EU-CENTRAL-1"),
        ("Upstash-Topic-Name", "group"),
        ("Upstash-Schedule-Id", "scd_1"),
        ("Upstash-Caller-Ip", "192.0.2.1"),
        ("Host", "example.com"),
        ("Content-Length", "5"),
    ],
)
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
def test_the_relays_own_headers_win_over_forwarded_ones(name: str, sent: str, spelling: type[str]) -> None:
    request = the_request(
        headers=((spelling(name), "forged"),), url_group="group", schedule_id="scd_1", caller_ip="192.0.2.1"
    )
    assert values(request, name) == [sent]


def test_a_forwarded_header_of_another_door_passes() -> None:
    """Steps of a workflow send on what their first request said."""
    headers = (
        ("Upstash-Schedule-Id", "scd_9"),
        ("Upstash-Workflow-RunId", "wfr_1"),
        ("Upstash-Label", "a,b"),
    )
    request = the_request(headers=headers)
    assert [field for field in fields(request) if field in headers] == list(headers)


def test_a_forwarded_user_agent_replaces_ours() -> None:
    assert values(the_request(headers=(("user-agent", "mine/1"),)), "User-Agent") == ["mine/1"]
    assert values(the_request(), "User-Agent") == ["Upstash-QStash"]


def test_the_trace_of_the_publisher_goes_on() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert values(the_request(headers=(("traceparent", trace),)), "traceparent") == [trace]


@pytest.mark.parametrize(
    "name",
    [
        "Accept-Encoding",
        "Connection",
        "Expect",
        "HTTP2-Settings",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    ],
)
def test_what_belongs_to_a_connection_is_not_forwarded(name: str) -> None:
    assert values(the_request(headers=((name, "x"), (name.lower(), "x"))), name) == []


def test_the_region_is_what_the_relay_is_told() -> None:
    assert values(the_request(region="US-EAST-1"), "upstash-region") == ["US-EAST-1"]


def test_header_values_arrive_byte_for_byte() -> None:
    sent = b"caf\xc3\xa9 \xff\xe9"
    request = the_request(headers=(("X-Name", sent.decode("utf-8", "surrogateescape")),))
    assert b"\r\nX-Name: caf\xc3\xa9 \xff\xe9\r\n" in request.head


@pytest.mark.parametrize(
    "headers",
    [
        (("X-A", "1\r\nX-Evil: 1"),),
        (("X-A", "1\nX-Evil: 1"),),
        (("X-A", "1\rX-Evil: 1"),),
        (("X-A", "1\r\n\r\nGET / HTTP/1.1"),),
        (("X-A", "\0"),),
        (("X-A\r\nX-Evil", "1"),),
        (("X-A: 1\r\nX-Evil", "1"),),
        (("Transfer-Encoding ", "chunked"),),
        (("", "1"),),
        (("X A", "1"),),
        (("X-\u00c4", "1"),),
        (("X-A", "\ud800"),),
        (("User-Agent", "a\r\nX-Evil: 1"),),
    ],
)
def test_a_header_that_could_become_another_is_a_problem_and_not_an_exception(headers: Headers) -> None:
    request = the_request(headers=headers)
    assert request.problem is not None
    assert "header" in request.problem
    assert request.head == b""


@pytest.mark.parametrize("where", ["url_group", "schedule_id", "caller_ip", "signature", "region"])
def test_no_other_value_can_become_a_header_either(where: str) -> None:
    request = the_request(**{where: "a\r\nX-Evil: 1"})  # type: ignore[arg-type]
    assert request.problem is not None


@given(
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=4).map(tuple),
    st.one_of(st.text(max_size=30), st.text(max_size=20).map("https://example.com/".__add__)),
    st.binary(max_size=50),
)
def test_whatever_was_stored_is_one_request_or_a_problem(headers: Headers, url: str, body: bytes) -> None:
    request = the_request(url, headers=headers, body=body)
    if request.problem is not None:
        assert request.head == b""
        return
    head, _, rest = request.head.partition(b"\r\n\r\n")
    assert rest == body
    names = [part.partition(b":")[0].lower() for part in head.split(b"\r\n")[1:]]
    assert names.count(b"host") == names.count(b"content-length") == 1
    forwarded = {name.lower().encode("utf-8", "surrogateescape") for name, _ in headers}
    ours = {
        b"host", b"user-agent", b"upstash-signature", b"upstash-message-id", b"upstash-retried", b"upstash-region",
        b"content-length", b"authorization",
    }  # fmt: skip
    assert set(names) <= ours | forwarded
    assert b"\n" not in head.replace(b"\r\n", b"")


# --- body


@pytest.mark.parametrize(
    ("method", "length"), [("POST", ["0"]), ("PUT", ["0"]), ("PATCH", ["0"]), ("GET", []), ("DELETE", [])]
)
def test_an_empty_body_has_a_length_where_one_is_expected(method: str, length: list[str]) -> None:
    request = the_request(method=method, body=b"")
    assert values(request, "Content-Length") == length
    assert request.head.endswith(b"\r\n\r\n")
    assert request.body == b""


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_body_goes_with_any_method(method: str) -> None:
    request = the_request(method=method, body=b"\r\n\r\n\x00\xff")
    assert line(request) == f"{method} /hook HTTP/1.1"
    assert values(request, "Content-Length") == ["6"]
    assert request.head.endswith(b"\r\n\r\n\r\n\r\n\x00\xff")


def test_a_large_body_is_not_copied() -> None:
    body = b"x" * 1_000_000
    request = the_request(body=body)
    assert request.body is body
    assert values(request, "Content-Length") == ["1000000"]
    assert request.head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["TRACE", "post", "GET /evil HTTP/1.1\r\nX: 1\r\n\r\nGET", ""])
def test_a_method_that_is_not_offered_is_a_problem(method: str) -> None:
    request = the_request(method=method)
    assert request.problem is not None
    assert request.problem.startswith("the method is none of DELETE, GET, PATCH, POST, PUT: ")


def test_our_signatures_replace_forwarded_ones_of_the_same_scheme() -> None:
    theirs = (("Webhook-Id", "theirs"), ("Webhook-Timestamp", "1"), ("Webhook-Signature", "v1,theirs"))
    ours = (("webhook-id", "ours"), ("webhook-timestamp", "2"), ("webhook-signature", "v1,ours"))
    both = the_request(headers=theirs, standard=ours)
    for name, value in ours:
        assert values(both, name) == [value]
    passed_on = the_request(headers=theirs)
    for name, value in theirs:
        assert values(passed_on, name) == [value]
