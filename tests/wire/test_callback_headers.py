import pytest

from relay.domain.errors import Invalid, OverLimit
from relay.domain.message import Callback, FlowControl
from relay.domain.publish import Draft
from tests.wire.drafts import Given, draft_of, schedule_of

URL = "https://example.com/callback"


def offered(headers: Given) -> Draft:
    return draft_of(headers, not_offered=())


@pytest.mark.parametrize("prefix", ["Upstash-Callback", "Upstash-Failure-Callback"])
def test_a_callback_is_configured_like_a_message(prefix: str) -> None:
    draft = offered(
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
    draft = offered(
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
        ({"Upstash-Callback": "my-group"}, "Upstash-Callback", "does not begin with http"),
        ({"Upstash-Failure-Callback": ""}, "Upstash-Failure-Callback", "does not begin with http"),
        ({"Upstash-Callback-Retries": "1"}, "Upstash-Callback-Retries", "needs Upstash-Callback, the URL"),
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
        offered(headers)
    assert refused.value.field == field
    assert problem in refused.value.problem


def test_a_callback_has_the_quotas_of_a_message() -> None:
    with pytest.raises(OverLimit, match="Upstash-Callback-Retries:"):
        offered({"Upstash-Callback": URL, "Upstash-Callback-Retries": "101"})


def test_the_deepest_nesting_a_name_allows_is_read() -> None:
    headers = {"Upstash" + "-Callback" * depth: URL for depth in range(1, 28)}
    callback, depth = offered(headers).callback, 0
    while callback is not None:
        callback, depth = callback.callback, depth + 1
    assert depth == 27


@pytest.mark.parametrize(
    ("value", "flow"),
    [
        ("parallelism=3, rate=5, period=1m", FlowControl(key="k", parallelism=3, rate=5, period_ms=60_000)),
        ("parallelism=5,rate=10,period=1m", FlowControl(key="k", parallelism=5, rate=10, period_ms=60_000)),
        (" period = 5 ,\trate = 2 ", FlowControl(key="k", rate=2, period_ms=5000)),
        ("parallelism=1", FlowControl(key="k", parallelism=1, period_ms=1000)),
        ("rate=2147483647,period=7d", FlowControl(key="k", rate=2147483647, period_ms=604_800_000)),
    ],
)
def test_flow_control_is_read(value: str, flow: FlowControl) -> None:
    headers = {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": value}
    assert offered(headers).flow == flow


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", '"" is not parallelism=<n>'),
        ("parallelism", '"parallelism" is not parallelism=<n>'),
        ("ratePerSecond=1", '"ratePerSecond=1" is not'),
        ("rate=1,", '"" is not'),
        ("rate=1,rate=2", "names rate twice"),
        ("period=1s", "needs parallelism or rate"),
        ("rate=0", 'has a rate, "0"'),
        ("rate=-1", 'has a rate, "-1"'),
        ("parallelism=1.5", 'has a parallelism, "1.5"'),
        ("parallelism=2147483648", "has a parallelism"),
        ("parallelism=99999999999", "has a parallelism"),
        ("rate=²", "has a rate"),
        ("rate=1,period=0", "has a period of nothing"),
        ("rate=1,period=x", "is not a duration"),
    ],
)
def test_wrong_flow_control_is_refused(value: str, problem: str) -> None:
    with pytest.raises(Invalid) as refused:
        offered({"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": value})
    assert refused.value.field == "Upstash-Flow-Control-Value"
    assert problem in refused.value.problem


def test_a_flow_control_period_is_at_most_a_week() -> None:
    with pytest.raises(
        OverLimit, match="Upstash-Flow-Control-Value: has a period above the maximum of one week"
    ):
        offered({"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "rate=1,period=7d1s"})


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"Upstash-Flow-Control-Key": "k"}, "Upstash-Flow-Control-Key: needs Upstash-Flow-Control-Value"),
        (
            {"Upstash-Flow-Control-Value": "rate=1"},
            "Upstash-Flow-Control-Value: needs Upstash-Flow-Control-Key",
        ),
        ({"Upstash-Flow-Control-Key": ""}, "Upstash-Flow-Control-Key: must have 1 to 1024 characters"),
        (
            {"Upstash-Flow-Control-Key": "k" * 1025},
            "Upstash-Flow-Control-Key: must have 1 to 1024 characters",
        ),
    ],
)
def test_flow_control_needs_a_key_and_a_value(headers: Given, problem: str) -> None:
    with pytest.raises(Invalid) as refused:
        offered(headers)
    assert str(refused.value) == problem


def test_a_schedule_may_name_a_queue_and_a_publish_may_not() -> None:
    headers = {"Upstash-Cron": "* * * * *", "Upstash-Queue-Name": "my.queue_1-a"}
    assert schedule_of(headers, not_offered=()).draft.queue == "my.queue_1-a"
    with pytest.raises(Invalid, match=r"Upstash-Queue-Name: .* must be 1 to 256 of the characters"):
        schedule_of(headers | {"Upstash-Queue-Name": "my queue"}, not_offered=())
    with pytest.raises(Invalid, match="Upstash-Queue-Name: cannot be used with a publish"):
        offered({"Upstash-Queue-Name": "q"})
