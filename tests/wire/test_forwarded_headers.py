import pytest

from relay.domain.errors import Invalid
from relay.domain.fields import canonical
from relay.wire.headers import MAX_FORWARDED_LENGTH
from tests.wire.drafts import Given, draft_of

NEVER = [
    "Accept-Encoding",
    "Connection",
    "Content-Length",
    "Expect",
    "Host",
    "HTTP2-Settings",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "Upstash-Signature",
]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("test-header", "Test-Header"),
        ("content-type", "Content-Type"),
        ("X-API-Key", "X-Api-Key"),
        ("ETag", "Etag"),
        ("www-authenticate", "Www-Authenticate"),
        ("x_under_score", "X_under_score"),
        ("x--y-", "X--Y-"),
        ("1st-2nd", "1st-2nd"),
        ("dnt", "Dnt"),
    ],
)
def test_a_name_is_shown_in_canonical_capitals(name: str, shown: str) -> None:
    assert canonical(name) == canonical(name.upper()) == shown
    assert draft_of({"Upstash-Forward-" + name: "v"}).request.headers == ((shown, "v"),)


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"upstash-forward-a": "1", "UPSTASH-FORWARD-B": "2"}, (("A", "1"), ("B", "2"))),
        ({"Upstash-Forward-Authorization": "Bearer theirs"}, (("Authorization", "Bearer theirs"),)),
        ({"Upstash-Forward-Upstash-Label": "x"}, (("Upstash-Label", "x"),)),
        ({"Upstash-Forward-Upstash-Forward-X": "x"}, (("Upstash-Forward-X", "x"),)),
        ({"Upstash-Forward-Upstash-Workflow-Sdk-Version": "1"}, (("Upstash-Workflow-Sdk-Version", "1"),)),
        ({"Upstash-Forward-X": ""}, (("X", ""),)),
        ({"Upstash-Forward-X": " \ta\tb \t"}, (("X", "a\tb"),)),
        ({"Upstash-Forward-X": "ü, \udce9"}, (("X", "ü, \udce9"),)),
        ([("Upstash-Forward-X", "a"), ("upstash-forward-x", "b, c")], (("X", "a, b, c"),)),
        (
            {"Upstash-Forward-X": "value-uppercase, value-lowercase"},
            (("X", "value-uppercase, value-lowercase"),),
        ),
        ({"X": "1", "Authorization": "Bearer ours", "User-Agent": "me"}, ()),
    ],
)
def test_a_forwarded_header_loses_one_prefix_and_keeps_its_value(
    headers: Given, sent: tuple[tuple[str, str], ...]
) -> None:
    assert draft_of(headers).request.headers == sent


@pytest.mark.parametrize("name", NEVER)
def test_what_frames_routes_or_signs_one_request_is_never_forwarded(name: str) -> None:
    assert draft_of({"Upstash-Forward-" + name: "1"}).request.headers == ()
    assert draft_of({name: "1", "Upstash-Header-Forward": "true"}).request.headers == ()


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"Content-Type": "a/b"}, (("Content-Type", "a/b"),)),
        ({"Upstash-Forward-content-type": "a/b"}, (("Content-Type", "a/b"),)),
        (
            {"Upstash-Forward-X": "1", "Upstash-Forward-Content-Type": "no/no", "content-type": "a/b"},
            (("Content-Type", "a/b"), ("X", "1")),
        ),
        ({"Content-Type": "", "Upstash-Forward-Content-Type": "a/b"}, (("Content-Type", "a/b"),)),
        ([("Content-Type", "a/b"), ("content-type", "c/d")], (("Content-Type", "a/b, c/d"),)),
        ({"Content-Type": "a/b", "Upstash-Header-Forward": "true"}, (("Content-Type", "a/b"),)),
        ({"Content-Type": ""}, ()),
    ],
)
def test_the_plain_content_type_comes_first_and_wins(
    headers: Given, sent: tuple[tuple[str, str], ...]
) -> None:
    assert draft_of(headers).request.headers == sent


def test_header_forward_sends_all_headers_of_the_request_along() -> None:
    headers = [
        ("Host", "relay.example"),
        ("x-github-event", "push"),
        ("Cookie", "a=1"),
        ("cookie", "b=2"),
        ("Authorization", "Bearer ours"),
        ("Connection", "close, X-Hop"),
        ("X-HOP", "1"),
        ("Content-Type", "application/json"),
        ("Upstash-Header-Forward", "True"),
        ("Upstash-Unknown", "1"),
        ("Upstash-Forward-X-Github-Event", "forwarded"),
        ("Upstash-Forward-Connection", "User-Agent"),
        ("User-Agent", "GitHub-Hookshot"),
    ]
    assert draft_of(headers).request.headers == (
        ("Content-Type", "application/json"),
        ("X-Github-Event", "forwarded"),
        ("Cookie", "a=1, b=2"),
        ("User-Agent", "GitHub-Hookshot"),
    )


def test_an_authorization_that_is_not_ours_may_be_forwarded_with_all_others() -> None:
    headers = {"Authorization": "Basic theirs", "Upstash-Header-Forward": "true"}
    assert draft_of(headers).request.headers == ()
    assert draft_of(headers, authorization_is_ours=False).request.headers == (
        ("Authorization", "Basic theirs"),
    )
    assert draft_of({"Authorization": "Basic theirs"}, authorization_is_ours=False).request.headers == ()


def test_header_forward_can_be_said_in_the_query() -> None:
    draft = draft_of({"X-Event": "push"}, config=[("upstash-header-forward", "true")])
    assert draft.request.headers == (("X-Event", "push"),)
    assert draft_of({"X-Event": "push", "Upstash-Header-Forward": "false"}).request.headers == ()


@pytest.mark.parametrize("value", ["a\r\nb", "a\nX: y", "a\0", "\x1b[0m", "a\x7f", "\ud800"])
@pytest.mark.parametrize("name", ["Upstash-Forward-X", "Content-Type"])
def test_a_value_that_could_not_be_sent_is_refused(name: str, value: str) -> None:
    with pytest.raises(Invalid, match=r"has a control character|is not valid UTF-8") as refused:
        draft_of({name: value})
    assert refused.value.field == name


def test_a_value_that_is_not_forwarded_is_not_looked_at() -> None:
    assert draft_of({"X-Odd": "\x00"}) == draft_of({})
    with pytest.raises(Invalid, match=r"^X-Odd: has a control character$"):
        draft_of({"X-Odd": "\x00", "Upstash-Header-Forward": "true"})


def test_forwarded_headers_have_a_common_bound() -> None:
    draft_of({"Upstash-Forward-X": "v" * (MAX_FORWARDED_LENGTH - 1)})
    with pytest.raises(Invalid, match="Upstash-Forward: headers have more than 65536 characters in all"):
        draft_of({"Upstash-Forward-X": "v" * MAX_FORWARDED_LENGTH})
