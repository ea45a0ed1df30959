from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import InferenceFailed, TextFileError
from server.inference.pooling import normalize
from server.offline.embed_windows import EmbeddingProgress, ShowProgress
from server.spaces import compare
from server.spaces.compare import SpaceComparison, TextWishes, compare_spaces
from server.spaces.side import SideFacts
from server.spaces.text_lines import TextLine
from server.spaces.verdict import Verdict

DIM = 24
TURN = np.linalg.qr(np.random.default_rng(5).standard_normal((DIM, DIM)))[0].astype(np.float32)


def vector_of(text: str) -> NDArray[np.float32]:
    seed = int.from_bytes(text.encode(), "little")
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


class Made:
    """Vectors that the text alone decides, changed."""

    def __init__(
        self, change: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda found: found
    ) -> None:
        self.given = "made"
        self.texts: list[str] = []
        self._change = change

    def embed(
        self, lines: Sequence[TextLine], show: ShowProgress
    ) -> tuple[NDArray[np.float32], SideFacts]:
        self.texts = [one.text for one in lines]
        vectors = self._change(normalize(np.stack([vector_of(text) for text in self.texts])))
        show(EmbeddingProgress(len(lines), 0, 0))
        return vectors, SideFacts("made", "made", vectors.shape[1], "here", None)


class Given:
    """Vectors that are there already."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.given, self._vectors = "given", vectors

    def embed(
        self, lines: Sequence[TextLine], show: ShowProgress
    ) -> tuple[NDArray[np.float32], SideFacts]:
        assert len(lines) == len(self._vectors)
        return self._vectors, SideFacts("given", "given", self._vectors.shape[1], "here", None)


class Silent:
    def embedding(self, label: str, texts: int) -> AbstractContextManager[ShowProgress]:
        return nullcontext(lambda progress: None)

    def steps(self, label: str, count: int) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Sixty texts, the first of them twice."""
    file = tmp_path / "a.txt"
    file.write_text("text 0\n" + "".join(f"text {i}\n" for i in range(60)))
    return file


def compared(left: Made, right: Made, texts: Path, max_texts: int = 1000) -> SpaceComparison:
    return compare_spaces(left, right, TextWishes([texts], max_texts), Silent())


def noise(scale: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    draw = np.random.default_rng(7)
    return lambda found: found + scale * draw.standard_normal(found.shape).astype(np.float32)


def test_both_sides_get_the_same_texts_and_equal_bits_are_the_same_vectors(texts: Path) -> None:
    left, right = Made(), Made()
    found = compared(left, right, texts)
    assert left.texts == right.texts == texts.read_text().splitlines()
    assert found.verdict is Verdict.SAME_VECTORS
    assert (found.texts_read, found.texts, found.distinct_texts) == (61, 61, 60)
    assert found.neighbours[:3] == (60, 1.0, 1.0)
    assert found.agreement is not None
    assert found.agreement.bit_equal


def test_one_bit_makes_it_the_same_space(texts: Path) -> None:
    def change(found: NDArray[np.float32]) -> NDArray[np.float32]:
        found[7, 3] = np.nextafter(found[7, 3], np.float32(1))
        return found

    assert compared(Made(), Made(change), texts).verdict is Verdict.SAME_SPACE


def test_the_text_whose_cosine_is_least_is_named_by_its_line(texts: Path) -> None:
    def change(found: NDArray[np.float32]) -> NDArray[np.float32]:
        found[41] = -found[41]
        return found

    found = compared(Made(), Made(change), texts)
    assert found.worst_at == f"{texts} line 42"
    assert found.agreement is not None
    assert found.agreement.min_cosine == pytest.approx(-1)
    assert found.neighbours.least_at == f"{texts} line 42"
    assert found.neighbours.least < 0.2
    assert found.verdict is not Verdict.SAME_SPACE


def test_a_rotated_space_ranks_the_same_also_where_it_has_another_size(texts: Path) -> None:
    found = compared(Made(), Made(lambda vectors: vectors @ TURN), texts)
    assert found.verdict is Verdict.SAME_RANKING
    assert found.neighbours.least == 1
    wider = compared(
        Made(), Made(lambda vectors: 3 * np.pad(vectors @ TURN, ((0, 0), (0, 5)))), texts
    )
    assert (wider.agreement, wider.worst_at) == (None, None)
    assert (wider.left.dimensions, wider.right.dimensions) == (DIM, DIM + 5)
    assert wider.verdict is Verdict.SAME_RANKING


def test_other_vectors_are_another_space(texts: Path) -> None:
    assert compared(Made(), Made(noise(1)), texts).verdict is Verdict.ANOTHER_SPACE


def test_a_narrow_cone_hides_nothing(texts: Path) -> None:
    """All cosines are high, also between texts that have nothing to do with each other."""

    def cone(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Made:
        return Made(lambda found: normalize(change(0.01 * found) + 1))

    found = compared(cone(lambda vectors: vectors), cone(noise(0.01)), texts)
    assert found.agreement is not None
    assert found.agreement.min_cosine > 0.999
    assert found.verdict is Verdict.ANOTHER_SPACE


@pytest.mark.parametrize(
    ("value", "told"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "all zeros")]
)
def test_a_vector_without_direction_is_named_by_its_line(
    texts: Path, value: float, told: str
) -> None:
    def change(found: NDArray[np.float32]) -> NDArray[np.float32]:
        found[12] = value
        return found

    with pytest.raises(InferenceFailed, match=f"a.txt line 13: the vector of made is {told}"):
        compared(Made(), Made(change), texts)


@pytest.mark.parametrize("count", [0, 1, 10, 49])
def test_too_few_distinct_texts_are_refused_before_anything_is_computed(
    tmp_path: Path, count: int
) -> None:
    file = tmp_path / "few.txt"
    file.write_text("".join(f"text {i}\n" for i in range(count)) * 20)
    side = Made()
    with pytest.raises(TextFileError, match=f"--text: {count} distinct texts, at least 50"):
        compared(side, side, file)
    assert side.texts == []


def test_who_allows_too_few_texts_is_told_so(texts: Path) -> None:
    with pytest.raises(TextFileError, match="20 distinct texts of the 20 that --max-texts allows"):
        compared(Made(), Made(), texts, max_texts=20)


def test_of_many_texts_some_are_drawn_and_asked_for_their_neighbours(texts: Path) -> None:
    side = Made()
    found = compared(side, Made(), texts, max_texts=55)
    assert (found.texts_read, found.texts) == (61, 55)
    assert len(side.texts) == 55
    noisy = [Made(noise(0.3)) for _ in range(2)]
    with mock.patch.object(compare, "MAX_QUERIES", 20):
        first, second = (compared(Made(), one, texts) for one in noisy)
    assert first.neighbours == second.neighbours
    assert first.neighbours.queries == 20
    assert first.neighbours.mean < 1


def test_beside_the_vectors_only_their_directions_are_held(tmp_path: Path) -> None:
    file, count, size = tmp_path / "a.txt", 5000, 1024
    file.write_text("text 0\n" + "".join(f"text {i}\n" for i in range(count - 1)))
    vectors = np.random.default_rng(3).standard_normal((count, size + 1), np.float32)
    left, right = Given(vectors[:, :-1].copy()), Given(vectors)
    with mock.patch.object(compare, "MAX_QUERIES", 20):
        tracemalloc.start()
        compare_spaces(left, right, TextWishes([file], 10**6), Silent())
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 2.5 * vectors.nbytes
