"""Drafts out of headers, with only the relevant argument named."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from relay.domain.publish import Draft
from relay.domain.tenant import Limits
from relay.wire.headers import NOT_OFFERED, ScheduleRequest, parse_draft, parse_schedule
from tests.builders import NOW

LIMITS = Limits()

Given = Mapping[str, str] | Iterable[tuple[str, str]]


def all_addresses(address: str) -> None:
    """No address is refused."""


def pairs(headers: Given) -> Iterable[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else headers


def draft_of(
    headers: Given,
    *,
    url: str = "https://example.com/hook",
    body: bytes = b"hello",
    caller_ip: str | None = None,
    limits: Limits = LIMITS,
    config: Sequence[tuple[str, str]] = (),
    authorization_is_ours: bool = True,
    not_offered: Collection[str] = NOT_OFFERED,
) -> Draft:
    return parse_draft(
        pairs(headers),
        to=url,
        body=body,
        caller_ip=caller_ip,
        now=NOW,
        limits=limits,
        refusal=all_addresses,
        config=config,
        authorization_is_ours=authorization_is_ours,
        not_offered=not_offered,
    )


def schedule_of(
    headers: Given,
    *,
    limits: Limits = LIMITS,
    config: Sequence[tuple[str, str]] = (),
    not_offered: Collection[str] = NOT_OFFERED,
) -> ScheduleRequest:
    return parse_schedule(
        pairs(headers),
        to="https://example.com/hook",
        body=b"tick",
        caller_ip=None,
        now=NOW,
        limits=limits,
        refusal=all_addresses,
        config=config,
        not_offered=not_offered,
    )
