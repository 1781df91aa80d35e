"""What a command line means, and which ones are refused before anything is asked of a relay."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.console import Answer, Console, Server
from tests.cli.shapes import a_letter


@pytest.fixture
def console(server: Server) -> Console:
    console = Console()
    console.environment = {"QSTASH_URL": server.url, "QSTASH_TOKEN": "a-token"}
    return console


def test_the_overview_names_every_command_in_its_group_and_every_exit_code(
    capsys: pytest.CaptureFixture[str], console: Console
) -> None:
    assert console("--help").code == 0
    words = capsys.readouterr().out
    assert console().code == 0
    assert capsys.readouterr().out == words
    groups = [
        words.index(title) for title in ("run the relay:", "talk to a relay:", "operate:", "exit codes:")
    ]
    assert groups == sorted(groups)
    commands = ("dev", "serve", "publish", "messages", "logs", "schedules", "queues", "url-groups",
                "flow-control", "dlq", "keys", "tenants", "tokens")  # fmt: skip
    assert [name for name in commands if f"\n  {name} " not in words] == []
    assert [code for code in (0, 1, 2, 3, 4, 130) if f"\n  {code} " not in words] == []


def test_the_version_is_the_version_of_the_distribution(
    capsys: pytest.CaptureFixture[str], console: Console
) -> None:
    assert console("--version").code == 0
    assert capsys.readouterr().out == f"relay {version('relay-http')}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ("unknown",),
        ("messages",),
        ("messages", "get"),
        ("publish",),
        ("dlq", "list", "--count", "0"),
        ("dlq", "list", "--count", "many"),
        ("logs", "--since", "yesterday"),
        ("logs", "--foll"),
        ("queues", "set", "q", "--parallelism", "0"),
        ("url-groups", "add", "g"),
        ("flow-control", "pause", ".."),
        ("flow-control", "pin", "k", "--rate", "fast"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_means_nothing_is_refused_with_usage(
    capsys: pytest.CaptureFixture[str], console: Console, server: Server, argv: tuple[str, ...]
) -> None:
    assert console(*argv).code == 2
    assert "usage: relay" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        (("dlq", "list", "--cuont", "3"), "usage: relay dlq list "),
        (("logs", "--folow"), "usage: relay logs "),
        (("queues", "get", "q", "--yes"), "usage: relay queues get "),
        (("--versoin", "logs"), "usage: relay logs "),
    ],
)
def test_a_misspelt_option_is_answered_with_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str], console: Console, argv: tuple[str, ...], usage: str
) -> None:
    assert console(*argv).code == 2
    said = capsys.readouterr().err
    assert said.startswith(usage)
    assert "unrecognized arguments: --" in said


@pytest.mark.parametrize("id", ["", " ", ".", "..", "a/b", "msg_1?x=y", "ü"])
def test_an_id_that_would_name_something_else_is_never_sent(
    capsys: pytest.CaptureFixture[str], console: Console, server: Server, id: str
) -> None:
    for argv in (
        ("messages", "cancel"),
        ("dlq", "delete"),
        ("schedules", "delete"),
        ("queues", "delete"),
        ("queues", "pause"),
        ("url-groups", "delete"),
    ):
        assert console(*argv, id).code == 2
    assert "is not an id" in capsys.readouterr().err
    assert server.requests == []


def test_an_empty_filter_is_refused_instead_of_matching_everything(
    capsys: pytest.CaptureFixture[str], console: Console, server: Server
) -> None:
    assert console("messages", "cancel", "--yes", "--label", "").code == 2
    assert "--label" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    "command", [("messages", "cancel"), ("dlq", "retry"), ("dlq", "delete")], ids=" ".join
)
@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "which ones? Give ids, filters, or --all"),
        (("msg_1", "--all"), "ids and --all exclude each other"),
        (("msg_1", "--label", "a"), "ids and filters exclude each other"),
        (("--all", "--label", "a"), "--all and filters exclude each other"),
        (("msg_1", "--count", "3"), "--count goes with --all or filters, not with ids"),
        (("--all",), "there is no terminal to ask on; pass --yes to go ahead"),
    ],
)
def test_a_bulk_command_must_say_clearly_what_it_is_about(
    console: Console, server: Server, command: tuple[str, ...], flags: tuple[str, ...], complaint: str
) -> None:
    assert console(*command, *flags) == (2, "", f"relay: {complaint}\n")
    assert server.requests == []


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("queues", "delete", "q"), "there is no terminal to ask on; pass --yes to go ahead"),
        (("keys", "rotate"), "there is no terminal to ask on; pass --yes to go ahead"),
        (("flow-control", "pin", "k"), "which limits? Give --parallelism, --rate or --period"),
    ],
)
def test_a_change_must_say_clearly_what_it_is_about(
    console: Console, server: Server, argv: tuple[str, ...], complaint: str
) -> None:
    assert console(*argv) == (2, "", f"relay: {complaint}\n")
    assert server.requests == []


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("QSTASH_URL", "which relay? Set QSTASH_URL or pass --url, for example http://127.0.0.1:8080"),
        ("QSTASH_TOKEN", "QSTASH_TOKEN is not set; set it or pass --token"),
    ],
)
def test_a_missing_setting_is_named_together_with_its_flag(
    console: Console, server: Server, missing: str, complaint: str
) -> None:
    console.environment[missing] = ""
    assert console("schedules", "list") == (2, "", f"relay: {complaint}\n")
    assert server.requests == []


def test_flags_win_over_the_environment(console: Console, server: Server) -> None:
    console.environment = {"QSTASH_URL": "http://127.0.0.1:1", "QSTASH_TOKEN": "not-this-one"}
    server.says({"current": "sig_1", "next": "sig_2"})
    assert console("keys", "show", "--url", server.url, "--token", "this-one").code == 0
    assert server.requests[0].headers["Authorization"] == "Bearer this-one"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://user@127.0.0.1",
        "http://127.0.0.1/?a=b",
        "http://127.0.0.1/a b",
        "http://[::1",
        "http://bücher.example",
    ],
)
def test_a_url_that_no_relay_can_have_is_a_usage_error(console: Console, url: str) -> None:
    code, out, err = console("keys", "show", "--url", url)
    assert (code, out) == (2, "")
    assert err.endswith("is not the URL of a relay, such as http://127.0.0.1:8080\n")


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "bücher"])
def test_a_token_that_fits_no_header_is_a_usage_error(console: Console, server: Server, token: str) -> None:
    assert console("keys", "show", "--token", token) == (
        2,
        "",
        "relay: the token holds characters that no token has\n",
    )
    assert server.requests == []


def test_a_relay_below_a_path_is_found_there(console: Console, server: Server) -> None:
    server.says([])
    assert console("schedules", "list", "--url", f"{server.url}/relay//").code == 0
    assert server.requests[0].target == "/relay/v2/schedules"


def test_every_publish_flag_becomes_its_header(console: Console, server: Server) -> None:
    server.says({"messageId": "msg_1"})
    result = console(
        *("publish", "https://example.com/a?b=c&d=%20#part", "--body", "grüße"),
        *(
            "-H",
            "X-One: 1",
            "--header",
            "Authorization:Bearer x",
            "--content-type",
            "text/plain",
            "--method",
            "PUT",
        ),
        *("--delay", "1h", "--not-before", "1800000000", "--retries", "7", "--retry-delay", "1000 * retried"),
        *(
            "--timeout",
            "30s",
            "--label",
            "a",
            "--label",
            "b",
            "--deduplication-id",
            "d",
            "--content-deduplication",
        ),
    )
    assert result == (0, "msg_1\n", "")
    [request] = server.requests
    assert (request.method, request.target) == ("POST", "/v2/publish/https://example.com/a?b=c&d=%20")
    assert request.body == "grüße".encode()
    headers = request.headers
    del headers["Host"], headers["Accept-Encoding"], headers["User-Agent"]
    assert headers == {
        "Authorization": "Bearer a-token",
        "Content-Length": "7",
        "Content-Type": "text/plain",
        "Upstash-Content-Based-Deduplication": "true",
        "Upstash-Deduplication-Id": "d",
        "Upstash-Delay": "1h",
        "Upstash-Forward-Authorization": "Bearer x",
        "Upstash-Forward-X-One": "1",
        "Upstash-Label": "a,b",
        "Upstash-Method": "PUT",
        "Upstash-Not-Before": "1800000000",
        "Upstash-Retries": "7",
        "Upstash-Retry-Delay": "1000 * retried",
        "Upstash-Timeout": "30s",
    }


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (("publish",), "/v2/publish/https://example.com"),
        (("schedules", "create", "--cron", "@daily"), "/v2/schedules/https://example.com"),
    ],
)
def test_a_header_of_the_relays_own_is_a_setting_and_not_passed_on(
    console: Console, server: Server, command: tuple[str, ...], path: str
) -> None:
    server.says({"messageId": "msg_1", "scheduleId": "scd_1"})
    told = ("--callback", "https://a.example", "--failure-callback", "https://b.example")
    own = ("-H", "upstash-Redact-Fields: body", "-H", "Relay-Signature:both", "-H", "Upstashed: x")
    assert console(*command, "https://example.com", *told, *own).code == 0
    [request] = server.requests
    assert request.path == path
    sent = {name: value for name, value in request.headers.items() if "pstash" in name or "Relay-" in name}
    sent.pop("Upstash-Cron", None)
    assert sent == {
        "Upstash-Callback": "https://a.example",
        "Upstash-Failure-Callback": "https://b.example",
        "upstash-Redact-Fields": "body",
        "Relay-Signature": "both",
        "Upstash-Forward-Upstashed": "x",
    }


def test_a_publish_without_flags_sends_no_header_the_relay_would_have_to_obey(
    console: Console, server: Server
) -> None:
    server.says({"messageId": "msg_1"})
    assert console("publish", "https://example.com/").code == 0
    assert not [
        name for name in server.requests[0].headers if name.lower().startswith(("upstash", "content-type"))
    ]
    assert server.requests[0].body == b""


def test_every_schedule_flag_becomes_its_header(console: Console, server: Server) -> None:
    server.says({"scheduleId": "nightly"})
    result = console(
        *("schedules", "create", "https://example.com//a", "--cron", "0 3 * * *", "--id", "nightly"),
        *("--catch-up", "all", "--overlap", "skip", "--retries", "1"),
    )
    assert result == (0, "nightly\n", "")
    [request] = server.requests
    assert (request.method, request.target) == ("POST", "/v2/schedules/https://example.com//a")
    assert {n: v for n, v in request.headers.items() if n.startswith(("Upstash", "Relay"))} == {
        "Upstash-Cron": "0 3 * * *",
        "Upstash-Schedule-Id": "nightly",
        "Relay-Schedule-Catch-Up": "all",
        "Relay-Schedule-Overlap": "skip",
        "Upstash-Retries": "1",
    }


@pytest.mark.parametrize("header", ["no colon", ": empty", "two words: x", "a\nb: x"])
def test_a_header_that_is_none_is_a_usage_error(console: Console, server: Server, header: str) -> None:
    code, _, err = console("publish", "https://example.com", "-H", header)
    assert code == 2
    assert err.endswith("is not a header such as 'Name: value'\n")
    assert server.requests == []


def test_a_line_break_in_a_header_value_is_a_usage_error(console: Console, server: Server) -> None:
    result = console("publish", "https://example.com", "-H", "a: x\r\nUpstash-Retries: 9")
    assert result == (2, "", "relay: Upstash-Forward-a cannot hold a line break\n")
    assert server.requests == []


def test_a_body_comes_byte_for_byte_from_a_file_or_standard_input(
    console: Console, server: Server, tmp_path: Path
) -> None:
    content = bytes(range(256))
    file = tmp_path / "body"
    file.write_bytes(content)
    server.says({"messageId": "msg_1"})
    console("publish", "https://example.com", "--body", f"@{file}")
    console("publish", "https://example.com", "--body", "-", stdin=content)
    assert [request.body for request in server.requests] == [content, content]


def test_a_body_file_that_cannot_be_read_is_a_usage_error(console: Console, server: Server) -> None:
    result = console("publish", "https://example.com", "--body", "@/nowhere/body")
    assert result == (2, "", "relay: cannot read /nowhere/body: No such file or directory\n")
    assert server.requests == []


def test_filters_become_the_query_of_the_api_and_ages_instants(console: Console, server: Server) -> None:
    server.says({"cancelled": 2})
    result = console(
        *(
            "messages",
            "cancel",
            "--yes",
            "--label",
            "a",
            "--label",
            "b,c",
            "--destination",
            "https://x/?y=z&q",
        ),
        *("--host", "x", "--path", "/", "--schedule", "scd_1", "--since", "10m", "--before", "1m"),
    )
    assert result == (0, "2 cancelled\n", "")
    assert (server.requests[0].method, server.requests[0].path) == ("DELETE", "/v2/messages")
    assert server.requests[0].query == [
        ("url", "https://x/?y=z&q"),
        ("host", "x"),
        ("path", "/"),
        ("label", "a"),
        ("label", "b,c"),
        ("scheduleId", "scd_1"),
        ("fromDate", "1799999400000"),
        ("toDate", "1799999940000"),
    ]


def test_a_limited_cancel_asks_in_the_portions_the_api_takes(console: Console, server: Server) -> None:
    server.answer = lambda request: server.json({"cancelled": int(dict(request.query)["count"])})
    assert console("messages", "cancel", "--all", "--count", "1100", "--yes", "--json").out == (
        '{"cancelled": 1100, "notFound": []}\n'
    )
    assert [dict(request.query)["count"] for request in server.requests] == ["500", "500", "100"]


def test_a_limited_cancel_ends_when_nothing_is_left(console: Console, server: Server) -> None:
    server.says({"cancelled": 30})
    assert console("messages", "cancel", "--label", "x", "--count", "900", "--yes").out == "30 cancelled\n"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("typed", "code", "asked"), [(b"y\n", 0, 1), (b"n\n", 130, 0), (b"\n", 130, 0), (b"", 130, 0)]
)
def test_only_a_yes_lets_a_bulk_command_go_ahead(
    console: Console, server: Server, typed: bytes, code: int, asked: int
) -> None:
    server.says({"cancelled": 1})
    result = console("messages", "cancel", "--all", typed=typed)
    assert (result.code, result.err) == (code, "Cancel every undelivered message? [y/N] ")
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("letters", "more", "flags", "question"),
    [
        (1, False, (), "Delete 1 dead letter?"),
        (3, False, ("--count", "5"), "Delete 3 dead letters?"),
        (100, True, (), "Delete more than 100 dead letters?"),
        (7, True, ("--count", "7"), "Delete 7 dead letters?"),
        (100, True, ("--count", "300"), "Delete up to 300 dead letters?"),
    ],
)
def test_the_question_says_how_many_dead_letters_it_is_about(
    console: Console, server: Server, letters: int, more: bool, flags: tuple[str, ...], question: str
) -> None:
    server.says({"messages": [{}] * letters, **({"cursor": "next"} if more else {})})
    result = console("dlq", "delete", "--all", *flags, typed=b"n\n")
    assert result == (130, "", f"{question} [y/N] ")
    assert [request.method for request in server.requests] == ["GET"]


def test_a_retry_that_was_not_agreed_to_sends_nothing(console: Console, server: Server) -> None:
    server.says({"messages": [a_letter()]})
    assert console("dlq", "retry", "--all", typed=b"no\n") == (130, "", "Send 1 dead letter again? [y/N] ")
    assert [request.method for request in server.requests] == ["GET"]


def test_a_dead_letter_sent_again_is_named_with_its_new_message(console: Console, server: Server) -> None:
    server.answer = lambda request: server.json({"messageId": "msg_9"}, 201)
    assert console("dlq", "retry", "1-0") == (0, "1-0  sent again as msg_9\n", "")


def test_nothing_is_asked_when_there_is_no_dead_letter_to_act_on(console: Console, server: Server) -> None:
    server.says({"messages": []})
    assert console("dlq", "retry", "--label", "x", typed=b"y\n") == (
        4,
        "",
        "relay: there are no such dead letters\n",
    )
    assert [request.method for request in server.requests] == ["GET"]


def answering(server: Server, *answers: Answer) -> None:
    """The newest dead letter to whoever asks for it, and `answers` to what is done with them."""
    remaining = iter(answers)
    newest = server.json({"messages": [a_letter(dlqId="1799999999999-5")], "cursor": "x"})
    server.answer = lambda request: newest if request.method == "GET" else next(remaining)


def test_a_bulk_retry_goes_page_by_page_and_never_beyond_what_had_failed_when_it_began(
    console: Console, server: Server
) -> None:
    first = {"responses": [{"messageId": "msg_1"}] * 100, "cursor": "c"}
    answering(server, server.json(first, 201), server.json({"responses": [{"messageId": "msg_2"}]}, 201))
    code, out, err = console("dlq", "retry", "--label", "x", "--yes")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["sent again as msg_1"] * 100 + ["sent again as msg_2", "101 sent again"]
    assert [request.query for request in server.requests] == [
        [("label", "x"), ("order", "latestFirst"), ("count", "1")],
        [("label", "x"), ("toDate", "1799999999999"), ("count", "100")],
        [("label", "x"), ("toDate", "1799999999999"), ("count", "100"), ("cursor", "c")],
    ]


def test_a_bulk_delete_stops_at_its_count(console: Console, server: Server) -> None:
    answering(
        server, server.json({"deleted": 100, "cursor": "c"}), server.json({"deleted": 20, "cursor": "d"})
    )
    result = console("dlq", "delete", "--before", "1d", "--count", "120", "--yes", "--json")
    assert json.loads(result.out) == {"deleted": 120, "notFound": []}
    assert [request.query for request in server.requests] == [
        [("toDate", "1799913600000"), ("order", "latestFirst"), ("count", "1")],
        [("toDate", "1799999999999"), ("count", "100")],
        [("toDate", "1799999999999"), ("count", "20"), ("cursor", "c")],
    ]


def test_a_bulk_command_that_finds_nothing_changes_nothing(console: Console, server: Server) -> None:
    server.says({"messages": []})
    assert console("dlq", "delete", "--all", "--yes") == (0, "0 deleted\n", "")
    assert [request.method for request in server.requests] == ["GET"]


def test_what_a_bulk_command_did_before_it_failed_is_still_told(console: Console, server: Server) -> None:
    answering(
        server, server.json({"deleted": 100, "cursor": "c"}), server.json({"error": "storage is full"}, 503)
    )
    assert console("dlq", "delete", "--all", "--yes") == (
        1,
        "100 deleted\n",
        "relay: storage is full (503)\n",
    )
