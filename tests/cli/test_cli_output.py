"""What people and programs read: tables, details, log lines and JSON."""

import doctest
import json
import re
from base64 import b64encode
from typing import Any

import pytest

import relay.cli.output
from relay.cli.output import printable, relative
from signing import PrivateKey, webhook_secret
from tests.cli.console import NOW, Answer, Console, Request, Server
from tests.cli.shapes import a_letter, a_message, a_schedule, an_entry


@pytest.fixture
def console(server: Server) -> Console:
    console = Console()
    console.environment = {"QSTASH_URL": server.url, "QSTASH_TOKEN": "a-token"}
    return console


def test_the_examples_of_the_output_rules_hold() -> None:
    assert doctest.testmod(relay.cli.output).failed == 0


@pytest.mark.parametrize(
    ("distance_s", "words"),
    [
        (0, "now"),
        (1, "in 1 s"),
        (0.49, "now"),
        (1.98, "in 2 s"),
        (59, "in 59 s"),
        (59.9, "in 1 m"),
        (60, "in 1 m"),
        (89, "in 1 m"),
        (90, "in 2 m"),
        (3_599, "in 60 m"),
        (3_599.7, "in 1 h"),
        (3_600, "in 1 h"),
        (172_799, "in 48 h"),
        (172_800, "in 2 d"),
        (-5, "5 s ago"),
        (-86_400 * 400, "400 d ago"),
    ],
)
def test_a_time_is_told_from_now_in_its_largest_useful_unit(distance_s: float, words: str) -> None:
    assert relative(NOW + int(distance_s * 1000), NOW) == words


@pytest.mark.parametrize("text", ["\x1b[31m", "\r", "\x9b2J", "\u202e", "\ud800", "a\tb"])
def test_nothing_printable_can_move_a_cursor_or_turn_the_text(text: str) -> None:
    assert printable(text).isprintable()


def test_a_table_for_a_pipe_is_aligned_and_whole(console: Console, server: Server) -> None:
    server.says(
        [
            a_schedule(nextScheduleTime=NOW + 300_000, lastScheduleTime=NOW - 3_000),
            a_schedule(
                scheduleId="a-much-longer-id", isPaused=True, destination="https://example.com/" + "x" * 200
            ),
            a_schedule(scheduleId="c", error="no such\nthing"),
        ]
    )
    code, out, err = console("schedules", "list")
    assert (code, err) == (0, "")
    header, first, second, third = out.splitlines()
    columns = ("SCHEDULE", "CRON", "STATE", "LAST RUN", "NEXT RUN", "DESTINATION")
    starts = [header.index(column) for column in columns]
    ends = [*starts[1:], None]
    cells = [
        [line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in (first, second, third)
    ]
    assert cells == [
        [
            "scd_1",
            "0 9 * * *",
            "active",
            "2027-01-15T08:59:57+01:00 (3 s ago)",
            "2027-01-15T09:05:00+01:00 (in 5 m)",
            "https://example.com/report",
        ],
        ["a-much-longer-id", "0 9 * * *", "paused", "", "", "https://example.com/" + "x" * 200],
        ["c", "0 9 * * *", "failing", "", "", "https://example.com/report"],
    ]


def test_an_empty_table_says_so_on_a_terminal(console: Console, server: Server) -> None:
    server.says([])
    assert console("schedules", "list", terminal=True) == (0, "", "relay: there are none\n")


@pytest.mark.parametrize("id", ["tour", "i" * 256])
def test_a_table_on_a_terminal_stays_within_it_and_says_where_it_cut(
    console: Console, server: Server, id: str
) -> None:
    server.says([a_schedule(scheduleId=id, destination="https://example.com/[bold]" + "x" * 300)])
    out = console("schedules", "list", terminal=True).out
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert max(map(len, lines)) <= 80
    [row] = [line for line in lines if "https://" in line]
    assert "…" in row
    assert "0 9 * * *" in row
    assert ("tour" in row) == (id == "tour")
    assert json.loads(console("schedules", "list", "--json").out)[0]["scheduleId"] == id


def test_ids_stay_whole_on_a_terminal_next_to_a_long_url(console: Console, server: Server) -> None:
    url = "https://example.com/[bold]" + "x" * 300
    server.says({"messages": [a_letter(dlqId="1800000000000-1048575", url=url)]})
    out = console("dlq", "list", terminal=True).out
    assert "1800000000000-1048575" in out
    assert "[bold]" in out


def test_dead_letters_are_listed_with_when_and_why_they_failed(console: Console, server: Server) -> None:
    answered = a_letter(dlqId=f"{NOW - 60_000}-7")
    silent = a_letter(dlqId=f"{NOW}-1", responseStatus=0, error="refused\nit")
    cut = a_letter(dlqId=f"{NOW}-0", responseStatus=200, error="the body ended early")
    server.says({"messages": [answered, silent, cut]})
    header, *rows = console("dlq", "list").out.splitlines()
    start, end = header.index("FAILED"), header.index("DESTINATION")
    assert [re.split("  +", row[start:end].strip()) for row in rows] == [
        ["2027-01-15T08:59:00+01:00 (1 m ago)", "answered 500"],
        ["2027-01-15T09:00:00+01:00 (now)", "refused\\nit"],
        ["2027-01-15T09:00:00+01:00 (now)", "answered 200, the body ended early"],
    ]
    assert "1 m ago" in console("dlq", "list", terminal=True).out


def test_a_list_for_programs_is_one_array_of_what_the_api_said(console: Console, server: Server) -> None:
    letters = [a_letter(label="grüße"), a_letter(messageId="msg_2")]
    server.says({"messages": letters})
    code, out, err = console("dlq", "list", "--json")
    assert (code, err) == (0, "")
    assert out.isascii()
    assert json.loads(out) == letters


def test_a_list_that_was_cut_says_so_beside_the_output(console: Console, server: Server) -> None:
    server.says({"messages": [a_letter()], "cursor": "c"})
    code, out, err = console("dlq", "list", "--count", "1", "--json")
    assert (code, len(json.loads(out))) == (0, 1)
    assert err == "relay: there are more; --count shows more than 1\n"


def test_a_list_longer_than_a_page_is_gathered_with_the_cursor(console: Console, server: Server) -> None:
    pages = iter([{"messages": [a_letter()] * 100, "cursor": "next"}, {"messages": [a_letter()] * 20}])
    server.answer = lambda request: server.json(next(pages))
    assert len(json.loads(console("dlq", "list", "--count", "120", "--json").out)) == 120
    assert [request.query for request in server.requests] == [
        [("order", "latestFirst"), ("count", "100")],
        [("order", "latestFirst"), ("count", "20"), ("cursor", "next")],
    ]


def test_a_message_is_shown_with_everything_that_was_set(console: Console, server: Server) -> None:
    standing_at(
        server,
        a_message(
            notBefore=NOW + 60_000,
            header={"X-A": ["1"], "X-B": ["\x1b]0;title\x07"]},
            topicName="orders",
            endpointName="billing",
            callback="https://example.com/told",
            failureCallback="https://example.com/failed",
            sourceMessageId="msg_0",
            labels=["a", "b"],
            scheduleId="scd_9",
            retryDelayExpression="1000 * retried",
            callerIP="10.0.0.7",
            body="first\n\x1b[2Jsecond",
        ),
        an_entry(nextDeliveryTime=NOW + 60_000),
    )
    code, out, err = console("messages", "get", "msg_1")
    assert (code, err) == (0, "")
    assert out == (
        "message       msg_1\n"
        "destination   POST https://example.com/hook\n"
        "published     2027-01-15T09:00:00+01:00 (now)\n"
        "not before    2027-01-15T09:01:00+01:00 (in 1 m)\n"
        "state         CREATED, since 2027-01-15T09:00:00+01:00 (now)\n"
        "next attempt  2027-01-15T09:01:00+01:00 (in 1 m)\n"
        "retries       3\n"
        "retry delay   1000 * retried\n"
        "labels        a, b\n"
        "url group     orders (endpoint billing)\n"
        "callback      https://example.com/told\n"
        "on failure    https://example.com/failed\n"
        "callback of   msg_0\n"
        "from          10.0.0.7\n"
        "schedule      scd_9\n"
        "header        X-A: 1\n"
        "header        X-B: \\x1b]0;title\\x07\n"
        "\n"
        "body:\n"
        "first\n"
        "\\x1b[2Jsecond\n"
    )


def standing_at(
    server: Server, message: dict[str, Any], *latest: dict[str, Any], **others: dict[str, Any]
) -> None:
    """A relay that knows one message and the latest entries of its log; `others` by the first part of the path."""

    def answer(request: Request) -> Answer:
        kind = request.path.split("/")[2]
        known = {"messages": message, "events": {"events": list(latest)}, **others}
        return server.json(known[kind]) if kind in known else server.json({"error": "not found"}, 404)

    server.answer = answer


def rows_of(out: str) -> dict[str, str]:
    """What is shown by name; of a name that comes twice the last value, and of a body nothing."""
    return dict(re.findall("^([a-z ]+?)  +(.*)$", out, re.MULTILINE))


def test_a_message_that_waits_to_be_retried_says_until_when_and_why(console: Console, server: Server) -> None:
    standing_at(
        server,
        a_message(),
        an_entry(state="RETRY", time=NOW - 3_000, nextDeliveryTime=NOW + 9_000),
        an_entry(state="ERROR", time=NOW - 3_000, error="refused"),
    )
    rows = rows_of(console("messages", "get", "msg_1").out)
    assert rows["state"] == "RETRY, since 2027-01-15T08:59:57+01:00 (3 s ago)"
    assert rows["last error"] == "refused"
    assert rows["next attempt"] == "2027-01-15T09:00:09+01:00 (in 9 s)"
    assert "waits for" not in rows


def test_a_failed_message_names_its_dead_letter(console: Console, server: Server) -> None:
    failed = an_entry(state="FAILED"), an_entry(state="ERROR", error="refused")
    standing_at(server, a_message(), *failed, dlq={"messages": [a_letter()]})
    rows = rows_of(console("messages", "get", "msg_1").out)
    assert (rows["dead letter"], rows["last error"]) == ("1800000000000-0", "refused")
    standing_at(server, a_message(), *failed, dlq={"messages": []})
    rows = rows_of(console("messages", "get", "msg_1").out)
    assert rows["dead letter"] == "none any more: sent again, deleted or forgotten"


@pytest.mark.parametrize(
    ("state", "due_in_ms", "queue", "key", "reasons"),
    [
        ("CREATED", 0, {"paused": True}, {}, ["queue q, which is paused: relay queues resume q"]),
        ("RETRY", 9, {"paused": True}, {}, ["queue q, which is paused: relay queues resume q"]),
        ("CREATED", 0, {"lag": 3}, {}, ["its turn in queue q: 3 unfinished, 2 at a time"]),
        ("RETRY", 0, {"lag": 3}, {}, []),
        ("CREATED", 0, {"lag": 2}, {}, []),
        ("CREATED", 9, {}, {"isPaused": True}, ["flow key k, which is paused: relay flow-control resume k"]),
        ("RETRY", 0, {}, {"waitListSize": 4}, ["its turn at flow key k: 4 waiting"]),
        ("RETRY", 9, {}, {"waitListSize": 4}, []),
        ("ACTIVE", 0, {"paused": True}, {"isPaused": True}, []),
    ],
)
def test_a_message_names_the_gate_it_waits_at(
    console: Console,
    server: Server,
    state: str,
    due_in_ms: int,
    queue: dict[str, Any],
    key: dict[str, Any],
    reasons: list[str],
) -> None:
    entry = an_entry(state=state, time=NOW - 1000, nextDeliveryTime=NOW + due_in_ms)
    standing_at(
        server,
        a_message(queueName="q", flowControlKey="k"),
        entry,
        queues={"paused": False, "lag": 1, "parallelism": 2, **queue},
        flowControl={"isPaused": False, "waitListSize": 0, **key},
    )
    out = console("messages", "get", "msg_1").out
    assert re.findall("^waits for +(.*)$", out, re.MULTILINE) == reasons


def test_a_gate_that_is_gone_keeps_no_message_from_being_shown(console: Console, server: Server) -> None:
    standing_at(server, a_message(queueName="q", flowControlKey="k"), an_entry())
    result = console("messages", "get", "msg_1")
    assert (result.code, result.err) == (0, "")
    assert rows_of(result.out)["next attempt"] == "as soon as it can be made"


def test_a_message_whose_log_is_gone_is_shown_all_the_same(console: Console, server: Server) -> None:
    standing_at(server, a_message())
    assert "state" not in rows_of(console("messages", "get", "msg_1").out)


def test_several_messages_for_programs_are_one_array(console: Console, server: Server) -> None:
    server.says(a_message())
    assert json.loads(console("messages", "get", "msg_1", "--json").out) == [a_message()]
    assert json.loads(console("messages", "get", "msg_1", "msg_1", "--json").out) == [a_message()] * 2


@pytest.mark.parametrize(
    ("command", "shape"), [("messages", a_message()), ("dlq", a_letter()), ("schedules", a_schedule())]
)
def test_several_things_are_shown_with_a_line_between_them(
    console: Console, server: Server, command: str, shape: dict[str, Any]
) -> None:
    standing_at(server, shape, dlq=shape, schedules=shape)
    one, two = console(command, "get", "a").out, console(command, "get", "a", "b").out
    assert two == f"{one}\n{one}"
    assert len(json.loads(console(command, "get", "a", "b", "--json").out)) == 2


def test_a_dead_letter_is_shown_with_its_last_answer(console: Console, server: Server) -> None:
    body = b64encode(b"\xff\xfe").decode()
    letter = a_letter(
        bodyBase64=body, responseHeader={"Server": ["x"]}, responseBody="out of order", timeout=30
    )
    server.says(letter)
    out = console("dlq", "get", "1800000000000-0").out
    assert "dead letter    1800000000000-0\n" in out
    assert "failed         2027-01-15T09:00:00+01:00 (now)\n" in out
    assert "timeout        30 s\n" in out
    assert "last error" not in out
    assert "last answer    500\n" in out
    assert "answer header  Server: x\n" in out
    assert "\nbody: 2 bytes that are not text; --json shows them in base64\n" in out
    assert "send it again  relay dlq retry 1800000000000-0\n" in out
    assert out.endswith("\nlast answer's body:\nout of order\n")


@pytest.mark.parametrize(
    ("fields", "tries", "explained"),
    [
        ({"retried": 3}, "4 of 4", None),
        ({"maxRetries": 0}, "1 of 1", None),
        ({"responseStatus": 489}, "1 of 4", "with Upstash-NonRetryable-Error: not to be tried again"),
        ({"responseStatus": 489, "retried": 3}, "4 of 4", None),
        ({"responseStatus": 302, "maxRetries": 0}, "1 of 1", "redirects are not followed"),
        ({"responseStatus": 304, "maxRetries": 0}, "1 of 1", None),
    ],
)
def test_a_dead_letter_says_how_often_it_was_tried_and_what_its_status_means(
    console: Console, server: Server, fields: dict[str, Any], tries: str, explained: str | None
) -> None:
    server.says(a_letter(**fields))
    rows = rows_of(console("dlq", "get", "1800000000000-0").out)
    assert (rows["tries"], rows.get("last error")) == (tries, explained)
    server.says({"messages": [a_letter(**fields)]})
    assert explained is None or explained in console("dlq", "list").out


def test_a_list_of_dead_letters_says_what_can_be_done_with_one(console: Console, server: Server) -> None:
    server.says({"messages": [a_letter()]})
    assert console("dlq", "list").err == (
        "relay: `relay dlq get ID` shows all of one, `relay dlq retry ID` sends it again\n"
    )
    server.says({"messages": []})
    assert console("dlq", "list").err == ""


def test_a_dead_letter_without_any_answer_says_why(console: Console, server: Server) -> None:
    server.says(a_letter(responseStatus=0, error="refused the connection"))
    out = console("dlq", "get", "1800000000000-0").out
    assert "last answer    none\nlast error     refused the connection\n" in out
    assert len(server.requests) == 1


def test_a_schedule_is_shown_with_its_runs(console: Console, server: Server) -> None:
    server.says(
        a_schedule(
            lastScheduleTime=NOW - 60_000,
            lastScheduleStates={"msg_7": "SUCCESS", "msg_8": "FAIL"},
            delay=90,
            error="the group is gone",
        )
    )
    out = console("schedules", "get", "scd_1").out
    assert "state        failing\n" in out
    last_run = "last run     2027-01-15T08:59:00+01:00 (1 m ago)"
    assert f"{last_run}\n             msg_7 SUCCESS\n             msg_8 FAIL\n" in out
    assert "delay        90 s\n" in out
    assert "retries      3\n" in out
    assert "error        the group is gone\n" in out


def entry_lines(
    console: Console, server: Server, *entries: dict[str, Any], terminal: bool = False
) -> list[str]:
    server.says({"events": list(entries)})
    return console("logs", terminal=terminal).out.splitlines()


def test_a_log_reads_downwards_in_time(console: Console, server: Server) -> None:
    latest_first = [an_entry(state="ACTIVE", time=NOW + 5), an_entry()]
    assert entry_lines(console, server, *latest_first) == [
        "2027-01-15T09:00:00.000+01:00  CREATED           msg_1  https://example.com/hook",
        "2027-01-15T09:00:00.005+01:00  ACTIVE            msg_1  https://example.com/hook",
    ]
    assert json.loads(console("logs", "--json").out) == latest_first[::-1]


def test_a_log_that_goes_further_back_says_so_unless_that_was_asked_for(
    console: Console, server: Server
) -> None:
    server.says({"events": [an_entry()] * 50, "cursor": "c"})
    assert console("logs").err == "relay: these are the latest 50; --count shows more\n"
    assert console("logs", "--count", "20").err == ""


def test_a_log_line_says_why_and_what_comes_next(console: Console, server: Server) -> None:
    [line] = entry_lines(
        console,
        server,
        an_entry(state="RETRY", responseStatus=503, error="too\nbusy", nextDeliveryTime=NOW + 12_000),
    )
    assert line.endswith("  answered 503, too\\nbusy, next attempt in 12 s")


def test_a_log_line_about_an_attempt_whose_time_has_come_says_since_when(
    console: Console, server: Server
) -> None:
    [line] = entry_lines(
        console, server, an_entry(state="RETRY", time=NOW - 90_000, nextDeliveryTime=NOW - 78_000)
    )
    assert line.endswith("  next attempt was due 1 m ago")


def test_only_the_latest_line_of_a_message_judges_when_the_next_attempt_is(
    console: Console, server: Server
) -> None:
    entries = [
        an_entry(state="RETRY", time=NOW - 1_000, nextDeliveryTime=NOW + 9_000),
        an_entry(state="RETRY", messageId="msg_2", time=NOW - 1_000, nextDeliveryTime=NOW + 9_000),
        an_entry(state="RETRY", time=NOW - 20_000, nextDeliveryTime=NOW - 8_000),
    ]
    planned = "  next attempt planned for 2027-01-15T08:59:52+01:00"
    assert [line.partition("hook")[2] for line in entry_lines(console, server, *entries)] == [
        planned,
        "  next attempt in 9 s",
        "  next attempt in 9 s",
    ]
    # A filter may hide what came later.
    assert console("logs", "--state", "RETRY").out.splitlines()[0].endswith(planned)
    assert "in 9 s" not in console("logs", "--state", "RETRY").out


def test_a_status_is_told_once(console: Console, server: Server) -> None:
    said = an_entry(state="ERROR", responseStatus=500, error="the destination answered with status 500")
    [line] = entry_lines(console, server, said)
    assert line.endswith("hook  answered 500")


def test_a_log_of_nothing_says_so_beside_the_output(console: Console, server: Server) -> None:
    server.says({"events": []})
    assert console("logs") == (0, "", "relay: there is nothing in the log\n")
    assert console("logs", "--label", "x") == (0, "", "relay: there is nothing in the log that matches\n")
    assert console("logs", "--count", "0") == (0, "", "")
    assert console("logs", "--json") == (0, "[]\n", "")


def test_states_are_coloured_on_a_terminal_only_and_not_against_no_color(
    console: Console, server: Server
) -> None:
    failed = an_entry(state="FAILED")
    [coloured] = entry_lines(console, server, failed, terminal=True)
    assert "\x1b[31mFAILED" in coloured
    [plain] = entry_lines(console, server, failed)
    assert "\x1b" not in plain
    console.environment["NO_COLOR"] = "1"
    assert entry_lines(console, server, failed, terminal=True) == [plain]


def test_the_keys_are_printed_as_lines_for_an_environment(console: Console, server: Server) -> None:
    current, next_ = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
    server.says({"current": current, "next": next_})
    public = [PrivateKey.derived(key).public for key in (current, next_)]
    assert console("keys", "show").out.splitlines() == [
        f"QSTASH_CURRENT_SIGNING_KEY={current}",
        f"QSTASH_NEXT_SIGNING_KEY={next_}",
        f"WEBHOOK_CURRENT_SECRET={webhook_secret(current)}",
        f"WEBHOOK_NEXT_SECRET={webhook_secret(next_)}",
        f"WEBHOOK_CURRENT_PUBLIC_KEY={public[0]}",
        f"WEBHOOK_NEXT_PUBLIC_KEY={public[1]}",
    ]
    assert json.loads(console("keys", "rotate", "--yes", "--json").out) == {
        "current": current,
        "next": next_,
        "standard": {
            "current": {"secret": webhook_secret(current), "publicKey": public[0]},
            "next": {"secret": webhook_secret(next_), "publicKey": public[1]},
        },
    }
    assert [(r.method, r.target) for r in server.requests] == [
        ("GET", "/v2/keys"),
        ("POST", "/v2/keys/rotate"),
    ]


def test_a_rotation_asks_first_and_says_what_must_come_before_the_next(
    console: Console, server: Server
) -> None:
    server.says({"current": "sig_1", "next": "sig_2"})
    question = "Retire the current key? Receivers must know the next one. [y/N] "
    assert console("keys", "rotate", typed=b"n\n") == (130, "", question)
    assert server.requests == []
    agreed = console("keys", "rotate", typed=b"y\n")
    assert (agreed.code, agreed.out.splitlines()[0]) == (0, "QSTASH_CURRENT_SIGNING_KEY=sig_1")
    assert agreed.err == f"{question}relay: give receivers this pair before you rotate again\n"
    assert console("keys", "show").err == ""


def test_a_key_without_a_public_key_is_printed_with_the_reason(console: Console, server: Server) -> None:
    server.says({"current": "sig_1", "next": "sig_2"})
    lines = console("keys", "show").out.splitlines()
    assert lines[2] == f"WEBHOOK_CURRENT_SECRET={webhook_secret('sig_1')}"
    assert lines[4].startswith("# WEBHOOK_CURRENT_PUBLIC_KEY: A signing key of fewer than 32 characters")


def test_a_duplicate_is_told_apart_from_a_new_message(console: Console, server: Server) -> None:
    server.says({"messageId": "msg_1", "deduplicated": True})
    assert console("publish", "https://example.com").out == "msg_1  already accepted: nothing new was sent\n"


def test_a_publish_to_a_url_group_names_every_message(console: Console, server: Server) -> None:
    answer = [
        {"messageId": "msg_1", "url": "https://a.example"},
        {"messageId": "msg_2", "deduplicated": True},
    ]
    server.says(answer)
    assert console("publish", "group").out == "msg_1\nmsg_2  already accepted: nothing new was sent\n"
    assert json.loads(console("publish", "group", "--json").out) == answer
    assert server.requests[0].target == "/v2/publish/group"
