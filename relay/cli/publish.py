"""`relay publish`: hand one message to the relay."""

import argparse

from relay.cli.client import destination, segment
from relay.cli.commands import TALK_TO_A_RELAY, Commands
from relay.cli.options import add_connection, add_message, message_body, message_headers, opened
from relay.cli.outcome import OK
from relay.cli.shell import Shell


def register(commands: Commands) -> None:
    parser = commands.add(
        "publish",
        "send a message to a URL or a URL group, now or later",
        _publish,
        group=TALK_TO_A_RELAY,
        details="examples:\n"
        "  relay publish https://example.com/hook --body '{\"order\": 1}' --content-type application/json\n"
        "  relay publish https://example.com/hook --body @report.pdf --delay 1h --retries 10 --label reports",
    )
    parser.add_argument(
        "destination", metavar="URL", help="where the message goes, or the name of a URL group"
    )
    add_message(parser)
    parser.add_argument("--not-before", metavar="UNIX", help="the earliest first attempt, in Unix seconds")
    parser.add_argument("--deduplication-id", metavar="ID", help="accept only the first message with this id")
    parser.add_argument(
        "--content-deduplication",
        action="store_true",
        help="accept only the first message of the same content",
    )
    add_connection(parser)


def _publish(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        headers = message_headers(args)
        if args.not_before is not None:
            headers.append(("Upstash-Not-Before", args.not_before))
        if args.deduplication_id is not None:
            headers.append(("Upstash-Deduplication-Id", args.deduplication_id))
        if args.content_deduplication:
            headers.append(("Upstash-Content-Based-Deduplication", "true"))
        door = "publish" if args.queue is None else f"enqueue/{segment(args.queue)}"
        answer = relay.publish(
            f"/v2/{door}/{destination(args.destination)}", headers=headers, body=message_body(args, shell)
        )
        output.document(answer)
        for published in answer if isinstance(answer, list) else [answer]:
            note = "  already accepted: nothing new was sent" if published.get("deduplicated") else ""
            output.line(f"{published['messageId']}{note}")
        return OK
