import string
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.domain.errors import Invalid
from relay.wire.target import (
    MAX_URL_LENGTH,
    Kind,
    Target,
    parse_destination,
    parse_url,
    split_query,
    split_target,
)

PREFIX = "/v2/publish/"


def target_of(rest: str) -> Target:
    return split_target(PREFIX + rest, PREFIX)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/",
        "http://example.com/a//b/../c/./d",
        "https://example.com/123/?asdasd=ooo",
        "https://mock.httpstatus.io/200?sleep=30000",
        "https://example.com?a=1",
        "https://example.com/?",
        "https://example.com/?a=1&&b&c=&=d&a=2",
        "https://example.com/%E2%82%AC/%2F%zz?q=%C3%BC+x%20y",
        "https://example.com/a;b=c/(d)'e'!*@:~[]|^`{}\"<>\\",
        "https://user:p%40ss@example.com:8443/x",
        "http://user@localhost:3000/api",
        "http://127.0.0.1:1/",
        "http://[::1]:65535/x",
        "http://[2001:db8::ffff:192.0.2.1]",
        "https://my_service.internal./x",
        "https://Example.COM/Path",
        f"https://{'a' * 63}.example/",
        "https://example.com/https://other.example/?u=https://third.example/?x=y",
    ],
)
def test_a_destination_keeps_every_byte(url: str) -> None:
    assert target_of(url) == Target(destination=url, kind=Kind.URL)
    assert parse_destination(url) == Target(destination=url, kind=Kind.URL)


@pytest.mark.parametrize(
    ("spelled", "destination"),
    [
        ("https:/example.com/x?y=1", "https://example.com/x?y=1"),
        ("HTTPS://example.com/X", "https://example.com/X"),
        ("https%3A%2F%2Fexample.com%2Fx", "https://example.com/x"),
        ("https%3a%2f%2fexample.com%2fx", "https://example.com/x"),
        ("https:%2F%2Fexample.com%2Fx", "https://example.com/x"),
        ("https%3A//example.com/x", "https://example.com/x"),
        ("https%3A%2F%2Fexample.com%2Fx%3Fa%3D1", "https://example.com/x?a=1"),
        ("https%3A%2F%2Fexample.com%2Fx%3Fa%3D1?b=2", "https://example.com/x?a=1&b=2"),
        ("https%3A%2F%2Fexample.com%2Fx?b=2", "https://example.com/x?b=2"),
        ("https%3A%2F%2Fexample.com%2Fa%2520b%23part", "https://example.com/a%20b"),
        ("https://example.com/x#part", "https://example.com/x"),
        ("https://example.com/x?a=1#part?b=2", "https://example.com/x?a=1"),
        ("https://bücher.example/ü?ö=ä", "https://xn--bcher-kva.example/%C3%BC?%C3%B6=%C3%A4"),
        ("https://b%C3%BCcher.example/", "https://xn--bcher-kva.example/"),
        ("https://faß.example/", "https://xn--fa-hia.example/"),
        ("https://日本語.example/", "https://xn--wgv71a119e.example/"),
        ("https://ünal:pass@example.com/", "https://%C3%BCnal:pass@example.com/"),
        ("https://\uff11\uff12\uff17.0.0.1/", "https://127.0.0.1/"),
    ],
)
def test_courtesy_spellings_and_unicode_become_the_url_a_client_would_call(
    spelled: str, destination: str
) -> None:
    assert target_of(spelled) == Target(destination=destination, kind=Kind.URL)


@pytest.mark.parametrize(
    ("query", "rest", "config", "token"),
    [
        ("", "", (), None),
        ("a=1", "a=1", (), None),
        ("qstash_token=abc", "", (), "abc"),
        ("qstash_token=", "", (), None),
        ("qstash_token=eyJ+/x==&a=1", "a=1", (), "eyJ+/x=="),
        ("qstash_token=eyJ%2B%3D", "", (), "eyJ+="),
        ("qstash%5Ftoken=abc&b", "b", (), "abc"),
        ("qstash_token=&qstash_token=b&qstash_token=c", "", (), "b"),
        ("x=1&upstash-retries=3&y=2", "x=1&y=2", (("upstash-retries", "3"),), None),
        ("Upstash-Retries=3", "", (("upstash-retries", "3"),), None),
        ("upstash%2Dretries=3", "", (("upstash-retries", "3"),), None),
        ("upstash-label=a%20b%2Cc+d", "", (("upstash-label", "a b,c d"),), None),
        ("upstash-label=%C3%BC", "", (("upstash-label", "ü"),), None),
        ("upstash-forward-x-y=z", "", (("upstash-forward-x-y", "z"),), None),
        ("upstash-retries", "", (("upstash-retries", ""),), None),
        ("upstash-delay=1s&upstash-delay=2s", "", (("upstash-delay", "1s"), ("upstash-delay", "2s")), None),
        ("upstash=1&qstash_tokens=2&my-upstash-x=4", "upstash=1&qstash_tokens=2&my-upstash-x=4", (), None),
    ],
)  # fmt: skip
def test_a_query_is_split_into_what_is_ours_and_the_untouched_rest(
    query: str, rest: str, config: tuple[tuple[str, str], ...], token: str | None
) -> None:
    found = split_query(query)
    assert (found.rest, found.config, found.token) == (rest, config, token)


@pytest.mark.parametrize(
    ("query", "destination"),
    [
        ("?qstash_token=abc", "https://example.com/x"),
        ("?upstash-retries=1", "https://example.com/x"),
        ("?a=1&qstash_token=abc&b=2", "https://example.com/x?a=1&b=2"),
        ("?", "https://example.com/x?"),
        ("?a=%41&upstash-delay=1s&=&b", "https://example.com/x?a=%41&=&b"),
    ],
)
def test_what_is_ours_leaves_no_trace_in_the_destination(query: str, destination: str) -> None:
    assert target_of("https://example.com/x" + query).destination == destination


def test_settings_inside_a_fully_encoded_destination_are_the_destinations_own() -> None:
    found = target_of("https%3A%2F%2Fexample.com%2F%3Fupstash-retries%3D3?upstash-retries=5")
    assert found.destination == "https://example.com/?upstash-retries=3"
    assert found.config == (("upstash-retries", "5"),)


@pytest.mark.parametrize("name", ["my-group", "a", "A.b_c-9", "my%2Dgroup", "my-group?qstash_token=x"])
def test_what_has_no_scheme_and_could_be_a_name_is_a_url_group(name: str) -> None:
    found = target_of(name)
    assert found.kind is Kind.URL_GROUP
    assert found.destination == name.split("?")[0].replace("%2D", "-")


@pytest.mark.parametrize(
    "destination",
    [
        "",
        "/",
        "/https://example.com",
        "api/other",
        "example.com/path",
        "localhost:3000",
        "ftp://example.com/",
        "https:example.com",
        "https://",
        "https:///path",
        "https:",
        "mailto:a@example.com",
        "group?x=1",
        "a" * 257,
        "%FF",
        "https%3A%2F%2F%FF",
        "https://?x=1",
        "https://@/",
        "https://user@/",
        "https://:80/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:/",
        "https://example.com:8o/",
        "https://example.com:80:80/",
        "https://example..com/",
        "https://.example.com/",
        "https://./",
        "https://exa mple.com/",
        "https://exa%20mple.com/",
        "https://%2F/",
        "https://%FF/",
        "https://ex*mple.com/",
        "https://good.example\\@evil.example/",
        "https://a@b@example.com/",
        "https://us er@example.com/",
        "https://[::1/",
        "https://[::1]x/",
        "https://[1.2.3.4]/",
        "https://[fe80::1%25eth0]/",
        "https://[:::]/",
        "https://xn--\u0301/",
        "https://\u2603\u0301..example/",
        f"https://{'a' * 64}.example/",
        f"https://{'ü' * 64}.example/",
        f"https://{'a.' * 127}example/",
        f"https://{'a' * 1025}/",
        "https://example.com/a b",
        "https://example.com/a\tb",
        "https://example.com/a\nb",
        "https://example.com/\x00",
        "https://example.com/\x7f",
        "https://example.com/\udce9",
        "https://example.com/?\ud800",
        "https://\udce9.example/",
        "\udce9",
        f"https://example.com/{'x' * MAX_URL_LENGTH}",
        f"https://example.com/{'ü' * (MAX_URL_LENGTH // 3)}",
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_refused_naming_the_destination(destination: str) -> None:
    with pytest.raises(Invalid) as refused:
        target_of(destination)
    assert refused.value.field == "destination"
    str(refused.value).encode()


def test_the_hosted_model_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(Invalid, match=r"^destination: api/llm is not offered: .* name a provider's URL$"):
        split_target("/v2/publish/api/llm", "/v2/publish/")


def test_the_longest_url_is_accepted() -> None:
    url = "https://example.com/".ljust(MAX_URL_LENGTH, "x")
    assert parse_url(url, "url") == url
    with pytest.raises(Invalid, match="longer than 8192 characters"):
        parse_url(url + "x", "url")


@pytest.mark.parametrize("parameter", ["upstash-label=%FF", "upstash-label=%E2%82"])
def test_a_setting_that_is_not_utf8_is_refused_by_its_name(parameter: str) -> None:
    with pytest.raises(Invalid, match="upstash-label: is not percent-encoded UTF-8"):
        target_of("https://example.com/?" + parameter)


def test_an_absolute_request_target_is_understood() -> None:
    raw = f"http://relay.example:8080{PREFIX}https://example.com/x?a=1"
    assert split_target(raw, PREFIX).destination == "https://example.com/x?a=1"


@pytest.mark.parametrize("raw", ["/v2/%70ublish/https://example.com/", "", "*", "https://example.com"])
def test_a_target_under_another_path_is_refused(raw: str) -> None:
    with pytest.raises(Invalid, match="must follow /v2/publish/"):
        split_target(raw, PREFIX)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/123/?asdasd=ooo",
        "https://example.com/a b/ü?x=ö&y=a b#part",
        "https://example.com//a//b?q=[1]&r={}|",
        "http://user:pass@localhost:3000/",
        "https://bücher.example/",
    ],
)
def test_what_the_python_sdk_sends_for_a_url_is_that_url(url: str) -> None:
    # The SDK concatenates; httpx encodes the whole as one URL of the relay.
    raw = httpx.URL("http://relay.example" + PREFIX + url).raw_path.decode()
    expected = httpx.URL(url.replace("bücher", "xn--bcher-kva"))
    assert httpx.URL(split_target(raw, PREFIX).destination) == expected.copy_with(fragment=None)


def test_a_callbacks_url_is_refused_under_its_own_name() -> None:
    with pytest.raises(Invalid, match=r'^Upstash-Callback: "my-group" does not begin with http'):
        parse_url("my-group", "Upstash-Callback")


fragments = st.sampled_from(
    [
        *(
            "http://",
            "https://",
            "https:/",
            "https%3A%2F%2F",
            "example.com",
            "xn--",
            "::1",
            "..",
            "a" * 70,
            "1" * 12,
        ),
        *(
            "?",
            "&",
            "=",
            "+",
            "#",
            "%",
            "%00",
            "%FF",
            "@",
            ":",
            "[",
            "]",
            "/",
            "\\",
            "ü",
            "ß",
            "\u200d",
            "\udce9",
        ),
        *("upstash-", "qstash_token"),
    ]
)
targets = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(fragments, st.text(max_size=4)), max_size=14).map("".join),
    st.lists(st.one_of(fragments, st.text(max_size=4)), max_size=10).map(
        lambda parts: "https://" + "".join(parts)
    ),
)


@given(targets)
@example("https://xn--a.example/")
@example("https://\u0660.example/")
def test_any_target_gives_a_destination_that_can_be_called_or_is_refused(rest: str) -> None:
    try:
        found = target_of(rest)
    except Invalid as refused:
        str(refused).encode()
        return
    assert found.destination.isascii()
    assert found.destination.isprintable()
    assert " " not in found.destination
    assert len(found.destination) <= MAX_URL_LENGTH
    if found.kind is Kind.URL:
        parts = urlsplit(found.destination)
        assert parts.scheme in ("http", "https")
        assert parts.hostname
        assert parts.port is None or 1 <= parts.port <= 65535
        assert parse_url(found.destination, "url") == found.destination


@given(st.text(string.printable.replace("#", "").replace(" ", "")[:90], max_size=40))
def test_a_url_comes_out_of_its_encoded_form_as_it_went_in(rest: str) -> None:
    url = "https://example.com/" + rest
    assert target_of(quote(url, safe="")).destination == target_of(
        url.replace("?", "%3F")
    ).destination.replace("%3F", "?")
