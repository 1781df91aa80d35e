"""What a relay says when it starts: the lines to paste."""

from ipaddress import ip_address
from typing import Literal

from relay.accounts import Credentials

Mode = Literal["dev", "serve"]

_CURL = (
    """curl -d "hello" -H "Authorization: Bearer $QSTASH_TOKEN" """
    """"$QSTASH_URL/v2/publish/http://localhost:3000/hook\""""
)
_PYTHON = (
    """python -c 'import os, qstash; qstash.QStash(os.environ["QSTASH_TOKEN"], """
    """base_url=os.environ["QSTASH_URL"]).message.publish_json("""
    """url="http://localhost:3000/hook", body={"hello": "world"})'"""
)
#: What is said beside the greeting of a development relay that others can reach.
EXPOSED = """\
WARNING: this development relay listens on {host}, where other machines can reach it. Its tokens and signing keys
are published: whoever reaches it can have it call any address of this machine and of its network. Keep it to
yourself with --host 127.0.0.1, or run `relay serve` for others."""


def is_exposed(host: str) -> bool:
    """Whether others than this machine may reach what listens on this host; a name but localhost counts as if."""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def text(mode: Mode, url: str, credentials: Credentials, *, command: str) -> str:
    """The greeting; `command` is how this relay was called.

    Without a token to tell (it is configured, or was told by an earlier start) it is one line, and one more
    when keys were made that nobody has seen.
    """
    if credentials.token is None:
        running = f"Relay is running at {url}"
        if credentials.untold_keys:
            return (
                f"{running}\nReceivers need the signing keys that were made: {command} keys show prints them."
            )
        return running
    lines = [
        f"Relay is running at {url}",
        "",
        "Paste this into the shell, or into the environment of your app:",
        "",
        f"export QSTASH_URL={url}",
        f"export QSTASH_TOKEN={credentials.token}",
        f"export QSTASH_CURRENT_SIGNING_KEY={credentials.current_key}",
        f"export QSTASH_NEXT_SIGNING_KEY={credentials.next_key}",
        "",
    ]
    if mode == "serve":
        return "\n".join([*lines, "Only a hash of the token is stored: it is not shown again.", ""])
    lines += ["Publish something from the shell:", "", f"  {_CURL}", ""]
    lines += ["or with the Python SDK (pip install qstash):", "", f"  {_PYTHON}", ""]
    lines += ["and watch what becomes of it:", "", f"  {command} logs --follow", ""]
    return "\n".join(lines)
