from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.program import line_writer
from server.program.line_writer import LineStream, LineWriter
from tests.command_line import files_of_at_most
from tests.waiting import wait_for

LINE = b"x" * 99 + b"\n"


def dropped_line(number: int) -> bytes:
    return b"dropped %d\n" % number


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "FLUSH_TIMEOUT_S", 30.0)
    monkeypatch.setattr(line_writer, "SLOW_FLUSH_TIMEOUT_S", 150.0)


def fill(pipe: int) -> None:
    """Leave no room in it."""
    os.set_blocking(pipe, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, b"\n" * size)
    os.set_blocking(pipe, True)


@contextlib.contextmanager
def piped() -> Iterator[tuple[LineWriter, int]]:
    """A writer to a pipe, and the end from which its lines can be read."""
    reading, writing = os.pipe()
    writer = LineWriter(writing, dropped_line)
    try:
        yield writer, reading
    finally:
        os.close(reading)  # what still waits cannot be written
        wait_for(lambda: writer._handled_bytes == writer._accepted_bytes)
        os.close(writing)


def numbered(number: int) -> bytes:
    return b"%098d\n" % number


def test_lines_come_in_the_order_in_which_they_were_given() -> None:
    with piped() as (writer, reading):
        for number in range(300):
            writer.write(numbered(number))
        writer.flush()
        assert os.read(reading, 65536) == b"".join(map(numbered, range(300)))
        assert writer.dropped == 0


def test_nobody_waits_for_a_reader_and_what_was_dropped_is_told_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "MAX_WAITING_BYTES", 100_000)
    with piped() as (writer, reading):
        fill(writer._file)
        for number in range(2000):  # more than wait
            writer.write(numbered(number))
            if writer.dropped:
                break
        for _ in range(9):
            writer.write(LINE)
        dropped = writer.dropped
        assert dropped == 10
        read = b""
        while b"dropped" not in read:
            read += os.read(reading, 65536)
        assert writer.dropped == dropped
        lines = read.lstrip(b"\n").splitlines(keepends=True)
        assert lines == [*map(numbered, range(number)), b"dropped 10\n"]
        writer.write(b"again\n")
        writer.flush()
        assert os.read(reading, 65536) == b"again\n"


def test_the_end_waits_for_a_reader_but_once_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "FLUSH_TIMEOUT_S", 0.1)
    with piped() as (writer, _):
        fill(writer._file)
        writer.write(LINE)
        looks: list[float] = []
        sleep = time.sleep

        def look(seconds: float) -> None:
            if seconds == line_writer._LOOK_INTERVAL_S:  # not another thread's
                looks.append(seconds)
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", look)
        for _ in range(5):
            writer.flush()
        assert sum(looks) <= 0.11


def test_the_end_waits_for_a_reader_who_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped() as (writer, reading):
        for number in range(2000):  # three times what a pipe holds
            writer.write(numbered(number))
        read, now_s = [b""], [0.0]

        def read_some(seconds: float) -> None:
            if seconds != line_writer._LOOK_INTERVAL_S:  # the writer's own pause
                return
            now_s[0] += 0.9 * line_writer.FLUSH_TIMEOUT_S
            handled = writer._handled_bytes
            read.append(os.read(reading, 60_000))
            all_bytes = writer._accepted_bytes
            wait_for(lambda: writer._handled_bytes > handled or handled == all_bytes)

        slow = SimpleNamespace(monotonic=lambda: now_s[0], sleep=read_some)
        monkeypatch.setattr(line_writer, "time", slow)
        writer.flush()
        assert writer._handled_bytes == writer._accepted_bytes
        read.append(os.read(reading, 65536))
        assert b"".join(read) == b"".join(map(numbered, range(2000)))


def test_a_full_disk_is_told_once_it_takes_lines_again(tmp_path: Path) -> None:
    file = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(file, dropped_line)
    for _ in range(3):
        writer.write(LINE)
    wait_for(lambda: writer.dropped == 3)
    place = tmp_path / "log"
    with place.open("wb") as now:
        os.dup2(now.fileno(), file)
    writer.write(b"again\n")
    writer.flush()
    os.close(file)
    assert place.read_bytes() == b"dropped 3\nagain\n"


def test_a_line_that_was_cut_is_ended_before_the_next_one(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        writer = LineWriter(log.fileno(), dropped_line)
        with files_of_at_most(len(LINE) // 2):
            writer.write(LINE)
            wait_for(lambda: writer.dropped == 1)
        writer.write(b"again\n")
        writer.flush()
    assert (tmp_path / "log").read_bytes() == LINE[:50] + b"\ndropped 1\nagain\n"


def test_a_pipe_that_others_made_non_blocking_gets_every_line() -> None:
    with piped() as (writer, reading):
        os.set_blocking(writer._file, False)
        for number in range(2000):
            writer.write(numbered(number))
        read = b""
        while len(read) < 2000 * 99:
            read += os.read(reading, 65536)
        assert read == b"".join(map(numbered, range(2000)))


class Interrupted(bytes):
    """A line in whose midst a signal comes: when the writer looks how long it is."""

    begun = False

    def __len__(self) -> int:
        if not self.begun:
            self.begun = True
            signal.raise_signal(signal.SIGALRM)
        return super().__len__()


def test_a_signals_handler_may_write_while_its_thread_writes() -> None:
    with piped() as (writer, reading):
        before = signal.signal(signal.SIGALRM, lambda *_: writer.write(b"signal\n"))
        try:
            writer.write(Interrupted(LINE))
        finally:
            signal.signal(signal.SIGALRM, before)
        writer.flush()
        lines = os.read(reading, 65536).splitlines(keepends=True)
        assert sorted(lines) == [b"signal\n", LINE]


def test_a_stream_gives_whole_lines_of_each_thread() -> None:
    with piped() as (writer, reading):
        stream = LineStream(writer, writer._file, "utf-8")

        def say(what: str) -> None:
            for _ in range(100):
                print("say", what, file=stream)  # in four pieces

        threads = [threading.Thread(target=say, args=(what,)) for what in ("ä\udcff", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.flush()
        lines = os.read(reading, 65536).decode().splitlines()
        assert sorted(lines) == ["say b"] * 100 + ["say ä\\udcff"] * 100
        assert stream.fileno() == writer._file
        assert stream.write("x" * 5) == 5
        assert stream.write("y" * 70_000) == 70_000  # not kept until it ends
        wait_for(lambda: writer._accepted_bytes >= 70_005)
        assert not stream.isatty()
