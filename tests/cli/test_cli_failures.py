"""How a command ends when the relay says no, says something strange, or says nothing."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from relay.cli.client import Relay
from relay.cli.outcome import Failure
from tests.cli.console import Answer, Console, Server
from tests.cli.shapes import a_letter


@pytest.fixture
def console(server: Server) -> Console:
    console = Console()
    console.environment = {"QSTASH_URL": server.url, "QSTASH_TOKEN": "a-token"}
    return console


def test_the_reason_of_a_refusal_goes_to_standard_error(console: Console, server: Server) -> None:
    server.answer = lambda request: server.json({"error": "Upstash-Retries: five is not a number"}, 400)
    assert console("publish", "https://example.com") == (
        1,
        "",
        "relay: Upstash-Retries: five is not a number (400)\n",
    )


def test_a_reason_cannot_steer_the_terminal(console: Console, server: Server) -> None:
    server.answer = lambda request: server.json({"error": "\x1b[2Jgone\nrelay: all is well"}, 400)
    assert console("keys", "show").err == "relay: \\x1b[2Jgone\\nrelay: all is well (400)\n"


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[]", b'{"error": 5}', b'{"error": "x"'])
def test_a_refusal_without_a_reason_still_says_who_refused(
    console: Console, server: Server, body: bytes
) -> None:
    server.answer = lambda request: Answer(502, body)
    assert console("keys", "show") == (1, "", f"relay: {server.url} answered 502\n")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"<html>hello</html>", "with something that is not JSON"),
        (b"\xff", "with something that is not JSON"),
        (b"", 'without "current"'),
        (b"[]", "without an object"),
        (b'{"next": "sig_2"}', 'without "current"'),
    ],
)
def test_an_answer_that_no_relay_gives_is_named_as_such(
    console: Console, server: Server, body: bytes, complaint: str
) -> None:
    server.answer = lambda request: Answer(200, body)
    assert console("keys", "show") == (
        1,
        "",
        f"relay: the answer came {complaint}; is it a relay that answered?\n",
    )


@pytest.mark.parametrize(
    "argv",
    [
        ("publish", "https://example.com"),
        ("messages", "get", "msg_1"),
        ("messages", "cancel", "--all", "--yes"),
        ("logs",),
        ("logs", "--follow"),
        ("schedules", "list"),
        ("schedules", "get", "scd_1"),
        ("schedules", "create", "https://example.com", "--cron", "* * * * *"),
        ("queues", "list"),
        ("queues", "get", "q"),
        ("queues", "set", "q"),
        ("url-groups", "list"),
        ("url-groups", "get", "g"),
        ("flow-control", "list"),
        ("flow-control", "get", "k"),
        ("dlq", "list"),
        ("dlq", "get", "1-0"),
        ("dlq", "retry", "1-0"),
        ("dlq", "retry", "--all", "--yes"),
        ("dlq", "delete", "--all", "--yes"),
        ("keys", "rotate", "--yes"),
    ],
    ids=" ".join,
)
def test_no_command_breaks_on_json_of_another_service(
    console: Console, server: Server, argv: tuple[str, ...]
) -> None:
    for body in (b'{"status": "ok"}', b"[1]", b"5", b"null", b""):
        server.answer = lambda request, body=body: Answer(200, body)  # type: ignore[misc]
        code, _, err = console(*argv)
        assert code == 1
        assert "is it a relay that answered?" in err


@contextmanager
def a_listener(first_words: bytes | None) -> Iterator[str]:
    """Takes one connection, says something or waits until the other side has had enough."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if first_words is None:
                    connection.recv(1)
                else:
                    connection.sendall(first_words)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_nobody_listening_is_told_apart_from_a_refusal(console: Console) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, out, err = console("schedules", "list", "--url", f"http://127.0.0.1:{port}")
    assert (code, out, err) == (3, "", f"relay: cannot reach http://127.0.0.1:{port}: Connection refused\n")


def test_an_answer_that_breaks_off_is_no_answer(console: Console) -> None:
    with a_listener(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{") as address:
        code, out, err = console("schedules", "list", "--url", f"http://{address}")
    assert (code, out) == (3, "")
    assert err == f"relay: cannot reach http://{address}: it closed the connection before it had answered\n"


def test_an_unknown_host_is_unreachable(console: Console) -> None:
    code, _, err = console("schedules", "list", "--url", "http://relay.invalid")
    assert (code, err) == (3, "relay: cannot reach http://relay.invalid: its host name is not known\n")


def test_a_host_label_that_no_name_can_have_is_unreachable(console: Console) -> None:
    url = f"http://{'a' * 64}.example"
    code, _, err = console("schedules", "list", "--url", url)
    assert (code, err) == (3, f"relay: cannot reach {url}: its host name is not known\n")


def test_a_connection_closed_without_an_answer_is_unreachable(console: Console, server: Server) -> None:
    server.answer = lambda request: None
    code, _, err = console("publish", "https://example.com")
    assert (code, err) == (
        3,
        f"relay: cannot reach {server.url}: it closed the connection before it had answered\n",
    )
    # A publish may have been accepted all the same: it is not sent a second time.
    assert len(server.requests) == 1


def test_a_server_that_speaks_no_http_is_unreachable(console: Console) -> None:
    with a_listener(b"220 mail ready\r\n\r\n") as address:
        code, _, err = console("schedules", "list", "--url", f"http://{address}")
    assert (code, err) == (3, f"relay: cannot reach http://{address}: it does not speak HTTP\n")


def test_a_server_that_speaks_no_tls_is_unreachable_by_https(console: Console) -> None:
    with a_listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        code, _, err = console("schedules", "list", "--url", f"https://{address}")
    assert code == 3
    assert err.startswith(f"relay: cannot reach https://{address}: it does not speak TLS as expected; ")
    assert err.endswith(" does its URL begin with http:// and not https://?\n")


def test_a_server_that_never_answers_is_given_up() -> None:
    with a_listener(None) as address:
        relay = Relay(f"http://{address}", "a-token", timeout_s=0.05)
        with pytest.raises(Failure, match=r"no answer within 0\.05 s$") as failure:
            relay.get("/v2/keys")
    assert failure.value.code == 3


def test_a_read_survives_a_kept_connection_that_has_died(console: Console, server: Server) -> None:
    """An idle connection may be closed at the very moment the next request is sent over it."""
    answers = iter(
        [server.json({"messages": [a_letter()] * 100, "cursor": "c"}), None, server.json({"messages": []})]
    )
    server.answer = lambda request: next(answers)
    result = console("dlq", "list", "--count", "200", "--json")
    assert (result.code, len(json.loads(result.out))) == (0, 100)
    assert len(server.requests) == 3


def test_something_missing_does_not_keep_the_others_from_being_done(console: Console, server: Server) -> None:
    def answer(request: object) -> Answer:
        missing = server.requests[-1].path.endswith("msg_2")
        return (
            server.json({"error": "message msg_2 not found"}, 404)
            if missing
            else server.json({"cancelled": 1})
        )

    server.answer = answer
    people = console("messages", "cancel", "msg_1", "msg_2", "msg_3")
    assert people == (4, "msg_1  cancelled\nmsg_3  cancelled\n", "relay: message msg_2 not found (404)\n")
    programs = console("messages", "cancel", "msg_1", "msg_2", "msg_3", "--json")
    assert (programs.code, json.loads(programs.out)) == (4, {"cancelled": 2, "notFound": ["msg_2"]})
    assert [request.path for request in server.requests[:3]] == [f"/v2/messages/msg_{n}" for n in (1, 2, 3)]


def test_a_failure_midway_tells_what_was_done_before_it(console: Console, server: Server) -> None:
    answers = iter([server.json({"messageId": "msg_9"}, 201), server.json({"error": "storage is full"}, 503)])
    server.answer = lambda request: next(answers)
    result = console("dlq", "retry", "1-0", "1-1", "1-2", "--json")
    assert (result.code, result.err) == (1, "relay: storage is full (503)\n")
    assert json.loads(result.out) == {"responses": [{"messageId": "msg_9"}], "notFound": []}
    assert [request.path for request in server.requests] == ["/v2/dlq/retry/1-0", "/v2/dlq/retry/1-1"]
