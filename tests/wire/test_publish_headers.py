from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.domain.errors import Invalid, OverLimit, TooLarge
from relay.domain.message import FlowControl, Redaction, Request, RetryPolicy, SignedBy
from relay.domain.publish import Draft, message_of
from relay.domain.tenant import Limits
from relay.wire.headers import NOT_OFFERED
from relay.wire.settings import SETTINGS
from tests.builders import NOW, TENANT, a_message_id
from tests.wire.drafts import draft_of, schedule_of

DAY_MS = 86_400_000


def test_a_publish_without_settings_has_the_defaults() -> None:
    headers = {
        "Host": "relay.example",
        "Authorization": "Bearer x",
        "Content-Type": "text/plain",
        "Accept": "*/*",
    }
    assert draft_of(headers, body=b"\xff\x00", caller_ip="192.0.2.1") == Draft(
        request=Request(
            url="https://example.com/hook", headers=(("Content-Type", "text/plain"),), body=b"\xff\x00"
        ),
        caller_ip="192.0.2.1",
    )


@pytest.mark.parametrize(
    ("name", "value", "read", "meant"),
    [
        ("Upstash-Method", "GET", lambda d: d.request.method, "GET"),
        ("Upstash-Method", "patch", lambda d: d.request.method, "PATCH"),
        ("Upstash-Timeout", "30s", lambda d: d.request.timeout_ms, 30_000),
        ("Upstash-Timeout", "45", lambda d: d.request.timeout_ms, 45_000),
        ("Upstash-Timeout", "720m", lambda d: d.request.timeout_ms, 43_200_000),
        ("Upstash-Retries", "0", lambda d: d.retry, RetryPolicy(max_retries=0)),
        ("Upstash-Retries", " 100\t", lambda d: d.retry, RetryPolicy(max_retries=100)),
        ("Upstash-Retry-Delay", "pow(2, retried)", lambda d: d.retry, RetryPolicy(delay="pow(2, retried)")),
        ("Upstash-Delay", "1h30m3s", lambda d: d.delay_ms, 5_403_000),
        ("Upstash-Delay", "0", lambda d: d.delay_ms, 0),
        ("Upstash-Not-Before", "1800000000", lambda d: d.not_before, 1_800_000_000_000),
        ("Upstash-Not-Before", "1800000000.25", lambda d: d.not_before, 1_800_000_000_250),
        ("Upstash-Not-Before", "1800000000.9999", lambda d: d.not_before, 1_800_000_000_999),
        ("Upstash-Not-Before", "0", lambda d: d.not_before, 0),
        ("Upstash-Deduplication-Id", "a,b ü", lambda d: d.deduplication_id, "a,b ü"),
        ("Upstash-Content-Based-Deduplication", "True", lambda d: d.content_based_deduplication, True),
        ("Upstash-Content-Based-Deduplication", "true", lambda d: d.content_based_deduplication, True),
        ("Upstash-Content-Based-Deduplication", "False", lambda d: d.content_based_deduplication, False),
        ("Upstash-Label", "blue", lambda d: d.labels, ("blue",)),
        ("Upstash-Label", " a , ,b,a,,ü ", lambda d: d.labels, ("a", "b", "ü")),
        ("Upstash-Label", "", lambda d: d.labels, ()),
        ("Relay-Signature", "qstash", lambda d: d.signed_by, SignedBy.QSTASH),
        ("Relay-Signature", " Standard ", lambda d: d.signed_by, SignedBy.STANDARD),
        ("Relay-Signature", "BOTH", lambda d: d.signed_by, SignedBy.BOTH),
        ("Upstash-Redact-Fields", "body", lambda d: d.redaction, Redaction(body=True)),
        ("Upstash-Redact-Fields", "header", lambda d: d.redaction, Redaction(headers=True)),
        ("Upstash-Redact-Fields", "headers", lambda d: d.redaction, Redaction(headers=True)),
        ("Upstash-Redact-Fields", "header[X-Key]", lambda d: d.redaction, Redaction(header_names=("x-key",))),
        ("Upstash-Redact-Fields", "headers[X-Key]", lambda d: d.redaction, Redaction(header_names=("x-key",))),
        (
            "Upstash-Redact-Fields",
            " BODY, Header[ A ], headers[b],header[a],",
            lambda d: d.redaction,
            Redaction(body=True, header_names=("a", "b")),
        ),
    ],
)  # fmt: skip
def test_a_setting_is_read(name: str, value: str, read: Callable[[Draft], object], meant: object) -> None:
    for spelling in (name, name.lower(), name.upper()):
        assert read(draft_of({spelling: value})) == meant
    assert read(draft_of({}, config=[(name.lower(), value)])) == meant


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("Upstash-Method", "HEAD", '"HEAD" is not GET, POST, PUT, PATCH or DELETE'),
        ("Upstash-Method", "", '"" is not GET'),
        ("Upstash-Timeout", "0s", "must be longer than nothing"),
        ("Upstash-Timeout", "5 minutes", '"5 minutes" is not a duration'),
        ("Upstash-Retries", "-1", '"-1" is not a whole number'),
        ("Upstash-Retries", "+1", '"+1" is not a whole number'),
        ("Upstash-Retries", "3.0", '"3.0" is not a whole number'),
        ("Upstash-Retries", "²", '"²" is not a whole number'),
        ("Upstash-Retries", "1_0", '"1_0" is not a whole number'),
        ("Upstash-Retries", "", '"" is not a whole number'),
        ("Upstash-Retry-Delay", "sleep(1)", 'has an unknown name "sleep"'),
        ("Upstash-Retry-Delay", "", "lacks a number"),
        ("Upstash-Delay", "-5s", '"-5s" is not a duration'),
        ("Upstash-Delay", "", '"" is not a duration'),
        ("Upstash-Not-Before", "tomorrow", '"tomorrow" is not a Unix time in seconds'),
        ("Upstash-Not-Before", "-1", '"-1" is not a Unix time'),
        ("Upstash-Not-Before", "1e9", '"1e9" is not a Unix time'),
        ("Upstash-Not-Before", "nan", '"nan" is not a Unix time'),
        ("Upstash-Not-Before", "1.", '"1." is not a Unix time'),
        ("Upstash-Not-Before", "1" * 19, "is not a Unix time"),
        ("Upstash-Not-Before", "\u0661", "is not a Unix time"),
        ("Upstash-Deduplication-Id", " ", "must not be empty"),
        ("Upstash-Deduplication-Id", "a\nb", "has a control character"),
        ("Upstash-Deduplication-Id", "\udce9", "is not valid UTF-8"),
        ("Upstash-Content-Based-Deduplication", "yes", '"yes" is neither true nor false'),
        ("Upstash-Header-Forward", "1", '"1" is neither true nor false'),
        ("Relay-Signature", "", '"" is not one of qstash, standard, both'),
        ("Relay-Signature", "none", '"none" is not one of qstash, standard, both'),
        ("Relay-Signature", "qstash,standard", '"qstash,standard" is not one of qstash, standard, both'),
        ("Upstash-Redact-Fields", "status", '"status" is not body, header or header[Name]'),
        ("Upstash-Redact-Fields", "header[]", '"header[]" does not name a header'),
        ("Upstash-Redact-Fields", "header[a b]", '"header[a b]" does not name a header'),
        ("Upstash-Redact-Fields", "header[a", '"header[a" is not body'),
        ("Upstash-Label", "a\x00", "has a control character"),
        ("Upstash-Cron", "* * * * *", "cannot be used with a publish"),
        ("Upstash-Schedule-Id", "a", "cannot be used with a publish"),
        ("Relay-Schedule-Catch-Up", "last", "cannot be used with a publish"),
        ("Relay-Schedule-Overlap", "skip", "cannot be used with a publish"),
        ("Relay-Anything", "x", "is not a header the relay knows"),
        ("Upstash-Callback", "example.com/cb", "does not begin with http"),
        ("Upstash-Callback-Retries", "1", "needs Upstash-Callback, the URL"),
        ("Upstash-Failure-Callback", "a-group", "does not begin with http"),
        ("Upstash-Failure-Callback", "", "does not begin with http"),
        ("Upstash-Failure-Callback-Forward-X", "1", "needs Upstash-Failure-Callback, the URL"),
        ("Upstash-Flow-Control-Key", "k", "needs Upstash-Flow-Control-Value"),
        ("Upstash-Flow-Control-Key", "", "must have 1 to 2048 bytes in UTF-8"),
        ("Upstash-Flow-Control-Key", "k" * 2049, "must have 1 to 2048 bytes in UTF-8"),
        ("Upstash-Flow-Control-Key", "键" * 683, "must have 1 to 2048 bytes in UTF-8"),
        ("Upstash-Flow-Control-Value", "rate=1", "needs Upstash-Flow-Control-Key"),
        ("Upstash-Flow-Control-Value", "", '"" is not parallelism=<n>'),
        ("Upstash-Flow-Control-Value", "parallelism", '"parallelism" is not parallelism=<n>'),
        ("Upstash-Flow-Control-Value", "ratePerSecond=1", '"ratePerSecond=1" is not'),
        ("Upstash-Flow-Control-Value", "rate=1,", '"" is not'),
        ("Upstash-Flow-Control-Value", "rate=1,rate=2", "names rate twice"),
        ("Upstash-Flow-Control-Value", "period=1s", "needs parallelism or rate"),
        ("Upstash-Flow-Control-Value", "rate=0", 'has a rate, "0"'),
        ("Upstash-Flow-Control-Value", "rate=-1", 'has a rate, "-1"'),
        ("Upstash-Flow-Control-Value", "parallelism=1.5", 'has a parallelism, "1.5"'),
        ("Upstash-Flow-Control-Value", "parallelism=2147483648", "has a parallelism"),
        ("Upstash-Flow-Control-Value", "parallelism=99999999999", "has a parallelism"),
        ("Upstash-Flow-Control-Value", "rate=²", "has a rate"),
        ("Upstash-Flow-Control-Value", "rate=1,period=0", "has a period of nothing"),
        ("Upstash-Flow-Control-Value", "rate=1,period=x", "is not a duration"),
        ("Upstash-Queue-Name", "q", "cannot be used with a publish"),
        ("Upstash-Workflow-Runid", "wfr_1", "is not offered by this version"),
        ("Upstash-Workflow-Trigger-By-Sdk", "true", "is not offered by this version"),
        ("Upstash-Feature-Set", "LazyFetch", "is not offered by this version"),
    ],
)
def test_a_wrong_or_unusable_setting_is_refused_by_its_name(name: str, value: str, problem: str) -> None:
    with pytest.raises(Invalid) as refused:
        draft_of({name.lower(): value})
    assert type(refused.value) is Invalid
    assert refused.value.field == name
    assert problem in refused.value.problem
    with pytest.raises(Invalid) as refused:
        draft_of({}, config=[(name.lower(), value)])
    assert refused.value.field == name


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
    assert draft_of(headers).flow == flow


def test_a_flow_control_period_is_at_most_a_week() -> None:
    with pytest.raises(
        OverLimit, match="Upstash-Flow-Control-Value: has a period above the maximum of one week"
    ):
        draft_of({"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "rate=1,period=7d1s"})


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("Upstash-Retries", "101", '"101" is above the maximum of 100 retries'),
        ("Upstash-Retries", "1000000", "is above the maximum"),
        ("Upstash-Retries", "0" * 18 + "1", "is above the maximum"),
        ("Upstash-Retries", "9" * 5000, "is above the maximum"),
        ("Upstash-Timeout", "12h1s", '"12h1s" is above the maximum of 12h'),
        ("Upstash-Delay", "3653d1s", "is above the maximum of 3653d"),
        ("Upstash-Delay", "99999d", '"99999d" is above the maximum of 3653d'),
        ("Upstash-Timeout", "99999d", '"99999d" is above the maximum of 12h'),
        ("Upstash-Not-Before", "2115619200.001", "is more than the maximum of 3653d from now"),
        ("Upstash-Not-Before", "1800000000000", "is more than the maximum"),
        ("Upstash-Label", ",".join(f"l{n}" for n in range(21)), "has 21 labels, above the maximum of 20"),
        ("Upstash-Label", "x" * 257, "is longer than the maximum of 256 characters"),
    ],
)
def test_a_setting_beyond_a_quota_is_over_the_limit(name: str, value: str, problem: str) -> None:
    with pytest.raises(OverLimit) as refused:
        draft_of({name: value})
    assert refused.value.field == name
    assert problem in refused.value.problem


def test_the_quotas_themselves_are_allowed() -> None:
    labels = tuple(f"{n:0>256}" for n in range(20))
    draft = draft_of(
        {
            "Upstash-Retries": "100",
            "Upstash-Timeout": "12h",
            "Upstash-Delay": "3653d",
            "Upstash-Not-Before": "2115619200",
            "Upstash-Label": ",".join(labels),
        }
    )
    assert draft.labels == labels
    assert draft.delay_ms == 3653 * DAY_MS
    assert draft.not_before == NOW + 3653 * DAY_MS


def test_the_quotas_are_the_tenants() -> None:
    limits = Limits(max_retries=1, max_delay_ms=1000, max_timeout_ms=1000, max_labels=1, max_label_length=1)
    for name, value in [
        ("Upstash-Retries", "2"),
        ("Upstash-Delay", "2s"),
        ("Upstash-Timeout", "2s"),
        ("Upstash-Label", "a,b"),
        ("Upstash-Label", "ab"),
    ]:
        draft_of({name: value})
        with pytest.raises(OverLimit, match=name):
            draft_of({name: value}, limits=limits)


def test_a_body_is_accepted_up_to_the_limit_and_no_byte_more() -> None:
    limits = Limits(max_message_bytes=4)
    assert draft_of({}, body=b"1234", limits=limits).request.body == b"1234"
    with pytest.raises(TooLarge, match="the message body is larger than the limit of 4 bytes"):
        draft_of({}, body=b"12345", limits=limits)


def test_a_header_beats_the_same_setting_of_the_query() -> None:
    draft = draft_of(
        {"UPSTASH-RETRIES": "1", "Upstash-Forward-A": "header"},
        config=[
            ("upstash-retries", "nonsense"),
            ("upstash-forward-a", "query"),
            ("upstash-forward-b", "query"),
        ],
    )
    assert draft.retry.max_retries == 1
    assert draft.request.headers == (("A", "header"), ("B", "query"))


def test_a_repeated_header_is_one_combined_value() -> None:
    draft = draft_of([("Upstash-Label", "a"), ("upstash-label", "b"), ("Upstash-Label", "c")])
    assert draft.labels == ("a", "b", "c")
    assert draft_of({}, config=[("upstash-label", "a"), ("upstash-label", "b")]).labels == ("a", "b")
    with pytest.raises(Invalid, match='Upstash-Retries: "1, 1" is not'):
        draft_of([("Upstash-Retries", "1"), ("upstash-retries", "1")])


def test_not_before_wins_over_a_delay() -> None:
    draft = draft_of({"Upstash-Delay": "1h", "Upstash-Not-Before": "1800000005"})
    message = message_of(draft, tenant=TENANT, id=a_message_id(), now=NOW)
    assert message.not_before == NOW + 5000


@pytest.mark.parametrize(
    "name",
    [
        "Upstash-Telemetry-Sdk",
        "Upstash-Telemetry-Platform",
        "Upstash-Unheard-Of",
        "Upstash-Message-Id",
        "Upstash-Signature",
        "Upstash-",
        "Upstash",
        "Relay",
    ],
)
def test_telemetry_and_unknown_upstash_headers_change_nothing(name: str) -> None:
    assert draft_of({name: "x"}) == draft_of({})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("", 'header ""'),
        ("a b", 'header "a b"'),
        ("Upstash-Forward-a\r\nb", r'header "Upstash-Forward-a\r\nb"'),
        ("Upstash-Forward-\udce9", r'header "Upstash-Forward-\udce9"'),
        ("Upstash-Forward-ü", 'header "Upstash-Forward-ü"'),
        ("Upstash-Forward-", "Upstash-Forward-"),
    ],
)
def test_what_cannot_be_a_header_name_is_refused(name: str, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        draft_of({name: "x"})
    assert refused.value.field == field
    str(refused.value).encode()


def test_a_header_name_has_at_most_256_characters() -> None:
    name = "Upstash-Forward-" + "x" * 240
    assert draft_of({name: "v"}).request.headers == (("X" + "x" * 239, "v"),)
    with pytest.raises(Invalid, match="is longer than 256 characters"):
        draft_of({name + "x": "v"})


NAMES = st.one_of(
    st.sampled_from([setting.name for setting in SETTINGS]),
    st.sampled_from(["Content-Type", "Connection", "Authorization", "X-A", "Upstash-Forward-A", "Upstash-X"]),
    st.text(max_size=20).map(lambda text: "Upstash-Forward-" + text),
    st.lists(
        st.sampled_from(["Upstash", "Relay", "Callback", "Failure-Callback", "Forward", "Retries", "Workflow"]),
        max_size=8,
    ).map("-".join),
    st.text(max_size=20),
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=30),
    st.text("0123456789.-+esmhd", max_size=20),
    st.sampled_from(
        ["true", "https://example.com/", "* * * * *", "k", "rate=1, period=5m", "parallelism=2", "body"]
    ),
    st.text("parallelismrateperiod=,1 0sd", max_size=30),
    st.text("header[]sbodyABC, ", max_size=30),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


@given(HEADERS, HEADERS, st.booleans())
@example([("Upstash-Retry-Delay", "1e999 - 1e999")], [], False)
def test_any_headers_give_a_draft_that_can_be_stored_or_are_refused_by_name(
    headers: list[tuple[str, str]], config: list[tuple[str, str]], offered: bool
) -> None:
    not_offered = frozenset[str]() if offered else NOT_OFFERED
    try:
        draft = draft_of(headers, config=config, not_offered=not_offered, authorization_is_ours=False)
    except Invalid as refused:
        str(refused).encode()
        return
    for name, value in draft.request.headers:
        assert name.isascii()
        value.encode(errors="surrogateescape")
        assert not set(value) & {"\r", "\n", "\0"}
    message_of(draft, tenant=TENANT, id=a_message_id(), now=NOW)
    for text in (*draft.labels, draft.deduplication_id or ""):
        text.encode()


@given(HEADERS)
def test_any_headers_give_a_schedule_or_are_refused_by_name(headers: list[tuple[str, str]]) -> None:
    try:
        request = schedule_of([("Upstash-Cron", "* * * * *"), *headers], not_offered=())
    except Invalid as refused:
        str(refused).encode()
        return
    assert request.cron.text == "* * * * *"
