"""Standard Webhooks by Ed25519: keys derived from signing keys, their spellings, and what is believed."""

import base64
import json
import subprocess
import sys

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from signing import PrivateKey, PublicKey, WebhookReceiver, WrongKeyError, generate_key
from signing.standard import signed_content

KEY = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
ID, NOW_S, BODY = "msg_1", 1_700_000_000, b'{"order": 1}'


def verify(receiver: WebhookReceiver, signature: str, *, body: bytes = BODY) -> bool:
    try:
        receiver.verify(id=ID, timestamp=str(NOW_S), signature=signature, body=body, now_s=NOW_S)
    except WrongKeyError:
        return False
    return True


def test_the_derived_key_is_hkdf_of_the_signing_key() -> None:
    hkdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"relay standard webhooks ed25519")
    seed = hkdf.derive(KEY.encode())
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert PrivateKey.derived(KEY).public == "whpk_" + base64.b64encode(public).decode()
    assert PrivateKey.derived(KEY).text == "whsk_" + base64.b64encode(seed + public).decode()


def test_a_derived_key_never_changes() -> None:
    assert PrivateKey.derived(KEY).public == "whpk_K86U2zpo1HEK2d3Hm/feEjobIiRP9GMrFfG6pKswOao="


def test_the_public_key_verifies_what_the_private_key_signed_and_nothing_else() -> None:
    private = PrivateKey.derived(KEY)
    signature = private.sign(signed_content(ID, NOW_S, BODY))
    assert signature.startswith("v1a,")
    receiver = WebhookReceiver(private.public)
    assert verify(receiver, signature)
    assert not verify(receiver, signature, body=BODY + b" ")
    assert not verify(receiver, PrivateKey.derived(generate_key()).sign(signed_content(ID, NOW_S, BODY)))
    assert not verify(WebhookReceiver(PrivateKey.derived(generate_key()).public), signature)


@pytest.mark.parametrize("signature", ["v1a,", "v1a,AAAA", "v1a,====", "v1a," + "A" * 88, "v1,AAAA"])
def test_what_is_no_signature_is_not_believed(signature: str) -> None:
    assert not verify(WebhookReceiver(PrivateKey.derived(KEY).public), signature)


def test_a_private_key_is_read_with_and_without_its_public_half() -> None:
    private = PrivateKey.derived(KEY)
    whole = base64.b64decode(private.text.removeprefix("whsk_"))
    assert PrivateKey.read(private.text).public == private.public
    assert PrivateKey.read("whsk_" + base64.b64encode(whole[:32]).decode()).public == private.public


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("whpk_AAAA", "begins with whsk_"),
        ("whsk_AAAA", "32 bytes"),
        ("whsk_?", "not base64"),
        ("whsk_" + base64.b64encode(bytes(64)).decode(), "do not belong together"),
    ],
)
def test_what_is_no_private_key_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PrivateKey.read(text)


@pytest.mark.parametrize("text", ["whpk_", "whpk_AAAA", "whpk_?"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"32 bytes|base64"):
        PublicKey(text)


def test_a_key_that_could_be_guessed_has_no_public_key() -> None:
    with pytest.raises(ValueError, match="fewer than 32 characters"):
        PrivateKey.derived("sig_short")


def test_a_key_is_kept_out_of_its_repr() -> None:
    private = PrivateKey.derived(KEY)
    assert private.text not in repr(private)
    assert "sig_" not in repr(private)


def test_the_json_web_key_holds_the_public_key_and_its_thumbprint() -> None:
    jwk = PrivateKey.derived(KEY).jwk
    # RFC 8037, appendix A.3, is the same rule with another key.
    assert jwk["kty"] == "OKP"
    assert jwk["crv"] == "Ed25519"
    assert base64.urlsafe_b64decode(jwk["x"] + "=") == base64.b64decode(
        PrivateKey.derived(KEY).public.removeprefix("whpk_")
    )
    assert set(jwk) == {"kty", "crv", "x", "kid", "alg", "use"}


def test_the_thumbprint_is_that_of_rfc_8037() -> None:
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    jwk = PrivateKey(seed).jwk
    assert jwk["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert jwk["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_other_libraries_verify_with_the_json_web_key() -> None:
    private = PrivateKey.derived(KEY)
    content = signed_content(ID, NOW_S, BODY)
    key = jwt.PyJWK.from_json(json.dumps(private.jwk)).key
    key.verify(base64.b64decode(private.sign(content).removeprefix("v1a,")), content)


def test_without_its_package_the_rest_works_and_a_sentence_says_what_is_missing() -> None:
    program = """
import sys
sys.modules["cryptography"] = None
from signing import PrivateKey, Ed25519MissingError, Verifier, WebhookReceiver, sign_standard
from signing.ed25519 import available
print(available())
signature = sign_standard(key="sig_1", id="msg_1", now_s=1, body=b"") + " v1a,AAAA"
print(WebhookReceiver("sig_1").verify(id="msg_1", timestamp="1", signature=signature, body=b"", now_s=1).id)
try:
    WebhookReceiver("whpk_" + "A" * 43)
except Ed25519MissingError as missing:
    print(missing)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "False",
        "msg_1",
        "Ed25519 signatures need the package cryptography: pip install '.[ed25519]' in Relay's source tree",
    ]
