"""Every metric the relay exposes, with its unit and meaning; no URL, tenant or message id is ever a label."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

# A second series for each counter and histogram, of no use to anybody, would double what is stored of them.
disable_created_metrics()  # type: ignore[no-untyped-call]

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)

#: Of these each process of a relay has its own share; all other gauges are about what they have in common.
SHARES = frozenset({"relay_in_flight", "relay_ready"})

#: What labels may say. All are there from the start: what begins with its first event has no increase to see.
OUTCOMES = ("delivered", "retried", "failed", "released")
OPERATIONS = ("publish", "claim", "set_aside", "renew", "settle", "schedules", "prune")
TICKS = ("fired", "skipped", "failed")

_WORKER_RESTARTS = "relay_worker_restarts"


class Metrics:
    """One registry per relay, so that several can live in one process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.published = Counter(
            "relay_messages_published",
            "Messages accepted and durable (duplicates excluded)",
            registry=registry,
        )
        self.deduplicated = Counter(
            "relay_messages_deduplicated", "Publishes answered with an earlier message", registry=registry
        )
        self.attempts = Counter(
            "relay_attempts",
            "Delivery attempts by what they led to: delivered, retried, failed or released",
            ["outcome"],
            registry=registry,
        )
        self.attempt_seconds = Histogram(
            "relay_attempt_seconds",
            "Duration of one delivery attempt, connecting included",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.lag_seconds = Histogram(
            "relay_delivery_lag_seconds",
            "Time between when an attempt was due and when it began",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.refused_settlements = Counter(
            "relay_settlements_refused",
            "Outcomes that came after their lease had been taken over",
            registry=registry,
        )
        self.cut_settlements = Counter(
            "relay_settlements_cut",
            "Outcomes stored without a callback or the answer, which the database could not hold",
            registry=registry,
        )
        self.lost_leases = Counter(
            "relay_leases_lost",
            "Deliveries taken over from a worker that stopped renewing its lease",
            registry=registry,
        )
        self.set_aside = Counter(
            "relay_deliveries_set_aside",
            "Deliveries that were due and had to wait because their host or tenant had its share of the room",
            registry=registry,
        )
        self.postponed = Counter(
            "relay_deliveries_postponed",
            "Deliveries put off because this process could not make them: no signing key, no file descriptor",
            registry=registry,
        )
        self.storage_errors = Counter(
            "relay_storage_errors",
            "Storage calls that were answered 'unavailable'",
            ["operation"],
            registry=registry,
        )
        self.schedule_runs = Counter(
            "relay_schedule_runs",
            "Ticks of schedules by outcome: fired, skipped, failed",
            ["outcome"],
            registry=registry,
        )
        self.pruned_rows = Counter(
            "relay_pruned_rows", "Rows forgotten because their retention ended", registry=registry
        )
        self.worker_restarts = Counter(
            _WORKER_RESTARTS,
            "Processes of --workers that died, or were killed because they hung, and had to be replaced",
            registry=registry,
        )
        for counter, values in (
            (self.attempts, OUTCOMES),
            (self.storage_errors, OPERATIONS),
            (self.schedule_runs, TICKS),
        ):
            for value in values:
                counter.labels(value)
        self.ready = Gauge(
            "relay_ready",
            "Processes of this relay that can do their work: 0 or 1, with workers up to their number",
            registry=registry,
        )
        self.processes = Gauge(
            "relay_processes", "Processes this relay is to consist of: 1, or its workers", registry=registry
        )
        self.in_flight = Gauge(
            "relay_in_flight", "Deliveries claimed by this process and not yet settled", registry=registry
        )
        self.clock_offset_seconds = Gauge(
            "relay_clock_offset_seconds",
            "How far this machine's clock is ahead of the shared database's, which counts; 0 on SQLite",
            registry=registry,
        )

    def render(self) -> bytes:
        """The Prometheus text format. Costs milliseconds: call it off the event loop."""
        return generate_latest(self.registry)

    def render_of_parent(self) -> bytes:
        """What is counted where no message ever gets to: by the parent of several processes."""
        return generate_latest(self.registry.restricted_registry([f"{_WORKER_RESTARTS}_total"]))


def depths(*, live: int | None, dead_letters: int | None, oldest_due_seconds: float) -> bytes:
    """What is known of the depths at this moment, in the Prometheus text format, to follow the rest.

    They are of the database, and nobody's to remember: what is not known is absent, since an old number
    could not be told from a new one.
    """
    registry = CollectorRegistry()
    for name, meaning, value in (
        ("relay_messages_live", "Messages stored and not finished", live),
        ("relay_dead_letters", "Dead letters stored", dead_letters),
        (
            "relay_oldest_due_seconds",
            "How long the longest-waiting due message has been waiting for a worker; 0 when none waits",
            oldest_due_seconds,
        ),
    ):
        if value is not None:
            Gauge(name, meaning, registry=registry).set(value)
    return generate_latest(registry)
