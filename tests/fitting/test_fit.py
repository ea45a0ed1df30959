"""The refusals of a fit; the whole of it is in tests/commands/test_fit_rotation.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from server.catalog.card import Card
from server.errors import FitRefused, InvalidRequest, TextFileError
from server.fitting.fit import RotationFit
from server.fitting.measuring import Kept
from server.fitting.sampling import SampleWishes, take_sample
from server.fitting.variant import VariantPlan
from server.inference.opening import Opener
from server.settings import Settings


class Plan:
    """Notes what is to be installed."""

    def __init__(self) -> None:
        self.installed: list[list[int]] = []

    def install(self, rotation: object, sizes: list[int], neighbours: object) -> None:
        self.installed.append(sizes)


def fit_that_keeps(plan: Plan, *overlaps: float) -> RotationFit:
    """Against 0.5 that plain cutting keeps of each size below the native one."""
    plain = [Kept(size, 1.0 if size == 3 else 0.5, 0.0, None) for size in (3, 2, 1)]
    rotated = [row._replace(overlap=kept) for row, kept in zip(plain, overlaps, strict=True)]
    return RotationFit(
        np.eye(3, dtype=np.float32), plain, rotated, 80, 20, 100, cast(VariantPlan, plan)
    )


@pytest.mark.parametrize("overlaps", [(1.0, 0.5, 0.5), (1.0, 0.9, 0.1), (1.5, 0.5, 0.4)])
def test_a_rotation_that_finds_no_more_neighbours_below_the_native_size_is_not_written(
    overlaps: tuple[float, ...],
) -> None:
    plan = Plan()
    with pytest.raises(FitRefused, match="keeps no more neighbours"):
        fit_that_keeps(plan, *overlaps).install()
    assert plan.installed == []


def test_one_that_finds_more_over_all_sizes_is_written_for_those_sizes() -> None:
    plan = Plan()
    fit_that_keeps(plan, 0.9, 0.7, 0.4).install()
    assert plan.installed == [[3, 2, 1]]


class NoBars:
    def embedding(self, label: str, texts: int) -> Iterator[None]:
        raise AssertionError

    def steps(self, label: str, count: int) -> Iterator[None]:
        raise AssertionError


def test_a_prompt_that_the_model_lacks_is_told_before_the_texts_are_read(
    plain_card: Card, tmp_path: Path
) -> None:
    settings = Settings()
    wishes = SampleWishes([tmp_path / "absent.txt"], 10, input_type="image")
    with pytest.raises(InvalidRequest, match="input_type must be one of 'query', 'document'"):
        take_sample(settings, Opener(settings), plain_card, wishes, NoBars(), least_texts=3)  # type: ignore[arg-type]


def test_too_few_texts_are_told_before_the_model_is_read(plain_card: Card, tmp_path: Path) -> None:
    class Unread(Opener):
        def open_encoder(self, card: Card) -> None:  # type: ignore[override]
            raise AssertionError

    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\none\n")
    settings = Settings()
    with pytest.raises(TextFileError, match="--text: 2 distinct texts, at least 3 are needed"):
        take_sample(
            settings, Unread(settings), plain_card, SampleWishes([file], 10), NoBars(),  # type: ignore[arg-type]
            least_texts=3,
        )  # fmt: skip
