from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import fit_rotation
from tests.conftest import MATRYOSHKA, REPOSITORY


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Unit vectors (1024, 288) whose meaning lies in 40 directions spread over all coordinates."""
    monkeypatch.setattr(fit_rotation, "STEPS", 8)
    monkeypatch.setattr(fit_rotation, "BATCH_TEXTS", 128)
    random = torch.Generator().manual_seed(0)
    meaning = torch.randn(1024, 40, generator=random) @ torch.randn(40, 288, generator=random)
    noise = 0.5 * torch.randn(1024, 288, generator=random)
    return torch.nn.functional.normalize(meaning + noise, dim=1)


def test_the_fit_is_orthogonal_and_better_than_plain_truncation(vectors: torch.Tensor) -> None:
    rotation = fit_rotation.fit(vectors)
    assert rotation.dtype == np.float32
    assert np.abs(rotation.T @ rotation - np.eye(288)).max() < fit_rotation.ORTHOGONALITY_TOLERANCE
    plain = fit_rotation.prefix_losses(vectors, torch.eye(288))
    fitted = fit_rotation.prefix_losses(vectors, torch.from_numpy(rotation))
    assert (fitted < plain).all()


def test_the_fit_is_the_same_every_time(vectors: torch.Tensor) -> None:
    assert np.array_equal(fit_rotation.fit(vectors), fit_rotation.fit(vectors))


def test_the_committed_rotation_is_accepted() -> None:
    file = REPOSITORY / "models" / MATRYOSHKA / "rotation.safetensors"
    assert fit_rotation.read_rotation(file, 384).shape == (384, 384)


def test_too_little_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("only one line\n")
    script = REPOSITORY / "scripts" / "fit_rotation.py"
    flags = ["--model", ".", "--text", "text.txt", "-o", "r.safetensors"]
    refused = subprocess.run(
        [sys.executable, str(script), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("fit_rotation: --text: 1 distinct lines")
