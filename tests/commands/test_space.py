"""`space compare` as a user's shell runs it, with the real models and a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from server.catalog.card import Card
from server.inference import direct
from server.inference.loader import Encoder, load_rotation
from server.spaces import local_model
from tests.command_line import assert_mistake, run
from tests.conftest import MATRYOSHKA, PLAIN
from tests.server_process import ServerProcess

THINGS = ("cat", "river", "engine", "bread", "violin", "planet", "doctor", "novel")
TEXTS = [f"The {one} and the {other}" for one in THINGS for other in THINGS if one != other]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text each line, of which the second one is blank."""
    file = tmp_path / "a.txt"
    file.write_text("\n".join([TEXTS[0], "", *TEXTS[1:]]) + "\n")
    return file


def test_a_rotation_is_another_space_in_which_the_same_is_found(
    text: Path, encoder: Encoder, matryoshka_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_model, "WINDOW_TEXTS", 20)
    flags = ("--text", text, "--skip-blank", "--json", "--at-least=same-space")
    outcome = run("space", "compare", PLAIN, MATRYOSHKA, *flags)
    assert (outcome.exit_code, outcome.stderr) == (3, "")
    found = json.loads(outcome.stdout)
    rotation = load_rotation(matryoshka_card)
    assert rotation is not None
    ours = direct.embed_texts(encoder, TEXTS).astype(np.float64)
    theirs = ours @ rotation
    lengths = [np.linalg.norm(side, axis=1) for side in (ours, theirs)]
    similar = (ours * theirs).sum(axis=1) / lengths[0] / lengths[1]
    assert found["cosines"] == {
        "least": pytest.approx(similar.min(), abs=1e-6),
        "least_at": f"{text} line {similar.argmin() + 1 + (similar.argmin() > 0)}",
        "mean": pytest.approx(similar.mean(), abs=1e-6),
        "max_difference": pytest.approx(np.abs(ours - theirs).max(), abs=1e-6),
    }
    # What docs/how-to/spaces.md tells programs of.
    assert found.keys() == {
        "a", "b", "texts_read", "texts", "distinct_texts", "cosines", "neighbours", "floors",
        "verdict",
    }  # fmt: skip
    assert found["b"].keys() == {"given", "model", "dimensions", "computed", "fingerprint"}
    assert found["neighbours"].keys() >= {"mean", "least", "least_at"}
    assert found["neighbours"]["queries"] == found["texts"] == len(TEXTS)
    assert found["neighbours"]["mean"] == 1
    assert found["floors"] == {
        "same-space": {"cosine": 0.999, "neighbours": 0.95},
        "same-ranking": {"neighbours": 0.95},
    }
    assert found["verdict"] == "same-ranking"
    assert [found[side]["model"] for side in "ab"] == [PLAIN, MATRYOSHKA]
    assert found["a"]["fingerprint"] != found["b"]["fingerprint"]


@pytest.mark.server
def test_a_server_of_the_model_is_the_same_space(server: ServerProcess, text: Path) -> None:
    flags = ("--text", text, "--skip-blank", "--at-least", "same-space")
    outcome = run("space", "compare", f"{PLAIN}@cpu@float32", f"{server.url}#{PLAIN}", *flags)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    *_, verdict = outcome.stdout.splitlines()
    assert verdict in ("verdict: same space", "verdict: same vectors")
    sides = [line for line in outcome.stdout.splitlines() if PLAIN in line]
    assert f"{PLAIN}@cpu@float32" in sides[0]
    assert f"{server.url}#{PLAIN}" in sides[1]
    assert f"{len(TEXTS)} ({len(TEXTS)} distinct)" in outcome.stdout


def test_mistakes_are_named(text: Path, tmp_path: Path) -> None:
    def mistake(*arguments: str | Path, named: str) -> None:
        assert_mistake(run("space", "compare", *arguments), named)

    mistake(PLAIN, "other", "--text", text, named="other: model other not found")
    mistake(PLAIN, PLAIN, "--text", text, named=f"{text} line 2: blank")
    mistake(PLAIN, PLAIN, "--text", tmp_path / "b.txt", named="b.txt does not exist")
    flags = ("--text", text, "--skip-blank")
    mistake(PLAIN, PLAIN, *flags, "--input-type=image", named="input_type must be one of")
    mistake(PLAIN, PLAIN, *flags, "--key-a=sk-secret", named="wants no key")
    mistake(PLAIN, PLAIN, *flags, "--max-texts=20", named="20 distinct texts of the 20 that")
    with text.open("a") as file:
        file.write("cat " * 400 + "\n")
    line = len(TEXTS) + 2
    mistake(PLAIN, PLAIN, *flags, named=f"{text} line {line}: 402 tokens, and {PLAIN} reads 256")
    wrong_flags: list[list[str | Path]] = [[], ["--text", text, "--at-least=equal"]]
    for wrong in wrong_flags:
        outcome = run("space", "compare", PLAIN, PLAIN, *wrong)
        assert (outcome.exit_code, outcome.stdout) == (2, "")
