"""Signing keys and their rotation."""

import re

import pytest

from signing import KeyPair, generate_key, rotate


def test_a_generated_key_is_sig_and_28_letters_and_digits() -> None:
    assert re.fullmatch(r"sig_[A-Za-z0-9]{28}", generate_key())


def test_generated_keys_do_not_repeat_and_use_the_whole_alphabet() -> None:
    keys = [generate_key() for _ in range(200)]
    assert len(set(keys)) == 200
    assert len({character for key in keys for character in key.removeprefix("sig_")}) == 62


def test_rotation_promotes_the_next_key_and_forgets_the_current_one() -> None:
    assert rotate(KeyPair("sig_a", "sig_b"), "sig_c") == KeyPair(current="sig_b", next="sig_c")


def test_rotation_leaves_the_old_pair_as_it_was() -> None:
    pair = KeyPair("sig_a", "sig_b")
    rotate(pair, "sig_c")
    assert (pair.current, pair.next) == ("sig_a", "sig_b")


@pytest.mark.parametrize(
    "key", ["sig_a\n", " sig_a", "sig_\ta", "sig_é", "sig_\x7f", "-----BEGIN KEY-----\n"]
)
def test_a_key_with_white_space_or_outside_ascii_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match="The current signing key holds white space"):
        KeyPair(key, "sig_b")
    with pytest.raises(ValueError, match="The next signing key holds white space"):
        KeyPair("sig_a", key)


def test_an_empty_key_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="The current signing key is empty"):
        KeyPair("", "sig_b")
    with pytest.raises(ValueError, match="The next signing key is empty"):
        KeyPair("sig_a", "")


def test_a_fresh_key_is_checked_on_rotation() -> None:
    with pytest.raises(ValueError, match="The next signing key is empty"):
        rotate(KeyPair("sig_a", "sig_b"), "")


def test_a_printed_pair_gives_no_key_away() -> None:
    assert "sig_" not in repr(KeyPair("sig_a", "sig_b"))
