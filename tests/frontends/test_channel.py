from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ApiError, Draining, Overloaded
from server.frontends.channel import (
    HEAD,
    MAX_CONTENT_BYTES,
    BadFrame,
    Channel,
    Frame,
    FrameReader,
    Kind,
    Parts,
    frame,
    receive_frame,
)

FRAMES = st.lists(
    st.builds(
        Frame, st.sampled_from(list(Kind)), st.integers(0, 2**32 - 1), st.binary(max_size=300)
    ),
    max_size=8,
)


def written(frames: list[Frame]) -> bytes:
    return b"".join(
        part for kind, request, content in frames for part in frame(kind, request, (content,))
    )


class TestFrames:
    @given(FRAMES, st.data())
    def test_however_the_stream_is_cut_the_same_frames_come_out(
        self, frames: list[Frame], data: st.DataObject
    ) -> None:
        stream = written(frames)
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
        reader = FrameReader()
        found = [
            one
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
            for one in reader.feed(stream[start:end])
        ]
        assert found == frames

    def test_a_frame_comes_out_as_soon_as_it_is_whole(self) -> None:
        stream = written([Frame(Kind.DONE, 1, b"abc")])
        reader = FrameReader()
        for number in range(len(stream) - 1):
            assert list(reader.feed(stream[number : number + 1])) == []
        assert list(reader.feed(stream[-1:])) == [Frame(Kind.DONE, 1, b"abc")]

    @pytest.mark.parametrize(
        "head", [HEAD.pack(MAX_CONTENT_BYTES + 1, Kind.DONE, 0), HEAD.pack(0, 255, 0)]
    )
    @pytest.mark.parametrize("cut", [0, 1, HEAD.size - 1])
    def test_what_is_too_long_or_of_no_kind_is_refused_by_its_head(
        self, head: bytes, cut: int
    ) -> None:
        reader = FrameReader()
        assert list(reader.feed(head[:cut])) == []
        with pytest.raises(BadFrame):
            list(reader.feed(head[cut:]))

    def test_one_frame_is_received_without_a_loop_and_what_follows_is_left(self) -> None:
        here, there = socket.socketpair()
        with here, there:
            there.sendall(written([Frame(Kind.WELCOME, 0, b"x" * 5000), Frame(Kind.STATE, 0, b"")]))
            assert receive_frame(here) == Frame(Kind.WELCOME, 0, b"x" * 5000)
            assert receive_frame(here) == Frame(Kind.STATE, 0, b"")
            there.sendall(written([Frame(Kind.WELCOME, 0, b"xyz")])[:-1])
            there.shutdown(socket.SHUT_WR)
            assert receive_frame(here) is None


class End:
    """One end of a channel; answers with what it is asked, unless told to do something else."""

    def __init__(self, stream: socket.socket) -> None:
        self.channel = Channel(stream, self.answer, self.hear, self.lose)
        self.heard: list[tuple[Kind, bytes]] = []
        self.lost = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.asked = asyncio.Event()
        self.does: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, kind: Kind, content: bytes) -> Parts:
        self.asked.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.does()
        return (content, memoryview(content))

    def hear(self, kind: Kind, content: bytes) -> None:
        self.heard.append((kind, content))

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
        contents = [bytes([n]) * (n * 5_000) for n in range(1, 100)]
        for asking in (here, there):
            answers = asyncio.gather(*(asking.channel.ask(Kind.EMBED, one) for one in contents))
            assert await answers == [one + one for one in contents]

    async def test_a_question_asked_before_the_channel_is_open_is_answered(self) -> None:
        here, there = (End(stream) for stream in socket.socketpair())
        answer = asyncio.create_task(here.channel.ask(Kind.LOOK, b"x"))
        await asyncio.sleep(0)
        await here.channel.open()
        await there.channel.open()
        assert await answer == b"xx"
        there.channel.abort()
        await soon(here.lost)

    async def test_answers_may_come_in_another_order(self, ends: Ends) -> None:
        here, there = ends
        there.gate.clear()
        slow = asyncio.create_task(here.channel.ask(Kind.EMBED, b"slow"))
        await soon(there.asked)
        first_gate, there.gate = there.gate, asyncio.Event()
        there.gate.set()
        assert await here.channel.ask(Kind.EMBED, b"fast") == b"fastfast"
        assert not slow.done()
        first_gate.set()
        assert await slow == b"slowslow"

    async def test_who_is_cancelled_takes_the_question_back(self, ends: Ends) -> None:
        here, there = ends
        there.gate.clear()
        asking = asyncio.create_task(here.channel.ask(Kind.EMBED, b"x"))
        await soon(there.asked)
        asking.cancel()
        await soon(there.cancelled)
        there.gate.set()
        assert await here.channel.ask(Kind.EMBED, b"y") == b"yy"

    async def test_an_error_of_ours_crosses_as_it_is(self, ends: Ends) -> None:
        here, there = ends

        def overloaded() -> None:
            raise Overloaded("much", retry_after_s=17)

        there.does = overloaded
        with pytest.raises(Overloaded) as caught:
            await here.channel.ask(Kind.EMBED)
        assert caught.value.headers == {"Retry-After": "17"}

    async def test_any_other_error_is_a_500_that_tells_nothing(
        self, ends: Ends, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = ends
        there.does = lambda: 1 / 0  # type: ignore[assignment]
        with pytest.raises(ApiError) as caught:
            await here.channel.ask(Kind.EMBED)
        assert (type(caught.value), "division" in caught.value.message) == (ApiError, False)
        assert "ZeroDivisionError" in caplog.text
        there.does = lambda: None
        assert await here.channel.ask(Kind.EMBED, b"x") == b"xx"

    async def test_what_is_told_is_heard_in_order(self, ends: Ends) -> None:
        here, there = ends
        for content in (b"1", b"2", b"3"):
            here.channel.tell(Kind.STATE, content)
        await here.channel.ask(Kind.LOOK)
        assert there.heard == [(Kind.STATE, b"1"), (Kind.STATE, b"2"), (Kind.STATE, b"3")]

    async def test_the_end_of_the_channel_ends_all_questions(self, ends: Ends) -> None:
        here, there = ends
        there.gate.clear()
        asking = asyncio.create_task(here.channel.ask(Kind.EMBED))
        await soon(there.asked)
        here.channel.abort()
        with pytest.raises(Draining):
            await asking
        await soon(there.cancelled)
        await soon(there.lost)
        with pytest.raises(Draining):
            await here.channel.ask(Kind.EMBED)

    async def test_a_bad_frame_ends_the_channel_and_nothing_else(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream, far = socket.socketpair()
        end = End(stream)
        await end.channel.open()
        end.gate.clear()
        far.sendall(written([Frame(Kind.EMBED, 7, b"x")]) + HEAD.pack(2**32 - 1, Kind.DONE, 1))
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
            await here.channel.ask(Kind.EMBED)
        await soon(there.lost)

    async def test_an_answer_nobody_waits_for_does_no_harm(self) -> None:
        stream, far = socket.socketpair()
        end = End(stream)
        await end.channel.open()
        answers = [Frame(Kind.DONE, 9, b""), Frame(Kind.FAILED, 9, b""), Frame(Kind.CANCEL, 9, b"")]
        far.sendall(written([*answers, Frame(Kind.EMBED, 1, b"x")]))
        far.setblocking(False)
        expected = written([Frame(Kind.DONE, 1, b"xx")])
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(far, 1000), 10) == expected
        far.close()
        await soon(end.lost)
