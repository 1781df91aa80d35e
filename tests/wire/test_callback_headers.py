import pytest

from relay.domain.errors import Invalid, OverLimit
from relay.domain.message import Callback, FlowControl
from tests.wire.drafts import Given, draft_of

URL = "https://example.com/callback"


@pytest.mark.parametrize("prefix", ["Upstash-Callback", "Upstash-Failure-Callback"])
def test_a_callback_is_configured_like_a_message(prefix: str) -> None:
    draft = draft_of(
        {
            prefix: URL,
            f"{prefix}-Method": "put",
            f"{prefix}-Timeout": "10s",
            f"{prefix}-Retries": "1",
            f"{prefix}-Retry-Delay": "1000",
            f"{prefix.lower()}-forward-x-a": "1",
            f"{prefix.upper()}-FORWARD-AUTHORIZATION": "Bearer cb",
            f"{prefix}-Forward-Host": "dropped",
            f"{prefix}-Flow-Control-Key": "k",
            f"{prefix}-Flow-Control-Value": "parallelism=2",
            "Upstash-Forward-X-A": "not inherited",
        }
    )
    callback = Callback(
        url=URL,
        method="PUT",
        headers=(("X-A", "1"), ("Authorization", "Bearer cb")),
        timeout_ms=10_000,
        max_retries=1,
        retry_delay="1000",
        flow=FlowControl(key="k", parallelism=2),
    )
    found = (draft.callback, draft.failure_callback)
    assert found == ((callback, None) if prefix == "Upstash-Callback" else (None, callback))


def test_a_callback_can_have_callbacks_of_its_own() -> None:
    draft = draft_of(
        {
            "Upstash-Callback": URL,
            "Upstash-Callback-Failure-Callback": URL + "/failed",
            "Upstash-Callback-Failure-Callback-Forward-Foo": "1",
            "Upstash-Callback-Callback": URL + "/again",
            "Upstash-Callback-Callback-Retries": "0",
            "Upstash-Failure-Callback": URL + "/other",
            "Upstash-Failure-Callback-Failure-Callback": URL + "/worse",
        }
    )
    assert draft.callback == Callback(
        url=URL,
        callback=Callback(url=URL + "/again", max_retries=0),
        failure_callback=Callback(url=URL + "/failed", headers=(("Foo", "1"),)),
    )
    assert draft.failure_callback == Callback(
        url=URL + "/other", failure_callback=Callback(url=URL + "/worse")
    )


@pytest.mark.parametrize(
    ("headers", "field", "problem"),
    [
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Failure-Callback-Timeout": "1s"},
            "Upstash-Callback-Failure-Callback-Timeout",
            "needs Upstash-Callback-Failure-Callback, the URL",
        ),
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Delay": "1s"},
            "Upstash-Callback-Delay",
            "cannot be used with a callback",
        ),
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Label": "x"},
            "Upstash-Callback-Label",
            "cannot be used with a callback",
        ),
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Retries": "x"},
            "Upstash-Callback-Retries",
            "is not a whole number",
        ),
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Forward-X": "\x00"},
            "Upstash-Callback-Forward-X",
            "has a control character",
        ),
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Forward-": "x"},
            "Upstash-Callback-Forward-",
            "does not say which",
        ),
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Forward-X": "x" * 70_000},
            "Upstash-Forward",
            "headers have more than",
        ),
        (
            {"Upstash-Callback": URL, "Upstash-Callback-Flow-Control-Key": "k"},
            "Upstash-Callback-Flow-Control-Key",
            "needs Upstash-Callback-Flow-Control-Value",
        ),
        (
            {
                "Upstash-Callback": URL,
                "Upstash-Failure-Callback": URL,
                "Upstash-Failure-Callback-Callback": "x",
            },
            "Upstash-Failure-Callback-Callback",
            "does not begin with http",
        ),
    ],
)
def test_a_wrong_setting_of_a_callback_is_refused_by_its_full_name(
    headers: Given, field: str, problem: str
) -> None:
    with pytest.raises(Invalid) as refused:
        draft_of(headers)
    assert refused.value.field == field
    assert problem in refused.value.problem


def test_a_callback_has_the_quotas_of_a_message() -> None:
    with pytest.raises(OverLimit, match="Upstash-Callback-Retries:"):
        draft_of({"Upstash-Callback": URL, "Upstash-Callback-Retries": "101"})


def test_the_deepest_nesting_a_name_allows_is_read() -> None:
    headers = {"Upstash" + "-Callback" * depth: URL for depth in range(1, 28)}
    callback, depth = draft_of(headers).callback, 0
    while callback is not None:
        callback, depth = callback.callback, depth + 1
    assert depth == 27
