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
        *("--pooling", "cls", "--no-normalize", "--graph", "own"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    models = tmp_path / "data" / "models"
    card = read_card(models / "team" / "mine", models)
    assert (card.name, card.aliases) == ("team/mine", ("one", "two"))
    assert card.matryoshka is not None
    assert card.matryoshka.dimensions == (DIM, 24, 12)
    assert card.prompts == {"query": "q: ", "document": "d: ", "a.b": "c = d: "}
    assert (card.pooling, card.normalize) == ("cls", False)
    last = outcome.stdout.splitlines()[-3:]
    assert last[0].startswith(f"team/mine: installed in {models / 'team' / 'mine'}, fingerprint ")
    assert last[1] == (
        "Its vectors are not of unit length: compare them by cosine, not by dot product."
    )
    assert last[2] == f"Serve it with: {own_command('serve', '--model', 'team/mine')}"


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


@pytest.mark.parametrize("flag", [("--pooling", "cls"), ("--no-normalize",), ("--name", "mine")])
def test_what_is_said_of_a_model_of_the_hub_is_said_of_one(
    tmp_path: Path, flag: tuple[str, ...]
) -> None:
    outcome = run("models", "pull", "all-MiniLM-L6-v2", "--data-dir", tmp_path / "data", *flag)
    assert_mistake(
        outcome,
        "embedding-server: --revision, --name, --pooling and --normalize go with one model of the "
        "hub",
    )
