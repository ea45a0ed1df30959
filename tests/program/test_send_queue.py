from __future__ import annotations

from tests.slow_reader import SlowReader
from tests.waiting import wait_for


def test_what_the_other_end_has_no_room_for_is_counted_until_it_is_read() -> None:
    with SlowReader() as reader:
        assert 0 < reader.unread() <= reader.num_sent
        reader.read(reader.num_sent)
        wait_for(lambda: reader.unread() == 0, "the acknowledgement")
