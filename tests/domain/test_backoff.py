import pytest

from relay.domain.backoff import default_delay_ms, next_delay_ms
from relay.domain.duration import format_duration
from relay.domain.expression import RetryDelay

DAY = 86_400_000


def test_the_default_curve_is_the_documented_one() -> None:
    delays = [format_duration(default_delay_ms(retried) // 1000 * 1000) for retried in range(6)]

    assert delays == ["12s", "2m28s", "30m8s", "6h7m6s", "1d", "1d"]


@pytest.mark.parametrize("retried", [5, 100, 283, 10**9])
def test_the_default_curve_never_exceeds_a_day(retried: int) -> None:
    assert default_delay_ms(retried) == DAY


@pytest.mark.parametrize(
    ("expression", "retry_after_ms", "delay_ms"),
    [
        (None, None, 12182),
        ("5000", None, 5000),
        ("5000", 700, 700),
        (None, 700, 700),
        ("5000", 0, 0),
        ("5000", -1, 0),
        ("5000", DAY, DAY),
        ("5000", DAY + 1, 5000),
        (None, DAY + 1, 12182),
        ("0 - 1", None, 0),
    ],
)
def test_the_endpoint_is_heeded_before_the_sender_and_the_sender_before_the_curve(
    expression: str | None, retry_after_ms: int | None, delay_ms: int
) -> None:
    compiled = None if expression is None else RetryDelay(expression)

    assert next_delay_ms(0, compiled, retry_after_ms) == delay_ms


def test_an_expression_is_given_the_retries_already_made() -> None:
    delays = [next_delay_ms(retried, RetryDelay("1000 * (1 + retried)"), None) for retried in range(3)]

    assert delays == [1000, 2000, 3000]
