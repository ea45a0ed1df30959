"""The command `embedding-server`.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from server import __version__
from server.errors import EmbeddingServerError, SettingError
from server.flags import ConfigFile, with_flags
from server.key_commands import keys_app, usage
from server.settings import Settings, load_settings, unknown_environment_variables

MISTAKE = 2  # exit code of every error that a user can mend
INTERRUPTED = 130  # as shells report SIGINT

app = typer.Typer(
    name="embedding-server",
    help="OpenAI's embeddings API from transformer models on local disk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(
    help="The models on this machine.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.command("usage")(usage)


def main() -> None:
    """Entry point: errors of ours become one line and exit code 2."""
    try:
        app()
    except EmbeddingServerError as error:
        print(f"embedding-server: {error.message}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None
    except KeyboardInterrupt:  # before the server has its own handler
        raise SystemExit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"embedding-server {__version__}")
        raise typer.Exit


@app.command()
@with_flags(*Settings.model_fields)
def serve(settings: Settings) -> None:
    """Serve the models until SIGTERM or SIGINT."""
    # The workers share the cores among themselves; a thread pool in numpy would fight them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server import logs
    from server.access.access import Access
    from server.engine.served_models import ServedModels

    logs.configure(settings.log_level, settings.log_format)
    for name in unknown_environment_variables(os.environ):
        if "KEY" in name.upper():
            raise SettingError(f"{name} names no setting, and looks as if it should set a key")
        logging.getLogger(__name__).warning("%s names no setting", name)
    access = Access(settings)
    settings.check_exposure(asks_for_keys=access.asks_for_keys)
    models = ServedModels.find(settings)
    models.start_reading()
    # Importing the HTTP framework takes about as long as reading a small model.
    from server.serving import serve as run_server

    run_server(settings, models, access)


@models_app.command("list")
@with_flags("models_dir")
def list_models(settings: Settings) -> None:
    """Show the models on this machine and whether their files are there."""
    from rich.console import Console
    from rich.table import Table

    from server.catalog.registry import read_registry
    from server.catalog.verify import missing_files

    table = Table("model", "dimensions", "max tokens", "Matryoshka", "files", "also called")
    for card in read_registry(settings.models_dir).cards:
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
def pull_models(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Models, by their cards' names; default: those that are served."),
    ] = None,
    models_dir: Annotated[Path | None, typer.Option(help="Folder that holds the models.")] = None,
    config: ConfigFile = None,
) -> None:
    """Fetch the files of models that are not there yet, and check every byte."""
    from server.catalog.pull import pull
    from server.catalog.registry import read_registry

    settings = load_settings({"models_dir": models_dir} if models_dir else {}, config)
    pulled: set[str] = set()
    for card in read_registry(settings.models_dir).select(names or settings.model).cards:
        if card.name not in pulled:  # as another one's base
            pull(card, lambda line: print(line, flush=True))
            pulled |= {card.name, card.encoder.name}
