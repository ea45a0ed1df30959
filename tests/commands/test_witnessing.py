"""`models verify --witness` computes installed models once more; no torch is asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from server.catalog.card_file import read_card, write_card
from server.importing.build import pin_files
from tests.command_line import Outcome, run
from tests.conftest import PLAIN, REPOSITORY

SOUND = f"{PLAIN}: witness (bert in numpy): 6 texts: smallest cosine 1.0000000, largest difference "


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    place = tmp_path / "models"
    shutil.copytree(REPOSITORY / "models" / PLAIN, place / PLAIN)
    return place


def verify(models_dir: Path, *arguments: str) -> Outcome:
    return run("models", "verify", "--witness", *arguments, "--models-dir", models_dir)


def change_weights(models_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Other weights, which the card vouches for."""
    file = models_dir / PLAIN / "model.safetensors"
    stored = load_file(file)
    change(stored)
    save_file(stored, file)
    card = read_card(models_dir / PLAIN, models_dir)
    (models_dir / PLAIN / "card.toml").unlink()
    write_card(card.changed(files=pin_files(models_dir / PLAIN)), models_dir / PLAIN)


def test_every_model_is_computed_once_more_after_its_bytes() -> None:
    outcome = run("models", "verify", "--witness")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert lines[2].startswith(SOUND)
    assert lines[3].startswith(SOUND.replace(PLAIN, f"{PLAIN}-matryoshka"))
    assert float(lines[2].rsplit(" ", 1)[1]) <= 1e-6
    assert "witness" not in run("models", "verify").stdout


def test_a_tensor_that_is_gone_is_named(models_dir: Path) -> None:
    name = "encoder.layer.3.attention.self.key.bias"
    change_weights(models_dir, lambda stored: stored.pop(name))
    outcome = verify(models_dir)
    assert outcome.exit_code == 2
    assert f"the weights hold no {name}" in outcome.stderr


def test_a_graph_of_other_weights_is_found(models_dir: Path) -> None:
    # The graph reads the file where the tensor was; what the file says of it counts for the witness.
    file = models_dir / PLAIN / "model.safetensors"
    one, other = (f"encoder.layer.{layer}.output.dense.bias" for layer in (1, 2))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].replace(one.encode(), b"?").replace(other.encode(), one.encode())
    header = header.replace(b"?", other.encode())
    assert len(header) == end - 8
    file.write_bytes(content[:8] + header + content[end:])
    card = read_card(models_dir / PLAIN, models_dir)
    (models_dir / PLAIN / "card.toml").unlink()
    write_card(card.changed(files=pin_files(models_dir / PLAIN)), models_dir / PLAIN)
    outcome = verify(models_dir, PLAIN)
    assert outcome.exit_code == 2
    assert f"{PLAIN}: witness (bert in numpy): 6 texts: smallest cosine 0." in outcome.stdout
    assert f"{PLAIN}: the vectors are not those of the weights" in outcome.stderr


def test_a_model_without_a_witness_is_told_and_an_error_if_it_was_named(models_dir: Path) -> None:
    card = read_card(models_dir / PLAIN, models_dir)
    (models_dir / PLAIN / "card.toml").unlink()
    write_card(card.changed(torch=None), models_dir / PLAIN)
    reason = (
        f"{PLAIN}: no witness: its card has no [torch] table, which names config.json and weights"
    )
    outcome = verify(models_dir)
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines()[1] == reason
    outcome = verify(models_dir, PLAIN)
    assert (outcome.exit_code, outcome.stderr) == (2, f"embedding-server: {reason}\n")
