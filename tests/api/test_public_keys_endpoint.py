"""/.well-known/jwks.json: the public keys of one account, for whoever asks."""

from urllib.parse import quote

import pytest

from relay.domain.message import TenantId
from relay.domain.tenant import Tenant
from signing import PrivateKey
from tests.api.rig import KEYS, Rig
from tests.builders import OTHER_TENANT

JWKS = "/.well-known/jwks.json"
OTHERS = ("sig_7GVPjvuwsfqF65iC8fSrs1dfYruM", "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua")


async def put(rig: Rig, user_id: str, *keys: str, number: int = OTHER_TENANT) -> None:
    current, next_ = keys
    tenant = Tenant(id=TenantId(number), user_id=user_id, current_key=current, next_key=next_)
    await rig.storage.put_tenant(tenant, now=0)


async def test_without_a_name_they_are_those_of_the_first_account(rig: Rig) -> None:
    reply = await rig.call("GET", JWKS, token=None)
    assert reply.status == 200
    assert reply.json == {"keys": [PrivateKey.derived(KEYS[which]).jwk for which in ("current", "next")]}
    assert reply.headers["Cache-Control"] == "public, max-age=300"


async def test_another_account_is_asked_for_by_its_name_and_mixed_with_no_other(rig: Rig) -> None:
    await put(rig, "ünï & co", *OTHERS)
    reply = await rig.call("GET", f"{JWKS}?tenant={quote('ünï & co')}", token=None)
    assert reply.json == {"keys": [PrivateKey.derived(key).jwk for key in OTHERS]}
    first = (await rig.call("GET", f"{JWKS}?tenant=tests", token=None)).json
    assert first == (await rig.call("GET", JWKS, token=None)).json


async def test_a_rotation_moves_a_key_up_that_was_there_before(rig: Rig) -> None:
    before = (await rig.call("GET", JWKS)).json["keys"]
    await rig.call("POST", "/v2/keys/rotate")
    after = (await rig.call("GET", JWKS)).json["keys"]
    assert after[0] == before[1]
    assert before[0] not in after


async def test_a_key_that_could_be_guessed_is_not_published(rig: Rig) -> None:
    await put(rig, "short", "sig_short", OTHERS[1])
    reply = await rig.call("GET", f"{JWKS}?tenant=short", token=None)
    assert reply.json == {"keys": [PrivateKey.derived(OTHERS[1]).jwk]}


@pytest.mark.parametrize("name", ["nobody", "", "%00", "%FF", "%ED%A0%80", "a" * 257, "%0A", "'"])
async def test_a_name_that_nobody_has_is_unknown(rig: Rig, name: str) -> None:
    reply = await rig.call("GET", f"{JWKS}?tenant={name}", token=None)
    assert (reply.status, reply.error) == (404, "there is no account of that name with public keys")


async def test_a_disabled_account_has_no_public_keys(rig: Rig) -> None:
    await put(rig, "gone", *OTHERS)
    await rig.storage.put_disabled(OTHER_TENANT, at=1)
    assert (await rig.call("GET", f"{JWKS}?tenant=gone", token=None)).status == 404


async def test_accounts_of_the_same_name_are_not_taken_for_each_other(rig: Rig) -> None:
    await put(rig, "tests", *OTHERS)
    assert (await rig.call("GET", f"{JWKS}?tenant=tests", token=None)).status == 404
