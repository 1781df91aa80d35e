"""Several Prometheus texts become one: what grows is added, shares are added, what is common is said once."""

from relay.merge import growing, merged
from relay.metrics import SHARES, Metrics, depths


def a_text(
    *, published: int, delivered: int = 0, live: int | None = None, in_flight: int = 0, lag: float = 0.2
) -> bytes:
    metrics = Metrics()
    metrics.published.inc(published)
    if delivered:
        metrics.attempts.labels("delivered").inc(delivered)
    metrics.lag_seconds.observe(lag)
    metrics.in_flight.set(in_flight)
    return metrics.render() + depths(live=live, dead_letters=None, oldest_due_seconds=0)


def values(text: bytes) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_one_text_stays_as_it_was() -> None:
    text = a_text(published=3, delivered=2, live=7, in_flight=1)
    assert merged([text], summed=SHARES) == text


def test_counters_are_added_also_with_labels_that_only_one_process_has_used() -> None:
    text = merged(
        [a_text(published=3), a_text(published=4, delivered=5), a_text(published=0, delivered=1)],
        summed=SHARES,
    )
    assert values(text)["relay_messages_published_total"] == 7
    assert values(text)['relay_attempts_total{outcome="delivered"}'] == 6


def test_histograms_are_added_bucket_by_bucket() -> None:
    text = values(merged([a_text(published=0, lag=0.2), a_text(published=0, lag=20)], summed=SHARES))
    assert text['relay_delivery_lag_seconds_bucket{le="0.1"}'] == 0
    assert text['relay_delivery_lag_seconds_bucket{le="0.25"}'] == 1
    assert text['relay_delivery_lag_seconds_bucket{le="30.0"}'] == 2
    assert text['relay_delivery_lag_seconds_bucket{le="+Inf"}'] == 2
    assert text["relay_delivery_lag_seconds_count"] == 2
    assert text["relay_delivery_lag_seconds_sum"] == 20.2


def test_what_each_process_has_in_flight_is_added_and_the_depths_of_the_database_are_the_first_ones() -> None:
    text = values(
        merged(
            [a_text(published=0, live=7, in_flight=2), a_text(published=0, live=6, in_flight=3)],
            summed=SHARES,
        )
    )
    assert text["relay_in_flight"] == 5
    assert text["relay_messages_live"] == 7


def test_no_series_says_when_another_began() -> None:
    parts = [a_text(published=1), a_text(published=1)]
    assert "_created" not in (parts[0] + merged(parts, summed=SHARES)).decode()


def test_a_merged_text_can_be_merged_again() -> None:
    one, two, three = (a_text(published=number, delivered=number) for number in (1, 2, 3))
    again = merged([merged([one, two], summed=SHARES), three], summed=SHARES)
    assert values(again) == values(merged([one, two, three], summed=SHARES))


def test_every_metric_is_still_there_with_its_type() -> None:
    def described(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if line.startswith("#")]

    text = a_text(published=1, delivered=1)
    assert described(merged([text, text], summed=SHARES)) == described(text)


def test_what_outlives_a_process_is_what_it_counted_and_not_what_it_had_in_hand() -> None:
    kept = values(growing(a_text(published=3, live=7, in_flight=2)))
    assert kept["relay_messages_published_total"] == 3
    assert kept["relay_delivery_lag_seconds_count"] == 1
    assert "relay_in_flight" not in kept
    assert "relay_messages_live" not in kept
