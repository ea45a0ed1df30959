"""The commands `embedding-server models`: list, pull, import.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.errors import SettingError
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


@models_app.command("import")
@with_flags("data_dir")
def import_folder(
    settings: Settings,
    path: Annotated[
        Path, typer.Argument(help="Hugging Face or sentence-transformers folder.", metavar="FOLDER")
    ],
    name: Annotated[
        str | None, typer.Option(help="What clients call it; default: the folder's name.")
    ] = None,
    matryoshka: Annotated[
        str | None,
        typer.Option(
            help="Sizes to which its vectors may be cut, as it was trained; default: what is "
            "published for its name.",
            metavar="768,512,...",
        ),
    ] = None,
    query_prompt: Annotated[
        str | None, typer.Option(help="Text put before queries; default: the folder's own.")
    ] = None,
    document_prompt: Annotated[
        str | None, typer.Option(help="Text put before documents; default: the folder's own.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name for clients (repeatable).")
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "last_token"] | None,
        typer.Option(help="For a folder without modules.json (default: mean)."),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="For a folder without modules.json."),
    ] = None,
    graph: Annotated[
        Literal["own", "published"] | None,
        typer.Option(
            help="Make the graph, which needs the [torch] extra, or use the folder's "
            "onnx/model.onnx; default: own if torch is installed."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Import it though its vectors are not the publisher's."),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of an installed model.")
    ] = False,
) -> None:
    """Install a model from a folder on disk, compared with sentence-transformers.

    No code of the folder is run and nothing is unpickled.
    """
    from server.importing.importer import Wishes, import_model

    prompts: dict[Literal["query", "document"], str] = {}
    if query_prompt is not None:
        prompts["query"] = query_prompt
    if document_prompt is not None:
        prompts["document"] = document_prompt
    wishes = Wishes(
        name=name,
        matryoshka=_read_sizes(matryoshka),
        prompts=prompts,
        aliases=tuple(alias or ()),
        pooling=pooling,
        normalize=normalize,
        graph=graph,
        force=force,
        replace=replace,
    )
    place = settings.installed_models_dir()
    card = import_model(path, place, wishes, lambda line: print(line, flush=True))
    print(f"{card.name}: installed in {card.folder}, fingerprint {card.fingerprint}")
    print(f"Serve it with: embedding-server serve --model {card.name}")


def _read_sizes(text: str | None) -> tuple[int, ...]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal():
            raise SettingError(f"--matryoshka: {part!r} is no number")
    return tuple(map(int, parts))
