"""`models fit-rotation` with the real model; in process, so that it can be cut short."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import Card
from server.catalog.registry import read_registry
from server.fitting import fit, sampling
from server.fitting import rotation as rotations
from server.inference.loader import load_rotation
from server.offline.embed_windows import ShowProgress, embed_sample
from server.offline.embedder import Embedder
from tests.command_line import Outcome, assert_mistake, run
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY

SUBJECTS = (
    "cat",
    "dog",
    "river",
    "city",
    "doctor",
    "garden",
    "engine",
    "market",
    "teacher",
    "winter",
)
VERBS = ("sees", "likes", "crosses", "paints", "remembers", "sells", "follows", "hears")
THINGS = ("a red door", "the old bridge", "fresh bread", "loud music", "two children", "deep snow")
PLACES = ("at night", "near the sea", "in spring", "without a word", "every day", "after work")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 short sentences of 2,880 possible ones."""
    draw = random.Random(0)
    every = [
        f"The {subject} {verb} {thing} {place}."
        for subject in SUBJECTS for verb in VERBS for thing in THINGS for place in PLACES
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(draw.sample(every, 1200)))
    return path


def fit_rotation(*arguments: str | Path) -> Outcome:
    return run("models", "fit-rotation", *arguments)


@pytest.fixture(scope="module", autouse=True)
def _little_work() -> Iterator[None]:
    """Few steps, and the same texts are embedded once for all fits."""
    known: dict[str, NDArray[np.float32]] = {}

    def embed_once(
        embedder: Embedder, texts: list[str], *, prompt: str, show: ShowProgress
    ) -> NDArray[np.float32]:
        key = repr((embedder.card.encoder_card.name, texts, prompt))
        if key not in known:
            known[key] = embed_sample(embedder, texts, prompt=prompt, show=show)
        return known[key].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "STEPS", 2)
        patch.setattr(sampling, "embed_sample", embed_once)
        yield


def card_in(data_dir: Path, name: str) -> Card:
    return read_registry(REPOSITORY / "models", data_dir / "models").resolve(name)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def fitted(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The data folder and what was printed."""
    folder = tmp_path_factory.mktemp("fitted")
    pairs = folder / "pairs.csv"
    pairs.write_text("A cat sleeps,A cat naps,5\nA cat sleeps,It snows,0\nHi,Hello there,4\n")
    data_dir = folder / "data"
    outcome = fit_rotation(
        PLAIN, "--text", text, "--name", "org/mine", "--data-dir", data_dir,
        "--evaluate", pairs, "--plot", folder / "plot.svg", "--dimensions", "128,32",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    return data_dir, outcome.stdout


@pytest.mark.slow
class TestFitting:
    def test_a_card_with_its_rotation_appears_and_nothing_else(self, fitted: Any) -> None:
        data_dir, _ = fitted
        model = data_dir / "models" / "org" / "mine"
        assert files_below(data_dir) == [model / "card.toml", model / "rotation.safetensors"]
        card = card_in(data_dir, "org/mine")
        assert card.matryoshka is not None
        assert card.matryoshka.dimensions == (384, 128, 32)
        assert card.base is not None
        assert card.base.name == PLAIN
        assert card.fingerprint != card.base.fingerprint

    def test_the_rotation_keeps_more_neighbours_than_plain_truncation(self, fitted: Any) -> None:
        data_dir, printed = fitted
        full, *cut = card_in(data_dir, "org/mine").neighbours
        assert full.overlap > 0.99
        assert full.texts == 240
        assert all(row.overlap > row.overlap_plain + 0.05 for row in cut)
        assert all(f"{100 * row.overlap:.2f}" in printed for row in cut)
        assert "Spearman" in printed
        assert (data_dir.parent / "plot.svg").exists()

    def test_the_rotation_is_one_that_the_server_accepts(self, fitted: Any) -> None:
        rotation = load_rotation(card_in(fitted[0], "org/mine"))
        assert rotation is not None
        assert np.abs(rotation.T @ rotation - np.eye(384)).max() < 2e-6

    def test_the_new_model_embeds(self, fitted: Any, text: Path, tmp_path: Path) -> None:
        some = tmp_path / "some.txt"
        some.write_text("\n".join(text.read_text().splitlines()[:20]))
        flags = ("--data-dir", fitted[0], "--model", "org/mine", "--dimensions", "32")
        outcome = run("embed", some, "-o", tmp_path / "a.npy", *flags)
        assert outcome.exit_code == 0, outcome.stderr
        vectors = np.load(tmp_path / "a.npy")
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)

    def test_a_name_that_is_there_needs_force(
        self, fitted: Any, text: Path, tmp_path: Path
    ) -> None:
        data_dir, _ = fitted
        flags = (PLAIN, "--text", text, "--data-dir", data_dir)
        refused = fit_rotation(*flags, "--name", "org/mine")
        assert_mistake(refused, "org/mine is there already ", "--force")
        before = card_in(data_dir, "org/mine")
        named = (*flags, "--name", "org/mine")
        assert fit_rotation(*named, "--force", "--max-texts", "960").exit_code == 0
        assert card_in(data_dir, "org/mine").fingerprint != before.fingerprint
        assert len(files_below(data_dir)) == 2


@pytest.mark.slow
def test_with_force_the_shipped_variants_place_and_aliases_are_taken(
    text: Path, tmp_path: Path
) -> None:
    shipped = card_in(tmp_path, MATRYOSHKA)
    flags = (PLAIN, "--text", text, "--data-dir", tmp_path, "--max-texts", "960")
    assert_mistake(fit_rotation(*flags), f"{MATRYOSHKA} is there already")
    assert fit_rotation(*flags, "--force").exit_code == 0
    card = card_in(tmp_path, MATRYOSHKA)
    assert card.folder == tmp_path / "models" / MATRYOSHKA
    assert card.aliases == shipped.aliases


@pytest.mark.parametrize("when", ["principal_axes", "nearest_orthogonal"])
def test_ctrl_c_leaves_nothing_behind(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rotations, when, interrupt)
    outcome = fit_rotation(PLAIN, "--text", text, "--name", "mine", "--data-dir", tmp_path,
                           "--max-texts", "960")  # fmt: skip
    assert (outcome.exit_code, outcome.stderr) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_a_rotation_that_does_not_help_is_not_kept(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotations, "nearest_orthogonal", lambda matrix: matrix[:, ::-1].copy())
    outcome = fit_rotation(PLAIN, "--text", text, "--name", "mine", "--data-dir", tmp_path,
                           "--max-texts", "960")  # fmt: skip
    assert "keeps no more neighbours" in outcome.stderr
    assert outcome.exit_code == 2
    assert list(tmp_path.iterdir()) == []


class TestMistakes:
    def test_a_variant_of_a_variant_is_refused_with_its_base(self, text: Path) -> None:
        outcome = fit_rotation(MATRYOSHKA, "--text", text)
        assert_mistake(outcome, f"fit one to its base {PLAIN}\n")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("../mine", "--name ../mine: not a model's name"),
            ("a/b/c", "--name a/b/c: not a model's name"),
            ("", f"{MATRYOSHKA} is there already"),
        ],
    )
    def test_a_name_that_is_none_is_refused(self, text: Path, name: str, reason: str) -> None:
        assert_mistake(fit_rotation(PLAIN, "--text", text, f"--name={name}"), reason)

    @pytest.mark.parametrize("name", [PLAIN, "text-embedding-3-small"])
    def test_a_name_of_another_model_is_refused_also_with_force(
        self, text: Path, name: str
    ) -> None:
        assert_mistake(fit_rotation(PLAIN, "--text", text, "--name", name, "--force"), name)

    def test_too_few_texts_are_refused(self, text: Path) -> None:
        outcome = fit_rotation(PLAIN, "--text", text, "--name", "mine", "--max-texts", "959")
        assert_mistake(outcome, "959 distinct texts, at least 960")

    def test_they_are_one_line(self, text: Path) -> None:
        outcome = fit_rotation(PLAIN, "--text", text)
        assert_mistake(outcome, f"{MATRYOSHKA} is there already")
