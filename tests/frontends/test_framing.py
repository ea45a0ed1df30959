from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.frontends.framing import (
    HEAD,
    MAX_CONTENT_BYTES,
    BadFrame,
    Frame,
    FrameReader,
    Kind,
    head_of,
    receive_frame,
)

FRAMES = st.lists(
    st.builds(
        Frame, st.sampled_from(list(Kind)), st.integers(0, 2**32 - 1), st.binary(max_size=300)
    ),
    max_size=8,
)


def written(frames: list[Frame]) -> bytes:
    return b"".join(head_of(*frame) + frame.content for frame in frames)


@given(FRAMES, st.data())
def test_however_the_stream_is_cut_the_same_frames_come_out(
    frames: list[Frame], data: st.DataObject
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


def test_a_frame_comes_out_as_soon_as_it_is_whole() -> None:
    stream = written([Frame(Kind.ANSWER, 1, b"abc")])
    reader = FrameReader()
    for number in range(len(stream) - 1):
        assert list(reader.feed(stream[number : number + 1])) == []
    assert list(reader.feed(stream[-1:])) == [Frame(Kind.ANSWER, 1, b"abc")]


@pytest.mark.parametrize(
    "head", [HEAD.pack(MAX_CONTENT_BYTES + 1, Kind.ANSWER, 0), HEAD.pack(0, 255, 0)]
)
@pytest.mark.parametrize("cut", [0, 1, HEAD.size - 1])
def test_what_is_too_long_or_of_no_kind_is_refused_by_its_head(head: bytes, cut: int) -> None:
    reader = FrameReader()
    assert list(reader.feed(head[:cut])) == []
    with pytest.raises(BadFrame):
        list(reader.feed(head[cut:]))


def test_one_frame_is_received_without_a_loop_and_what_follows_is_left() -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(written([Frame(Kind.TELL, 0, b"x" * 5000), Frame(Kind.TELL, 0, b"")]))
        assert receive_frame(here) == Frame(Kind.TELL, 0, b"x" * 5000)
        assert receive_frame(here) == Frame(Kind.TELL, 0, b"")
        there.sendall(written([Frame(Kind.TELL, 0, b"xyz")])[:-1])
        there.shutdown(socket.SHUT_WR)
        assert receive_frame(here) is None
