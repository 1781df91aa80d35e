"""Fires due schedules: what a tick means is decided by `due_runs`, here it is made to happen.

A firing is one compare-and-set commit in storage: the messages, the record of the runs and the schedule's next
tick. Before it nothing has happened and after it the tick is dealt with, so a crash at any moment neither loses
nor doubles one, and any number of processes may try at once.
"""

import asyncio
from collections.abc import Callable

from relay.clock import Clock
from relay.domain.cron import Cron
from relay.domain.errors import RelayError, TooLarge, Unavailable
from relay.domain.message import Message, TenantId
from relay.domain.schedule import Run, RunOutcome, Schedule, due_runs, scheduled_messages
from relay.engine.outage import Outage
from relay.ids import Ids, text_of
from relay.log import Log
from relay.metrics import Metrics
from storage.protocol import DueSchedule, Firing, Schedules

#: The loop looks at storage at least this often: wake-ups may be missed, another process may have changed a
#: schedule, and the machine's clock may have jumped.
_POLL_MS = 15_000
#: Schedules read at once. Each brings its body along, so this bounds memory; their firings share commits.
_BATCH = 100
_FIRST_PAUSE_MS = 100
_LONGEST_PAUSE_MS = _POLL_MS

#: One schedule at one of its ticks.
_Occasion = tuple[TenantId, str, int, int | None]


class Scheduler:
    """The loop over the schedules of one database.

    Ticks up to `grace_ms` old may still be caught up on. One firing publishes bodies of at most `max_bytes` to the
    endpoints of a URL group. `random` gives numbers from 0 to 1, to spread the retries
    of several processes while storage is away. `last_progress_at` is when storage last answered this loop; one that
    is alive and well renews it every 15 seconds.
    """

    def __init__(
        self,
        storage: Schedules,
        *,
        clock: Clock,
        ids: Ids,
        log: Log,
        metrics: Metrics,
        grace_ms: int,
        max_bytes: int,
        random: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._ids = ids
        self._log = log
        self._metrics = metrics
        self._grace_ms = grace_ms
        self._max_bytes = max_bytes
        self._random = random
        self._wake = asyncio.Event()
        self._outage = Outage("scheduler", clock=clock, log=log)
        self.last_progress_at = clock.now()

    def poke(self) -> None:
        """A schedule was created, changed or resumed: its next tick may be earlier than what is waited for."""
        self._wake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Fire what is due until `stopping` is set; the batch in hand is finished."""
        stop_watch = asyncio.create_task(self._wake_at(stopping))
        failures = 0
        try:
            while not stopping.is_set():
                self._wake.clear()
                try:
                    next_at = await self._fire_due(stopping)
                    failures = 0
                    self._outage.over()
                    poll_at = self._clock.now() + _POLL_MS
                    until = poll_at if next_at is None else min(next_at, poll_at)
                except Exception as reason:
                    failures += 1
                    until = self._clock.now() + self._pause_ms(failures)
                    self._report_trouble(reason)
                await self._clock.wait(self._wake, until)
        finally:
            stop_watch.cancel()

    async def _wake_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._wake.set()

    async def _fire_due(self, stopping: asyncio.Event) -> int | None:
        """Fire everything that is due; returns the earliest tick of all that is not."""
        # What could not be advanced stays due. It is left for the next look.
        left: set[_Occasion] = set()
        limit = _BATCH
        while True:
            now = self._clock.now()
            due, next_at = await self._storage.due_schedules(now=now, limit=limit)
            self.last_progress_at = self._clock.now()
            if stopping.is_set():
                return next_at
            fresh = [entry for entry in due if _occasion(entry.schedule) not in left]
            if fresh:
                left |= await self._fire_batch(fresh, now)
            elif next_at is None or next_at > now:
                return next_at
            else:
                limit *= 2  # more is due, hidden behind what is left

    async def _fire_batch(self, due: list[DueSchedule], now: int) -> set[_Occasion]:
        """Fire each on its own, all at once; returns those that were not advanced here. Raises `Unavailable` when
        storage was away for any of them, after all have been tried."""
        attempts = []
        async with asyncio.TaskGroup() as group:
            for entry in due:
                firing = self._decide(entry, now)
                attempts.append(group.create_task(self._try(firing, now)))
                # Let deliveries go on between decisions: one that catches up on a long absence takes milliseconds.
                await asyncio.sleep(0)
        outcomes = [attempt.result() for attempt in attempts]
        for outcome in outcomes:
            if isinstance(outcome, Unavailable):
                raise outcome
        return {
            _occasion(entry.schedule)
            for entry, outcome in zip(due, outcomes, strict=True)
            if outcome is not True
        }

    def _decide(self, due: DueSchedule, now: int) -> Firing:
        """What to write about a schedule. A schedule that cannot be decided about gets a failed run: it is advanced
        like any other, so that it neither blocks the others nor comes back at once."""
        schedule = due.schedule
        next_at = None
        try:
            if due.disabled:
                # Like those of a pause, its ticks are over when it goes on.
                next_at = Cron.parse(schedule.cron).next_after(now)
                return Firing(schedule=schedule, runs=(), messages=(), next_at=next_at, error=schedule.error)
            plan = due_runs(schedule, now=now, grace_ms=self._grace_ms, in_progress=due.in_progress)
            next_at = plan.next_at
            runs = list(plan.skips)  # all of them older than any tick to run
            messages: list[Message] = []
            # A skip says nothing about the run before it: its error stands until a run succeeds.
            error = schedule.error
            for tick_at in plan.ticks:
                fresh, error = self._messages(due, now, held=len(messages))
                messages += fresh
                runs.append(
                    Run(
                        tick_at=tick_at,
                        fired_at=now,
                        outcome=RunOutcome.FIRED if fresh else RunOutcome.FAILED,
                        message_ids=tuple(message.id for message in fresh),
                    )
                )
            return Firing(
                schedule=schedule,
                runs=tuple(runs),
                messages=tuple(messages),
                next_at=next_at,
                error=error,
            )
        except Exception as bug:
            return self._failure(schedule, bug, next_at=next_at, now=now)

    def _messages(self, due: DueSchedule, now: int, *, held: int) -> tuple[tuple[Message, ...], str | None]:
        """What one tick publishes beside the `held` messages of earlier ones, or why it publishes nothing."""
        schedule = due.schedule
        try:
            fresh = scheduled_messages(schedule, group=due.group, next_id=self._ids.next, now=now)
            if due.group is not None:
                bytes_ = (held + len(fresh)) * len(schedule.draft.request.body)
                if bytes_ > self._max_bytes:
                    raise TooLarge(f"the body, once for each endpoint of {due.group.name},", self._max_bytes)
        except RelayError as refusal:
            return (), str(refusal)
        return fresh, None

    def _failure(self, schedule: Schedule, bug: Exception, *, next_at: int | None, now: int) -> Firing:
        self._log.error("schedule.broke", exc=bug, schedule=schedule.id, tenant=schedule.tenant)
        reason = f": {bug}" if isinstance(bug, ValueError) else f" ({type(bug).__name__})"
        assert schedule.next_at is not None
        run = Run(tick_at=schedule.next_at, fired_at=now, outcome=RunOutcome.FAILED)
        return Firing(
            schedule=schedule,
            runs=(run,),
            messages=(),
            next_at=next_at,
            error=f"this schedule could not be run{reason}",
        )

    async def _try(self, firing: Firing, now: int) -> bool | Unavailable:
        """Write a firing, or that it failed. False: another process was first, the schedule has changed, or storage
        will take nothing about it at all."""
        try:
            try:
                won = await self._storage.fire(firing, now=now)
            except Unavailable:
                raise
            except Exception as bug:
                firing = self._failure(firing.schedule, bug, next_at=firing.next_at, now=now)
                won = await self._storage.fire(firing, now=now)
        except Unavailable as reason:
            return reason
        except Exception as bug:
            self._log.error(
                "schedule.stuck", exc=bug, schedule=firing.schedule.id, tenant=firing.schedule.tenant
            )
            return False
        if won:
            self._report(firing, now)
        return won

    def _report(self, firing: Firing, now: int) -> None:
        schedule = firing.schedule
        counts = dict.fromkeys(("fired", "skipped", "failed"), 0)
        for run in firing.runs:
            counts[run.outcome.name.partition("_")[0].lower()] += 1
        for outcome, count in counts.items():
            if count:
                self._metrics.schedule_runs.labels(outcome).inc(count)
        self._metrics.published.inc(len(firing.messages))
        (self._log.warning if firing.error else self._log.info)(
            "schedule.fired" if firing.messages else "schedule.advanced",
            schedule=schedule.id,
            tenant=schedule.tenant,
            **counts,
            late_ms=now - firing.runs[-1].tick_at if firing.runs else None,
            messages=[text_of("msg_", message.id) for message in firing.messages],
            next_at=firing.next_at,
            error=firing.error,
        )

    def _report_trouble(self, reason: Exception) -> None:
        if isinstance(reason, Unavailable):
            self._metrics.storage_errors.labels("schedules").inc()
            self._outage.met(reason)
        else:
            self._log.error("scheduler.failed", exc=reason)

    def _pause_ms(self, failures: int) -> int:
        """Before the next look after that many failures in a row: doubling, bounded, and spread over its half."""
        longest_ms = min(_FIRST_PAUSE_MS << min(failures - 1, 16), _LONGEST_PAUSE_MS)
        return int(longest_ms * (0.5 + self._random() / 2))


def _occasion(schedule: Schedule) -> _Occasion:
    return (schedule.tenant, schedule.id, schedule.revision, schedule.next_at)
