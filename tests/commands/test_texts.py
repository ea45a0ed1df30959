"""`embed` and `dimensions` as a user's shell runs them, with the real model."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import pytest

from server.catalog.card import Card
from server.inference.matryoshka import shorten
from server.offline.outputs import format_of
from server.offline.texts import WINDOW_TEXTS
from tests.command_line import (
    PATIENCE_S,
    Outcome,
    assert_mistake,
    end,
    files_of_at_most,
    interruptible,
    run,
    start,
    user_environment,
)
from tests.conftest import MATRYOSHKA, PLAIN

WORDS = (
    "a",
    "cat",
    "sat",
    "on",
    "the",
    "warm",
    "red",
    "mat",
    "while",
    "rain",
    "fell",
    "over",
    "town",
)
LONG_TEXTS = 2 * WINDOW_TEXTS + 100


def write_texts(path: Path, count: int, *, most_words: int = 24) -> list[str]:
    """Texts of 3 and more words, the same in every run."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, most_words))) for _ in range(count)]
    path.write_text("\n".join(texts) + "\n")
    return texts


def wait_for_checkpoint(output: Path, running: subprocess.Popen[bytes], texts: int) -> None:
    """Until so many texts are on disk for good."""
    checkpoint = output.with_name(output.name + ".checkpoint")
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        assert running.poll() is None, running.stderr and running.stderr.read()
        if checkpoint.exists() and json.loads(checkpoint.read_text())["input"]["texts"] >= texts:
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")


def wait_until_read(pipe: IO[bytes]) -> None:
    """Until whoever reads at the other end has all that was written."""
    deadline_s = time.monotonic() + PATIENCE_S
    while fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "long.txt"
    write_texts(path, LONG_TEXTS, most_words=5)
    return path


@pytest.fixture(scope="module")
def whole(long_input: Path) -> Path:
    """What one uninterrupted run makes of it."""
    output = long_input.with_name("whole.npy")
    outcome = run("embed", long_input, "-o", output, "--dimensions", "64")
    assert outcome.exit_code == 0, outcome.stderr
    return output


@pytest.fixture(scope="module")
def interrupt(long_input: Path) -> Callable[[Path], None]:
    """Puts in an output's place what a run that was killed on its way has left of such a one."""

    @functools.cache
    def killed(suffix: str) -> Path:
        output = long_input.with_name(f"killed{suffix}")
        with start("embed", long_input, "--dimensions", "64", "-o", output) as running:
            wait_for_checkpoint(output, running, WINDOW_TEXTS)
            end(running, signal.SIGKILL)
        assert not output.exists()
        return output

    def leave(output: Path) -> None:
        original = killed(output.suffix)
        for left in original.parent.glob(f"{original.name}.*"):
            shutil.copy(left, output.with_name(output.name + left.suffix))

    return leave


class TestVectors:
    @pytest.mark.parametrize("model", [PLAIN, MATRYOSHKA])
    @pytest.mark.server
    def test_they_are_those_that_the_server_answers(
        self, http: httpx.Client, tmp_path: Path, model: str
    ) -> None:
        texts = write_texts(tmp_path / "a.txt", 100)
        outcome = run("embed", tmp_path / "a.txt", "-o", tmp_path / "a.npy", "--model", model)
        assert outcome.exit_code == 0, outcome.stderr
        body = {"model": model, "input": texts}
        rows = http.post("/v1/embeddings", json=body).json()["data"]
        served = np.array([row["embedding"] for row in rows])
        vectors = np.load(tmp_path / "a.npy")
        assert (vectors.shape, vectors.dtype) == ((100, 384), np.float32)
        assert np.abs(vectors - served).max() < 1e-5

    @pytest.mark.slow
    def test_every_format_holds_the_same(self, tmp_path: Path) -> None:
        import pyarrow.parquet as pq

        write_texts(tmp_path / "a.txt", 20)
        for suffix in ("npy", "jsonl", "parquet"):
            run("embed", tmp_path / "a.txt", "-o", tmp_path / f"a.{suffix}", "--dimensions=8")
        piped = run("embed", tmp_path / "a.txt", "--dimensions=8")
        vectors = np.load(tmp_path / "a.npy").tolist()
        assert len(vectors) == 20
        lines = [json.loads(line) for line in piped.stdout.splitlines()]
        assert [line["index"] for line in lines] == list(range(20))
        np.testing.assert_allclose([line["embedding"] for line in lines], vectors, rtol=1e-6)
        assert (tmp_path / "a.jsonl").read_text() == piped.stdout
        table = pq.read_table(tmp_path / "a.parquet")
        assert table.column("embedding").to_pylist() == vectors

    def test_any_prompt_of_the_model_can_be_put_in_front(
        self, plain_card: Card, tmp_path: Path
    ) -> None:
        models = tmp_path / "models"
        (models / "prompted").mkdir(parents=True)
        (models / PLAIN).symlink_to(plain_card.folder)
        card = f'name = "prompted"\nbase = "{PLAIN}"\nprompts = {{ "text-matching" = "like: " }}\n'
        (models / "prompted" / "card.toml").write_text(card)
        (tmp_path / "a.txt").write_text("fox\n")
        (tmp_path / "b.txt").write_text("like: fox\n")
        flags = ("--models-dir", models, "--dimensions=384")
        asked = run("embed", tmp_path / "a.txt", *flags, "--model=prompted", "--input-type=STS")
        by_hand = run("embed", tmp_path / "b.txt", *flags, f"--model={PLAIN}")
        assert asked.exit_code == 0, asked.stderr
        assert asked.stdout == by_hand.stdout

    def test_fewer_dimensions_are_the_front_of_more(self, tmp_path: Path) -> None:
        write_texts(tmp_path / "a.txt", 5)
        for size in (384, 32):
            run("embed", tmp_path / "a.txt", "-o", tmp_path / f"{size}.npy",
                    f"--dimensions={size}")  # fmt: skip
        expected = shorten(np.load(tmp_path / "384.npy"), 32, None)
        np.testing.assert_allclose(np.load(tmp_path / "32.npy"), expected, atol=1e-6)

    def test_a_model_that_is_centred_before_the_cut_is_cut_as_the_server_does(
        self, plain_card: Card, tmp_path: Path
    ) -> None:
        folder = tmp_path / "models" / PLAIN
        folder.mkdir(parents=True)
        for file in plain_card.files:
            (folder / file).symlink_to(plain_card.path(file))
        card = (plain_card.folder / "card.toml").read_text()
        matryoshka = "matryoshka = { dimensions = [384, 64], layer_norm = true }\n"
        (folder / "card.toml").write_text(matryoshka + card)
        write_texts(tmp_path / "a.txt", 20)
        flags = (tmp_path / "a.txt", "--models-dir", folder.parent, "--model", PLAIN)
        for size in (384, 64):
            outcome = run("embed", *flags, "-o", tmp_path / f"{size}.npy", f"--dimensions={size}")
            assert outcome.exit_code == 0, outcome.stderr
        expected = shorten(np.load(tmp_path / "384.npy"), 64, None, layer_norm=True)
        np.testing.assert_allclose(np.load(tmp_path / "64.npy"), expected, atol=1e-6)

    def test_the_same_bytes_come_in_every_run_whatever_the_threads(
        self, long_input: Path, whole: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "again.npy"
        run("embed", long_input, "-o", output, "--dimensions", "64", "--threads", "3")
        assert output.read_bytes() == whole.read_bytes()

    def test_lines_from_a_pipe_are_texts(self, tmp_path: Path) -> None:
        texts = write_texts(tmp_path / "a.txt", 3)
        piped = run("embed", "-", "--dimensions", "4", stdin="\n".join(texts))
        expected = run("embed", tmp_path / "a.txt", "--dimensions", "4")
        assert piped.stdout == expected.stdout
        assert len(piped.stdout.splitlines()) == 3

    def test_over_long_texts_are_cut_if_that_is_asked_for(self, tmp_path: Path) -> None:
        (tmp_path / "long.txt").write_text("cat " * 400)
        (tmp_path / "cut.txt").write_text("cat " * 254)
        outcomes = [run("embed", tmp_path / name, "--truncate") for name in ("long.txt", "cut.txt")]
        assert outcomes[0].stdout == outcomes[1].stdout
        assert outcomes[0].exit_code == 0


class TestResuming:
    @pytest.mark.parametrize("suffix", ["npy", "jsonl", "parquet"])
    @pytest.mark.slow
    def test_after_kill_9_it_goes_on_to_the_same_bytes(
        self,
        long_input: Path,
        whole: Path,
        interrupt: Callable[[Path], None],
        tmp_path: Path,
        suffix: str,
    ) -> None:
        flags = (long_input, "--dimensions", "64", "-o")
        output, wanted = tmp_path / f"out.{suffix}", tmp_path / f"wanted.{suffix}"
        file = format_of(wanted)(wanted, 64, 0)
        file.append(0, np.load(whole))
        file.finish(LONG_TEXTS)
        file.close()
        interrupt(output)
        outcome = run("embed", *flags, output, "--resume")
        assert outcome.exit_code == 0, outcome.stderr
        assert "of them before" in outcome.stderr
        assert output.read_bytes() == wanted.read_bytes()
        assert sorted(tmp_path.iterdir()) == [output, wanted]

    @pytest.mark.parametrize(("ending", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.slow
    def test_after_a_signal_it_goes_on_to_the_same_bytes(
        self,
        long_input: Path,
        whole: Path,
        tmp_path: Path,
        ending: signal.Signals,
        exit_code: int,
    ) -> None:
        output = tmp_path / "out.npy"
        with start("embed", long_input, "--dimensions", "64", "-o", output) as running:
            wait_for_checkpoint(output, running, WINDOW_TEXTS)
            outcome = end(running, ending)
        assert outcome.exit_code == exit_code
        assert re.fullmatch(
            r"interrupted after [\d,]+ texts; go on with --resume\n", outcome.stderr
        )
        run("embed", long_input, "--dimensions", "64", "-o", output, "--resume")
        assert output.read_bytes() == whole.read_bytes()

    @pytest.fixture
    def interrupted(self, interrupt: Callable[[Path], None], tmp_path: Path) -> Path:
        """An output of which there is only what a killed run has left."""
        interrupt(tmp_path / "out.npy")
        return tmp_path / "out.npy"

    def test_what_differs_is_named(self, long_input: Path, interrupted: Path) -> None:
        def resume(path: Path, *flags: str) -> Outcome:
            return run("embed", path, "-o", interrupted, "--resume", *flags)

        same = "--dimensions=64"
        assert_mistake(resume(long_input), "dimensions was 64", "384 now")
        assert_mistake(resume(long_input, "--model", PLAIN), "model was", MATRYOSHKA, PLAIN)
        assert_mistake(
            resume(long_input, same, "--max-batch-tokens=128"), "max_batch_tokens was 'auto'"
        )
        changed = long_input.with_name("changed.txt")
        changed.write_text("x" + long_input.read_text()[1:])
        assert_mistake(resume(changed, same), str(changed), "has changed")
        assert_mistake(run("embed", long_input, "-o", interrupted), "go on with --resume")

    def test_lost_bytes_of_the_output_are_noticed(
        self, long_input: Path, interrupted: Path
    ) -> None:
        os.truncate(f"{interrupted}.partial", 1000)
        outcome = run("embed", long_input, "-o", interrupted, "--dimensions=64", "--resume")
        assert_mistake(outcome, "out.npy.partial has 1000 bytes")

    @pytest.mark.slow
    def test_a_text_that_was_refused_can_be_mended(self, long_input: Path, tmp_path: Path) -> None:
        good = long_input.read_text().splitlines()
        mendable, output = tmp_path / "a.txt", tmp_path / "a.npy"
        mendable.write_text("\n".join([*good[:1030], "cat " * 400, *good[1030:1040]]))
        outcome = run("embed", mendable, "-o", output)
        assert_mistake(outcome, f"{mendable} line 1031: 402 tokens", "--truncate")
        outcome = run("embed", mendable, "-o", output, "--resume", "--truncate")
        assert "1,041 texts (1,024 of them before)" in outcome.stderr
        fresh = tmp_path / "fresh.npy"
        run("embed", mendable, "-o", fresh, "--truncate")
        assert output.read_bytes() == fresh.read_bytes()

    def test_with_nothing_there_it_begins_and_with_an_output_it_refuses(
        self, tmp_path: Path
    ) -> None:
        write_texts(tmp_path / "a.txt", 3)
        flags = (tmp_path / "a.txt", "-o", tmp_path / "a.npy", "--resume")
        assert run("embed", *flags).exit_code == 0
        assert_mistake(run("embed", *flags), f"{tmp_path / 'a.npy'} is there already")


class TestMistakes:
    def test_they_are_named_and_leave_nothing_behind(self, tmp_path: Path) -> None:
        path, output = tmp_path / "a.txt", tmp_path / "a.npy"
        for content, flags, named in [
            ("\none\ntwo", (), "line 1: blank"),
            ("", (), "holds no text"),
            ("one", ("--model", "tinny"), "model tinny not found"),
            ("one", ("--model", PLAIN, "--dimensions=8"), "does not support specifying dimensions"),
            ("one", ("--dimensions=385",), "'dimensions'"),
            ("one", ("--input-type=image",), "input_type must be one of 'query', 'document', 'cl"),
            ("cat " * 300, (), "line 1: 302 tokens"),
            ("cat " * 300_000, (), "line 1: "),
        ]:
            path.write_text(content)
            assert_mistake(run("embed", path, "-o", output, *flags), named)
            assert list(tmp_path.iterdir()) == [path]

    def test_an_output_that_is_there_is_not_touched(self, tmp_path: Path) -> None:
        write_texts(tmp_path / "a.txt", 3)
        (tmp_path / "a.npy").write_bytes(b"mine")
        outcome = run("embed", tmp_path / "a.txt", "-o", tmp_path / "a.npy")
        assert_mistake(outcome, "is there already")
        assert (tmp_path / "a.npy").read_bytes() == b"mine"

    def test_a_full_disk_is_one_line(self, tmp_path: Path) -> None:
        write_texts(tmp_path / "a.txt", 3)
        with files_of_at_most(1024):
            outcome = run("embed", tmp_path / "a.txt", "-o", tmp_path / "a.npy")
        assert_mistake(outcome, "a.npy", "File too large")

    def test_a_full_device_behind_standard_output_is_one_line(self, tmp_path: Path) -> None:
        write_texts(tmp_path / "a.txt", 3)
        with Path("/dev/full").open("wb") as full:
            outcome = subprocess.run(
                [sys.executable, "-m", "server", "embed", tmp_path / "a.txt"],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE_S,
            )  # fmt: skip
        assert outcome.stderr == "embedding-server: standard output: No space left on device\n"
        assert outcome.returncode == 2

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_reader_that_goes_away_ends_it_quietly(self, tmp_path: Path, unbuffered: str) -> None:
        write_texts(tmp_path / "a.txt", 100)  # more than a pipe holds
        line = f"{sys.executable} -m server embed {tmp_path / 'a.txt'} | head -1 | wc -l"
        outcome = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=True, timeout=PATIENCE_S,
            env=user_environment({"PYTHONUNBUFFERED": unbuffered}),
        )  # fmt: skip
        assert (outcome.stdout.strip(), outcome.stderr) == ("1", "")

    def test_ctrl_c_while_a_pipe_is_silent_ends_it(self) -> None:
        with start("embed", "-") as running:
            assert running.stdin is not None
            running.stdin.write(b"one\n")
            running.stdin.flush()
            wait_until_read(running.stdin)
            assert end(running, signal.SIGINT) == Outcome(130, "", "")


def test_a_bar_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.txt", 50)
    arguments = ["embed", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.npy")]
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-m", "server", *arguments], stderr=theirs, check=True)
    os.close(theirs)
    assert b"tokens/s" in os.read(ours, 100_000)
    os.close(ours)
    (tmp_path / "a.npy").unlink()
    assert len(run(*arguments).stderr.splitlines()) == 1


class TestDimensions:
    def test_the_full_size_keeps_all_and_less_keeps_less(self, tmp_path: Path) -> None:
        texts = write_texts(tmp_path / "a.txt", 120)
        flags = ("dimensions", MATRYOSHKA, "--text", tmp_path / "a.txt")
        outcome = run(*flags, "--json", "--plot", tmp_path / "a.svg")
        answer = json.loads(outcome.stdout)
        assert (answer["texts_read"], answer["texts"]) == (120, len(set(texts)))
        sizes = answer["sizes"]
        assert [row["dimensions"] for row in sizes] == [384, 256, 128, 64, 32]
        assert [row["bytes_per_million"] for row in sizes] == [
            1_536_000_000, 1_024_000_000, 512_000_000, 256_000_000, 128_000_000,
        ]  # fmt: skip
        overlaps = [row["overlap"] for row in sizes]
        assert overlaps[0] > 0.99
        assert overlaps == sorted(overlaps, reverse=True)
        assert overlaps[-1] < 0.9
        assert all(row["overlap_p10"] <= row["overlap"] for row in sizes)
        assert (tmp_path / "a.svg").read_text().startswith("<?xml")
        table = run(*flags).stdout
        assert all(f"{100 * overlap:.2f}" in table for overlap in overlaps)

    def test_a_sample_says_so(self, tmp_path: Path) -> None:
        write_texts(tmp_path / "a.txt", 300)
        flags = ("dimensions", PLAIN, "--text", tmp_path / "a.txt", "--max-texts=60")
        outcome = run(*flags, "--dimensions=128")
        assert "distinct texts of 300" in outcome.stdout
        assert run(*flags, "--dimensions=128").stdout == outcome.stdout

    def test_mistakes_are_named(self, tmp_path: Path) -> None:
        write_texts(tmp_path / "a.txt", 49)
        flags = ("dimensions", PLAIN, "--text", tmp_path / "a.txt")
        assert_mistake(run(*flags), "--text: 49 distinct texts, at least 50")
        assert_mistake(run(*flags, "--dimensions=8,x"), "--dimensions 8,x: 'x'")
        assert_mistake(run(*flags, "--plot=a.pdf"), "--plot a.pdf")
        assert_mistake(run(*flags, "--input-type=image"), "input_type must be one of 'query', ")
        (tmp_path / "pairs.csv").write_text("a,b,1\na,b\n")
        outcome = run(*flags, "--evaluate", tmp_path / "pairs.csv")
        assert_mistake(outcome, "pairs.csv row 2")


# Gets a second signal while it waits for its threads to end after the first one.
INTERRUPTED_TWICE = """
import os, signal, time
from server.commands.cli import main
from server.engine.engine import Engine

join = Engine.join

def join_when_interrupted(engine):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    print("not at once", flush=True)
    return join(engine)

Engine.join = join_when_interrupted
main()
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_it_at_once(first: signal.Signals) -> None:
    with (
        interruptible(),
        subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED_TWICE, "embed", "-"],
            env=user_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running,
    ):
        assert running.stdin is not None
        running.stdin.write(b"one\n")
        running.stdin.flush()
        wait_until_read(running.stdin)
        assert end(running, first) == Outcome(130, "", "")
