"""What lies in connections is counted, and given back."""

from __future__ import annotations

from server.http.waiting_room import HEADER_BYTES, SHARE, WaitingRoom, head_bytes
from server.settings import Settings

MIB = 1024 * 1024


def test_there_is_room_until_it_is_full_and_again_when_something_goes() -> None:
    room = WaitingRoom(100)
    assert room.change(0, 60)
    assert not room.change(0, 41)
    assert room.held_bytes == 60  # what was refused holds nothing
    assert room.change(60, 50)
    assert room.change(0, 41)
    assert room.change(41, 0)
    assert room.held_bytes == 50


def test_whoever_wants_less_is_never_refused() -> None:
    room = WaitingRoom(100)
    assert room.change(0, 100)
    assert room.change(100, 100)
    assert room.change(100, 99)


def test_front_ends_share_a_part_of_the_requests_memory() -> None:
    room = WaitingRoom.of(Settings(max_memory_bytes=64 * MIB, frontends=2))
    assert room.change(0, 64 * MIB // SHARE // 2)
    assert not room.change(0, 1)


def test_a_head_is_more_than_its_text() -> None:
    assert head_bytes([(b"a", b"bc"), (b"", b"")]) == 3 + 2 * HEADER_BYTES
