from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from server.errors import MissingExtra, OutputFileError
from server.offline import outputs
from server.offline.outputs import format_of, partial_of
from server.program.command_lines import install_command

VECTORS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


def write(path: Path, *, cut: int | None = None) -> None:
    """Write VECTORS in two parts; with `cut`, as a run that stops behind the first part, leaves so
    many bytes too many (zeros, if it had not written as many), and goes on."""
    file = format_of(path)(path, 3, 0)
    size = file.append(0, VECTORS[:2])
    if cut is not None:
        file.append(2, VECTORS[2:])
        file.close()
        with partial_of(path).open("r+b") as left:
            left.truncate(size + cut)
        file = format_of(path)(path, 3, size)
    file.append(2, VECTORS[2:])
    assert not path.exists()
    file.finish(5)
    file.close()


def read_npy(path: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(path)
    return vectors


def read_jsonl(path: Path) -> NDArray[np.float32]:
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["index"] for row in rows] == list(range(5))
    return np.array([row["embedding"] for row in rows], dtype=np.float32)


def read_parquet(path: Path) -> NDArray[np.float32]:
    table = pq.read_table(path)
    assert table.column("index").to_pylist() == list(range(5))
    return np.array(table.column("embedding").to_pylist(), dtype=np.float32)


READERS = {".npy": read_npy, ".jsonl": read_jsonl, ".parquet": read_parquet}


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_holds_the_vectors_and_leaves_nothing_beside_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path)
    assert np.array_equal(READERS[suffix](path), VECTORS)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("cut", [0, 1, 30, 5000])
def test_a_file_that_was_gone_on_with_has_the_same_bytes(
    tmp_path: Path, suffix: str, cut: int
) -> None:
    whole, resumed = tmp_path / f"whole{suffix}", tmp_path / f"resumed{suffix}"
    write(whole)
    write(resumed, cut=cut)
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_parquet_file_is_written_in_bounded_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "ROW_GROUP_TEXTS", 2)
    write(tmp_path / "out.parquet")
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3
    assert np.array_equal(read_parquet(tmp_path / "out.parquet"), VECTORS)


def test_a_partial_file_that_lost_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    file = format_of(path)(path, 3, 0)
    size = file.append(0, VECTORS)
    file.close()
    with pytest.raises(OutputFileError, match=f"{size} bytes, less than its checkpoint"):
        format_of(path)(path, 3, size + 1)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = format_of(path)(path, 3, 0)
    size = file.append(0, VECTORS)
    with pytest.raises(OutputFileError, match="another process writes it"):
        format_of(path)(path, 3, size)
    file.close()


def test_a_file_that_came_into_being_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    file = format_of(path)(path, 3, 0)
    file.append(0, VECTORS)
    path.write_bytes(b"mine")
    with pytest.raises(OutputFileError, match="not overwritten"):
        file.finish(5)
    file.close()
    assert path.read_bytes() == b"mine"


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra,
        match=re.escape(f"pyarrow, which is not installed: {install_command('parquet')}"),
    ):
        format_of(tmp_path / "out.parquet")


@pytest.mark.parametrize("name", ["out.csv", "out", "absent/out.npy"])
def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputFileError, match=name):
        format_of(tmp_path / name)


def test_a_parquet_file_that_was_not_written_to_its_end_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.parquet"

    def interrupt(scratch: Path, *_: object) -> None:
        scratch.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "_write_parquet", interrupt)
    file = format_of(path)(path, 3, 0)
    file.append(0, VECTORS)
    with pytest.raises(KeyboardInterrupt):
        file.finish(5)
    file.close()
    assert list(tmp_path.iterdir()) == [partial_of(path)]
