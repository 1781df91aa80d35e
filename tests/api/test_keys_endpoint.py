"""/v2/keys: the signing keys and their rotation."""

from tests.api.rig import FOREIGN, KEYS, READ_ONLY, Rig


async def test_the_keys_are_shown(rig: Rig) -> None:
    reply = await rig.call("GET", "/v2/keys")
    assert (reply.status, reply.json) == (200, KEYS)


async def test_a_rotation_moves_next_to_current_and_makes_a_fresh_next(rig: Rig) -> None:
    first = await rig.call("POST", "/v2/keys/rotate")
    assert first.status == 200
    assert first.json == {"current": KEYS["next"], "next": "sig_fresh000000000000000"}
    assert (await rig.call("GET", "/v2/keys")).json == first.json
    second = await rig.call("POST", "/v2/keys/rotate/")
    assert second.json == {"current": "sig_fresh000000000000000", "next": "sig_fresh000000000000001"}


async def test_a_rotation_is_one_accounts_own(rig: Rig) -> None:
    await rig.call("POST", "/v2/keys/rotate", token=FOREIGN)
    assert (await rig.call("GET", "/v2/keys")).json == KEYS


async def test_a_read_only_token_leaves_the_keys_as_they_are(rig: Rig) -> None:
    assert (await rig.call("POST", "/v2/keys/rotate", token=READ_ONLY)).status == 403
    assert (await rig.call("GET", "/v2/keys")).json == KEYS
