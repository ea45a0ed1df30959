"""The commands `embedding-server models`: list, pull.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from server.flags import with_flags
from server.settings import Settings

FOLDERS = ("models_dir", "data_dir")  # settings that tell where models lie

models_app = typer.Typer(
    help="The models on this machine.", no_args_is_help=True, rich_markup_mode=None
)

ModelNames = Annotated[
    list[str] | None,
    typer.Argument(help="Models, by their cards' names; default: those that are served."),
]


@models_app.command("list")
@with_flags(*FOLDERS)
def list_models(settings: Settings) -> None:
    """Show the models on this machine and whether their files are there."""
    from rich.console import Console
    from rich.table import Table

    from server.catalog.registry import read_registry
    from server.catalog.verify import missing_files

    table = Table("model", "dimensions", "max tokens", "Matryoshka", "files", "also called")
    for card in read_registry(*settings.model_folders()).cards:
        sizes = ", ".join(map(str, card.matryoshka.dimensions)) if card.matryoshka else "no"
        missing = missing_files(card)
        table.add_row(
            card.name,
            str(card.embedding_dim),
            str(card.max_input_tokens),
            sizes,
            f"missing: {', '.join(missing)}" if missing else "present",
            "\n".join(card.aliases),
        )
    # A pipe has no width; there no cell may be cut.
    (Console() if sys.stdout.isatty() else Console(width=10_000)).print(table)


@models_app.command("pull")
@with_flags(*FOLDERS)
def pull_models(settings: Settings, names: ModelNames = None) -> None:
    """Fetch the files of models that are not there yet, and check every byte."""
    from server.catalog.pull import pull
    from server.catalog.registry import read_registry

    pulled: set[str] = set()
    for card in read_registry(*settings.model_folders()).select(names or settings.model).cards:
        if card.name not in pulled:  # as another one's base
            pull(card, lambda line: print(line, flush=True))
            pulled |= {card.name, card.encoder.name}
