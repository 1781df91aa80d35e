"""Tokens: how they are shown, whom they speak for, and what a read-only one may not do."""

import asyncio
from urllib.parse import quote

import pytest

from relay.api.app import ROUTES, Access, Route
from relay.api.auth import token_hash
from relay.domain.message import TenantId
from relay.domain.tenant import Principal, TenantLimits, Token
from tests.api.rig import DISABLED, FOREIGN, READ_ONLY, TOKEN, Rig
from tests.builders import OTHER_TENANT, TENANT


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer unknown",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff\xfe",
    ],
)
async def test_without_a_valid_token_nothing_is_answered(rig: Rig, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = await rig.call("GET", "/v2/keys", headers=headers, token=None)
    assert reply.status == 401
    assert "token" in reply.error
    assert reply.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_read_without_case(rig: Rig, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert (await rig.call("GET", "/v2/keys", headers=headers, token=None)).status == 200


@pytest.mark.parametrize(
    "query", [f"qstash_token={TOKEN}", f"a=b&qstash_token={quote(TOKEN, safe='')}", f"&qstash_token={TOKEN}&"]
)
async def test_a_token_may_come_in_the_query(rig: Rig, query: str) -> None:
    assert (await rig.call("GET", f"/v2/keys?{query}", token=None)).status == 200


@pytest.mark.parametrize(
    "query",
    ["qstash_token", "qstash_token=", "qstash_token=unknown", "qstash_token=%ff%fe", "qstash_token=%zz"],
)
async def test_a_query_without_a_valid_token_does_not_admit(rig: Rig, query: str) -> None:
    assert (await rig.call("GET", f"/v2/keys?{query}", token=None)).status == 401


async def test_a_senders_own_authorization_does_not_spoil_the_querys_token(rig: Rig) -> None:
    reply = await rig.call("GET", f"/v2/keys?qstash_token={TOKEN}", token="of-something-else")
    assert reply.status == 200


async def test_the_headers_identity_wins_when_both_are_valid(rig: Rig) -> None:
    message_id = await rig.publish(token=FOREIGN)
    target = f"/v2/messages/{message_id}?qstash_token={TOKEN}"
    assert (await rig.call("GET", target, token=FOREIGN)).status == 200
    assert (await rig.call("GET", target, token=None)).status == 404


async def test_a_read_only_header_is_not_lifted_by_the_querys_token(rig: Rig) -> None:
    reply = await rig.call("POST", f"/v2/keys/rotate?qstash_token={TOKEN}", token=READ_ONLY)
    assert reply.status == 403


async def test_a_revoked_token_fails_within_a_second(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/keys")).status == 200
    await rig.storage.delete_tokens(TENANT, read_only=False, keep=None)
    rig.clock.advance(1_000)
    assert (await rig.call("GET", "/v2/keys")).status == 401
    assert (await rig.call("GET", "/v2/schedules", token=READ_ONLY)).status == 200


async def test_the_log_hears_once_of_a_token_that_was_good_and_is_no_more(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/keys")).status == 200
    await rig.storage.delete_tokens(TENANT, read_only=False, keep=None)
    rig.clock.advance(1_000)
    for token in (TOKEN, TOKEN, "never-was-one"):
        assert (await rig.call("GET", "/v2/keys", token=token)).status == 401
    (line,) = [fields for event, fields in rig.log.lines if event == "token.void"]
    assert line["token"] == f"tok_{token_hash(TOKEN).hex()[:8]}"
    assert line["tenant"] == TENANT
    assert TOKEN not in str(line)


async def test_a_token_is_looked_up_once_a_second(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/keys")).status == 200
    await rig.storage.delete_tokens(TENANT, read_only=False, keep=None)
    rig.clock.advance(999)
    assert (await rig.call("GET", "/v2/keys")).status == 200


async def test_a_clock_set_back_does_not_keep_a_revoked_token_alive(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/keys")).status == 200
    await rig.storage.delete_tokens(TENANT, read_only=False, keep=None)
    rig.clock.advance(-3_600_000)
    assert (await rig.call("GET", "/v2/keys")).status == 401


async def test_a_token_works_as_soon_as_it_exists(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/keys", token="soon")).status == 401
    await rig.storage.put_token(token_hash("soon"), Principal(tenant=TENANT), now=rig.clock.now())
    assert (await rig.call("GET", "/v2/keys", token="soon")).status == 200


async def test_a_token_speaks_for_its_new_owner_within_a_second(rig: Rig) -> None:
    message_id = await rig.publish()
    await rig.storage.delete_tokens(TENANT, read_only=False, keep=None)
    await rig.storage.put_token(token_hash(TOKEN), Principal(tenant=OTHER_TENANT), now=rig.clock.now())
    rig.clock.advance(1_000)
    assert (await rig.call("GET", f"/v2/messages/{message_id}")).status == 404


async def test_more_tokens_than_are_remembered_all_admit(rig: Rig) -> None:
    authenticator = rig.services.authenticator
    tokens = [f"token-{number}" for number in range(1_100)]
    await asyncio.gather(
        *(rig.storage.put_token(token_hash(token), Principal(tenant=TENANT), now=0) for token in tokens)
    )
    for token in (*tokens, *tokens):
        caller = await authenticator.caller(f"Bearer {token}", "")
        assert caller.tenant == TENANT


async def issue(rig: Rig, token: str, *, expires_at: int | None = None) -> None:
    await rig.storage.issue_token(
        Token(hash=token_hash(token), tenant=TENANT, read_only=False, created_at=0, expires_at=expires_at)
    )


async def test_a_token_works_up_to_the_millisecond_it_expires_in(rig: Rig) -> None:
    await issue(rig, "for-a-while", expires_at=rig.clock.now() + 500)
    assert (await rig.call("GET", "/v2/keys", token="for-a-while")).status == 200
    rig.clock.advance(499)
    assert (await rig.call("GET", "/v2/keys", token="for-a-while")).status == 200
    rig.clock.advance(1)
    assert (await rig.call("GET", "/v2/keys", token="for-a-while")).status == 401
    assert (await rig.call("POST", "/v2/publish/https://a.example", token="for-a-while")).status == 401
    assert rig.by_lane == 1


async def test_an_expired_token_does_not_spoil_a_valid_one(rig: Rig) -> None:
    await issue(rig, "long-gone", expires_at=rig.clock.now())
    assert (await rig.call("GET", f"/v2/keys?qstash_token={TOKEN}", token="long-gone")).status == 200
    assert (await rig.call("GET", "/v2/keys?qstash_token=long-gone")).status == 200


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_no_route_answers_a_disabled_account(rig: Rig, route: Route) -> None:
    reply = await rig.call(route.method, example_of(route), token=DISABLED)
    assert (reply.status, reply.error) == (403, "the account is disabled")


async def test_a_disabled_header_is_not_lifted_by_the_querys_token(rig: Rig) -> None:
    assert (await rig.call("GET", f"/v2/keys?qstash_token={TOKEN}", token=DISABLED)).status == 403


async def test_disabling_and_enabling_an_account_counts_within_a_second(rig: Rig) -> None:
    for at, status in ((None, 200), (0, 403), (None, 200)):
        await rig.storage.put_disabled(TENANT, at=at)
        rig.clock.advance(1_000)
        assert (await rig.call("GET", "/v2/keys")).status == status
    assert (await rig.call("GET", "/v2/keys", token=FOREIGN)).status == 200


async def test_limits_of_an_account_count_within_a_second(rig: Rig) -> None:
    assert (await rig.call("POST", "/v2/publish/https://a.example", body=b"12345")).status == 200
    await rig.storage.put_limits(TENANT, TenantLimits(max_message_bytes=4), now=rig.clock.now())
    rig.clock.advance(1_000)
    assert (await rig.call("POST", "/v2/publish/https://a.example", body=b"12345")).status == 413
    assert (await rig.call("POST", "/v2/publish/https://a.example", body=b"1234")).status == 200
    assert (
        await rig.call("POST", "/v2/publish/https://a.example", body=b"12345", token=FOREIGN)
    ).status == 200


def example_of(route: Route) -> str:
    """The route's path with something in the place of its parameter."""
    value = "https://example.com" if "{destination" in route.path else "some-id"
    head, brace, rest = route.path.partition("{")
    return head + value + rest.rpartition("}")[2] if brace else head


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_a_read_only_token_may_look_and_not_touch(rig: Rig, route: Route) -> None:
    reply = await rig.call(route.method, example_of(route), token=READ_ONLY)
    if route.access is Access.WRITE:
        assert reply.status == 403
        assert reply.error == "the token is read-only"
    else:
        assert reply.status in (200, 404)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_no_route_answers_without_a_token(rig: Rig, route: Route) -> None:
    assert (await rig.call(route.method, example_of(route), token=None)).status == 401


def test_a_token_that_may_not_write_may_get_everything_but_the_signing_keys() -> None:
    assert {route.method for route in ROUTES if route.access is Access.READ} == {"GET"}
    writing = {route.path for route in ROUTES if route.access is Access.WRITE and route.method == "GET"}
    assert writing == {"/v2/keys"}


async def test_a_read_only_token_does_not_learn_the_signing_keys(rig: Rig) -> None:
    for path in ("/v2/keys", "/v2/keys/", f"/v2/keys?qstash_token={READ_ONLY}"):
        reply = await rig.call("GET", path, token=READ_ONLY)
        assert reply.status == 403
        assert b"sig_" not in reply.body


async def test_a_token_of_an_account_that_is_gone_does_not_admit(rig: Rig) -> None:
    await rig.storage.put_token(token_hash("orphan"), Principal(tenant=TenantId(99)), now=0)
    assert (await rig.call("GET", "/v2/keys", token="orphan")).status == 401
