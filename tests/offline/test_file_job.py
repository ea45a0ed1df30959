"""The last steps of a job, which no kill hits reliably; the rest is in tests/commands/test_texts.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.catalog.card import Card
from server.errors import OutputFileError
from server.inference.loader import Encoder
from server.inference.vector_form import VectorForm
from server.offline import outputs
from server.offline.embedder import Embedder
from server.offline.file_job import FileJob, Recipe
from server.offline.texts import TextReader
from server.settings import Settings


class PowerCut(BaseException):
    """Stands for the end of the process."""


class Job:
    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self.input = folder / "in.txt"
        self.input.write_text("one\ntwo\nthree\n")
        self.embedder = embedder

    def run(self, output: Path, *, resume: bool = False) -> None:
        job = FileJob(output, {"model": "m"}, Recipe(VectorForm(384)), resume=resume)
        with TextReader(self.input) as reader:
            job.run(self.embedder, reader, lambda progress: None)


@pytest.fixture
def job(plain_card: Card, encoder: Encoder, tmp_path: Path) -> Iterator[Job]:
    with Embedder(plain_card, encoder, None, Settings()) as embedder:
        yield Job(embedder, tmp_path)


@pytest.fixture(params=["npy", "jsonl", "parquet"])
def cut_off(
    request: pytest.FixtureRequest, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An output that has just appeared when the power goes."""
    output = tmp_path / f"out.{request.param}"
    appear = outputs._appear

    def appear_and_end(partial: Path, path: Path) -> None:
        appear(partial, path)
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_appear", appear_and_end)
        with pytest.raises(PowerCut):
            job.run(output)
    return output


def test_an_output_that_was_complete_stays_and_what_was_beside_it_goes(
    job: Job, cut_off: Path
) -> None:
    before = cut_off.read_bytes()
    job.run(cut_off, resume=True)
    assert cut_off.read_bytes() == before
    assert sorted(cut_off.parent.iterdir()) == sorted([job.input, cut_off])


def test_a_complete_output_does_not_grow_with_its_input(job: Job, cut_off: Path) -> None:
    with job.input.open("a") as file:
        file.write("four\n")
    with pytest.raises(OutputFileError, match=r"is complete, and .* has grown"):
        job.run(cut_off, resume=True)


def test_a_power_cut_before_an_output_appears_is_gone_on_from(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(partial: Path, path: Path) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_appear", end)
        with pytest.raises(PowerCut):
            job.run(tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()
    job.run(tmp_path / "out.npy", resume=True)
    assert np.load(tmp_path / "out.npy").shape == (3, 384)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"facts": {}, "input": {}}'])
def test_a_checkpoint_that_is_none_is_named(job: Job, tmp_path: Path, content: str) -> None:
    (tmp_path / "out.npy.checkpoint").write_text(content)
    with pytest.raises(OutputFileError, match=r"out\.npy\.checkpoint is no checkpoint"):
        job.run(tmp_path / "out.npy", resume=True)


def test_a_partial_file_without_its_checkpoint_is_not_touched(job: Job, tmp_path: Path) -> None:
    (tmp_path / "out.npy.partial").write_bytes(b"somebody's")
    with pytest.raises(OutputFileError, match=r"out\.npy\.partial is there without"):
        job.run(tmp_path / "out.npy", resume=True)
    assert (tmp_path / "out.npy.partial").read_bytes() == b"somebody's"
