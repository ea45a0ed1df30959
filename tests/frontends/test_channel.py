from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from server.access.counters import Taken
from server.errors import ApiError, Draining, Overloaded
from server.frontends.channel import Channel
from server.frontends.framing import HEAD, BadFrame, Kind, head_of
from server.frontends.messages import (
    CannotStart,
    Message,
    Question,
    Ready,
    SamplesOfOthers,
    TakeIfFits,
)
from server.frontends.wire import write
from tests.panics import panic


def framed(kind: Kind, request: int, content: bytes = b"") -> bytes:
    return head_of(kind, request, content) + content


class End:
    """One end of a channel; counts twice what it is asked, unless told to do something else."""

    def __init__(self, stream: socket.socket) -> None:
        self.channel = Channel(stream, self.answer, self.hear, self.lose)
        self.heard: list[Message] = []
        self.lost = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.why: tuple[object, ...] = ()  # it was cancelled
        self.asked = asyncio.Event()
        self.does: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, question: Question[Any]) -> object:
        self.asked.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError as error:
            self.cancelled.set()
            self.why = error.args
            raise
        self.does()
        if isinstance(question, TakeIfFits):
            return Taken(True, 2 * question.amount, float(len(question.name)))
        return "no counter"

    def hear(self, message: Message) -> None:
        self.heard.append(message)

    def lose(self) -> None:
        self.lost.set()


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    here, there = (End(stream) for stream in socket.socketpair())
    await here.channel.open()
    await there.channel.open()
    yield here, there
    here.channel.abort()
    there.channel.abort()
    await asyncio.gather(here.lost.wait(), there.lost.wait())


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 10)


Ends = tuple[End, End]


class TestChannel:
    async def test_many_questions_of_both_ends_are_answered_at_once(self, ends: Ends) -> None:
        here, there = ends
        for asking in (here, there):
            questions = [TakeIfFits("x" * (n * 5_000), n, 0) for n in range(1, 100)]
            answers = asyncio.gather(*map(asking.channel.ask, questions))
            assert await answers == [(True, 2 * n, n * 5_000) for n in range(1, 100)]
        await asyncio.sleep(0)
        assert here.channel.open_questions == there.channel.open_questions == 0

    async def test_a_question_asked_before_the_channel_is_open_is_answered(self) -> None:
        here, there = (End(stream) for stream in socket.socketpair())
        answer = asyncio.create_task(here.channel.ask(TakeIfFits("", 1, 0)))
        await asyncio.sleep(0)
        await here.channel.open()
        await there.channel.open()
        assert (await answer).held == 2
        there.channel.abort()
        await soon(here.lost)

    async def test_answers_may_come_in_another_order(self, ends: Ends) -> None:
        here, there = ends
        there.gate.clear()
        slow = asyncio.create_task(here.channel.ask(TakeIfFits("", 7, 0)))
        await soon(there.asked)
        first_gate, there.gate = there.gate, asyncio.Event()
        there.gate.set()
        assert (await here.channel.ask(TakeIfFits("", 5, 0))).held == 10
        assert not slow.done()
        first_gate.set()
        assert (await slow).held == 14

    @pytest.mark.parametrize("why", ["the client has left", None])
    async def test_who_is_cancelled_takes_the_question_back(
        self, ends: Ends, why: str | None
    ) -> None:
        here, there = ends
        there.gate.clear()
        asking = asyncio.create_task(here.channel.ask(TakeIfFits("", 1, 0)))
        await soon(there.asked)
        asking.cancel(why)
        await soon(there.cancelled)
        assert there.why == ((why,) if why else ())
        there.gate.set()
        assert (await here.channel.ask(TakeIfFits("", 2, 0))).held == 4

    async def test_an_error_of_ours_crosses_as_it_is(self, ends: Ends) -> None:
        here, there = ends

        def overloaded() -> None:
            raise Overloaded("much", retry_after_s=17)

        there.does = overloaded
        with pytest.raises(Overloaded) as caught:
            await here.channel.ask(TakeIfFits("", 1, 0))
        assert caught.value.headers == {"Retry-After": "17"}

    @pytest.mark.parametrize(
        ("fail", "name"), [(lambda: 1 / 0, "ZeroDivisionError"), (panic, "PanicException")]
    )
    async def test_any_other_error_is_a_500_that_tells_nothing(
        self, ends: Ends, caplog: pytest.LogCaptureFixture, fail: Callable[[], None], name: str
    ) -> None:
        here, there = ends
        there.does = fail
        with pytest.raises(ApiError, match="failed unexpectedly") as caught:
            await asyncio.wait_for(here.channel.ask(TakeIfFits("", 1, 0)), 10)
        assert type(caught.value) is ApiError
        assert name in caplog.text
        there.does = lambda: None
        assert (await here.channel.ask(TakeIfFits("", 1, 0))).held == 2

    async def test_what_is_told_is_heard_in_order(self, ends: Ends) -> None:
        here, there = ends
        told = [CannotStart("1"), Ready(), CannotStart("3")]
        for message in told:
            here.channel.tell(message)
        await here.channel.ask(TakeIfFits("", 1, 0))
        assert there.heard == told

    async def test_the_end_of_the_channel_ends_all_questions(self, ends: Ends) -> None:
        here, there = ends
        there.gate.clear()
        asking = asyncio.create_task(here.channel.ask(TakeIfFits("", 1, 0)))
        await soon(there.asked)
        here.channel.abort()
        with pytest.raises(Draining):
            await asking
        await soon(there.cancelled)
        assert there.why == ()
        await soon(there.lost)
        with pytest.raises(Draining):
            await here.channel.ask(TakeIfFits("", 1, 0))

    async def test_a_bad_frame_ends_the_channel_and_nothing_else(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream, far = socket.socketpair()
        end = End(stream)
        await end.channel.open()
        end.gate.clear()
        question = framed(Kind.ASK, 7, write(TakeIfFits("", 1, 0)))
        far.sendall(question + HEAD.pack(2**32 - 1, Kind.ANSWER, 1))
        await soon(end.lost)
        await soon(end.cancelled)
        assert "the other process sent a frame of 4294967295 bytes" in caplog.text
        far.close()

    async def test_a_question_that_cannot_be_read_ends_the_channel(
        self, ends: Ends, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = ends

        def bad() -> None:
            raise BadFrame("nonsense")

        there.does = bad
        with pytest.raises(Draining):
            await here.channel.ask(TakeIfFits("", 1, 0))
        await soon(there.lost)

    async def test_an_answer_nobody_waits_for_does_no_harm(self) -> None:
        stream, far = socket.socketpair()
        end = End(stream)
        await end.channel.open()
        for kind in (Kind.ANSWER, Kind.FAILURE, Kind.CANCEL):
            far.sendall(framed(kind, 9))
        far.sendall(framed(Kind.ASK, 1, write(TakeIfFits("", 1, 0))))
        far.setblocking(False)
        expected = framed(Kind.ANSWER, 1, write(Taken(True, 2, 0.0)))
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(far, 1000), 10) == expected
        far.close()
        await soon(end.lost)

    async def test_an_answer_of_another_type_ends_the_channel_and_the_question(
        self, ends: Ends, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, _ = ends
        with pytest.raises(Draining):
            await here.channel.ask(SamplesOfOthers())
        await soon(here.lost)
        assert "a message that cannot be read" in caplog.text

    @pytest.mark.parametrize(
        ("kind", "content"),
        [
            (Kind.TELL, b""),
            (Kind.TELL, write(TakeIfFits("", 1, 0))[:-1]),
            (Kind.ASK, b"nonsense"),
            (Kind.ASK, write(Ready())),  # which is no question
        ],
    )
    async def test_what_is_no_message_ends_the_channel(self, kind: Kind, content: bytes) -> None:
        stream, far = socket.socketpair()
        end = End(stream)
        await end.channel.open()
        far.sendall(framed(kind, 1, content) + framed(Kind.TELL, 0, write(Ready())))
        await soon(end.lost)
        assert end.heard == []
        far.close()

    async def test_a_question_taken_back_before_it_began_leaves_nothing(self) -> None:
        stream, far = socket.socketpair()
        end = End(stream)
        await end.channel.open()
        question = framed(Kind.ASK, 7, write(TakeIfFits("", 1, 0)))
        far.sendall(question + framed(Kind.CANCEL, 7) + framed(Kind.TELL, 0, write(Ready())))
        async with asyncio.timeout(10):
            while not end.heard:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not end.asked.is_set()
        assert len(asyncio.all_tasks()) == 1
        assert end.channel.open_questions == 0
        far.close()
        await soon(end.lost)
