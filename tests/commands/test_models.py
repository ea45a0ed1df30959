"""What the flags of `models import` do; the import itself is tested in tests/importing."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.catalog.card_file import read_card
from server.program.command_lines import own_command
from tests.command_line import Outcome, assert_mistake, run
from tests.importing.folders import DIM, make_folder


def import_folder(folder: Path, data_dir: Path, *flags: str) -> Outcome:
    return run("models", "import", folder, "--data-dir", data_dir, *flags)


def test_every_flag_reaches_the_card(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert", normalize=False)
    (folder / "modules.json").unlink()
    outcome = import_folder(
        folder,
        tmp_path / "data",
        *("--name", "team/mine", "--matryoshka", "24, 12", "--alias", "one", "--alias", "two"),
        *("--query-prompt", "q: ", "--document-prompt", "d: ", "--prompt", "a.b=c = d: "),
        *("--pooling", "cls", "--normalize", "--graph", "own"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    models = tmp_path / "data" / "models"
    card = read_card(models / "team" / "mine", models)
    assert (card.name, card.aliases) == ("team/mine", ("one", "two"))
    assert card.matryoshka is not None
    assert card.matryoshka.dimensions == (DIM, 24, 12)
    assert card.prompts == {"query": "q: ", "document": "d: ", "a.b": "c = d: "}
    assert (card.pooling, card.normalize) == ("cls", True)
    last = outcome.stdout.splitlines()[-2:]
    assert last[0].startswith(f"team/mine: installed in {models / 'team' / 'mine'}, fingerprint ")
    assert last[1] == f"Serve it with: {own_command('serve', '--model', 'team/mine')}"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--matryoshka", "24,x"), "--matryoshka: 'x' is no number"),
        (("--prompt", "STS"), "--prompt: 'STS' is not NAME=TEXT"),
        (("--name", "../up"), "'../up' cannot be a model's name"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, flags: tuple[str, ...], reason: str
) -> None:
    outcome = import_folder(make_folder(tmp_path / "bert"), tmp_path / "data", *flags)
    assert_mistake(outcome, f"embedding-server: {reason}")
    assert not (tmp_path / "data" / "models").exists()
