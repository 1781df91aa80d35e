"""`relay schedules`: messages that are sent again and again."""

import argparse
from collections.abc import Callable

from relay.cli.client import destination, segment
from relay.cli.commands import TALK_TO_A_RELAY, Commands
from relay.cli.document import Document
from relay.cli.each import change_each, each
from relay.cli.options import (
    add_connection,
    add_message,
    identifier,
    message_body,
    message_headers,
    opened,
)
from relay.cli.outcome import OK
from relay.cli.shell import Shell
from relay.cli.show import schedule_state, show_schedule


def register(commands: Commands) -> None:
    actions = Commands(
        commands.add("schedules", "send messages again and again", group=TALK_TO_A_RELAY), "ACTION"
    )
    add_connection(actions.add("list", "list all schedules", _list))
    create = actions.add(
        "create",
        "create a schedule, or replace the one with the same id",
        _create,
        details="example:\n"
        "  relay schedules create https://example.com/report --id report \\\n"
        "    --cron 'CRON_TZ=Europe/Berlin 0 9 * * mon-fri'",
    )
    create.add_argument(
        "destination", metavar="URL", help="where the messages go, or the name of a URL group"
    )
    create.add_argument(
        "--cron", required=True, metavar="EXPR", help="when: five fields, in UTC unless CRON_TZ says"
    )
    create.add_argument("--id", type=identifier, help="the schedule's id (default: a new one)")
    create.add_argument(
        "--catch-up", metavar="WHICH", help="missed runs made up for: last (default), none or all"
    )
    create.add_argument(
        "--overlap", metavar="RULE", help="while an earlier run is unfinished: allow (default) or skip"
    )
    add_message(create)
    add_connection(create)
    get = actions.add("get", "show schedules", _get)
    get.add_argument("ids", nargs="+", type=identifier, metavar="ID")
    add_connection(get)
    for name, summary, past, method, suffix in (
        (
            "pause",
            "stop sending until resumed; runs in between are not made up for",
            "paused",
            "PATCH",
            "/pause",
        ),
        ("resume", "send again from the next run on", "resumed", "PATCH", "/resume"),
        ("delete", "end schedules; messages already made go on", "deleted", "DELETE", ""),
    ):
        parser = actions.add(name, summary, _changing(past, method, suffix))
        parser.add_argument("ids", nargs="+", type=identifier, metavar="ID")
        add_connection(parser)


def _list(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        schedules = relay.array("/v2/schedules")
        output.document(schedules)
        output.table(
            ("schedule", "cron", "state", "last run", "next run", "destination"),
            [
                (
                    schedule["scheduleId"],
                    schedule["cron"],
                    schedule_state(schedule),
                    output.when(schedule.get("lastScheduleTime")),
                    output.when(schedule.get("nextScheduleTime")),
                    schedule["destination"],
                )
                for schedule in schedules
            ],
        )
        return OK


def _create(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        given = [
            ("Upstash-Cron", args.cron),
            ("Upstash-Schedule-Id", args.id),
            ("Relay-Schedule-Catch-Up", args.catch_up),
            ("Relay-Schedule-Overlap", args.overlap),
            ("Upstash-Queue-Name", args.queue),
        ]
        document = relay.call(
            "POST",
            "/v2/schedules/" + destination(args.destination),
            headers=[(name, value) for name, value in given if value is not None] + message_headers(args),
            body=message_body(args, shell),
        )
        output.document(document)
        output.line(document["scheduleId"])
        return OK


def _get(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        documents: list[Document] = []

        def get(id: str) -> None:
            document = relay.get(f"/v2/schedules/{segment(id)}")
            if documents:
                output.line("")
            show_schedule(output, document)
            documents.append(document)

        return each(args.ids, get, output, lambda missing: documents)


def _changing(past: str, method: str, suffix: str) -> Callable[[argparse.Namespace, Shell], int]:
    """The command that sends one request for every id; `past` says what has happened to them then."""

    def change(args: argparse.Namespace, shell: Shell) -> int:
        with opened(args, shell) as (relay, output):
            return change_each(
                args.ids, past, lambda id: relay.act(method, f"/v2/schedules/{segment(id)}{suffix}"), output
            )

    return change
