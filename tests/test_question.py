"""Who asks storage something is answered in time, whatever storage does, and never asks twice at once."""

import asyncio

import pytest

from relay.clock import FakeClock
from relay.domain.errors import Unavailable
from relay.question import Question

NOW = 1_800_000_000_000


class Oracle:
    """Storage that answers when it is told to, with a number or a refusal."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.calls: list[asyncio.Future[int]] = []
        self.question = Question(self._ask, clock=self.clock, patience_ms=1_500)

    async def _ask(self) -> int:
        self.calls.append(asyncio.get_running_loop().create_future())
        return await self.calls[-1]

    async def asked(self) -> "asyncio.Task[int]":
        task = asyncio.create_task(self.question.answer())
        await _turns()
        return task


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_storage_says_in_time_is_the_answer() -> None:
    oracle = Oracle()
    task = await oracle.asked()
    oracle.calls[0].set_result(7)
    assert await task == 7


async def test_silence_is_told_when_patience_is_over_and_not_before() -> None:
    oracle = Oracle()
    task = await oracle.asked()
    oracle.clock.advance(1_499)
    await _turns()
    assert not task.done()
    oracle.clock.advance(1)
    with pytest.raises(Unavailable, match=r"^it does not answer$"):
        await task
    await oracle.question.drop()


async def test_who_asks_while_storage_is_silent_waits_for_the_same_call() -> None:
    oracle = Oracle()
    first = await oracle.asked()
    oracle.clock.advance(3_000)
    with pytest.raises(Unavailable):
        await first
    second, third = await oracle.asked(), await oracle.asked()
    assert len(oracle.calls) == 1
    oracle.calls[0].set_result(7)
    assert [await second, await third] == [7, 7]


async def test_every_question_after_an_answer_is_a_new_one() -> None:
    oracle = Oracle()
    for number in (1, 2):
        task = await oracle.asked()
        oracle.calls[-1].set_result(number)
        assert await task == number


async def test_a_refusal_is_told_as_it_is_and_again_with_the_silence_that_follows() -> None:
    oracle = Oracle()
    task = await oracle.asked()
    oracle.calls[0].set_exception(Unavailable("the database is locked"))
    with pytest.raises(Unavailable, match=r"^the database is locked$"):
        await task
    task = await oracle.asked()
    oracle.clock.advance(2_000)
    with pytest.raises(Unavailable, match=r"^it does not answer; before that: the database is locked$"):
        await task
    await oracle.question.drop()


async def test_a_refusal_is_forgotten_with_the_next_answer() -> None:
    oracle = Oracle()
    task = await oracle.asked()
    oracle.calls[0].set_exception(Unavailable("the database is locked"))
    with pytest.raises(Unavailable):
        await task
    task = await oracle.asked()
    oracle.calls[1].set_result(7)
    await task
    task = await oracle.asked()
    oracle.clock.advance(2_000)
    with pytest.raises(Unavailable, match=r"^it does not answer$"):
        await task
    await oracle.question.drop()


async def test_how_it_ended_of_late_can_be_read_without_asking_again() -> None:
    oracle = Oracle()
    assert oracle.question.problem(within_ms=5_000) is None
    task = await oracle.asked()
    oracle.calls[0].set_exception(Unavailable("the database is locked"))
    with pytest.raises(Unavailable):
        await task
    oracle.clock.advance(4_999)
    assert oracle.question.problem(within_ms=5_000) == "the database is locked"
    oracle.clock.advance(1)
    assert oracle.question.problem(within_ms=5_000) is None
    assert len(oracle.calls) == 1


async def test_a_call_that_is_dropped_is_over() -> None:
    oracle = Oracle()
    task = await oracle.asked()
    oracle.clock.advance(2_000)
    with pytest.raises(Unavailable):
        await task
    await oracle.question.drop()
    assert oracle.calls[0].cancelled()
    task = await oracle.asked()
    oracle.calls[1].set_result(7)
    assert await task == 7
