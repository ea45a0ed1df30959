"""The command `embedding-server`.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from server import __version__
from server.errors import EmbeddingServerError, SettingError
from server.settings import ENV_PREFIX, Settings, load_settings, unknown_environment_variables

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

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar=ENV_PREFIX + "CONFIG", help="TOML file with settings.", metavar="FILE"
    ),
]


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


def _flag(name: str) -> inspect.Parameter:
    """The flag of one setting; pydantic checks its text, so that all sources share the rules."""
    field = Settings.model_fields[name]
    many = get_origin(field.annotation) is list
    switch = field.annotation is bool
    default = field.get_default(call_default_factory=False)
    shown = (
        f" (default: {default})" if not (many or default is None or field.default_factory) else ""
    )
    spelled = name.replace("_", "-")
    option = typer.Option(
        f"--{spelled}/--no-{spelled}" if switch else f"--{spelled}",
        help=f"{field.description}{shown}",
        show_default=False,
        metavar=None if switch else spelled.rsplit("-", 1)[-1].upper(),
    )
    kind: Any = list[str] if many else bool if switch else str
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _with_flags(*names: str) -> Callable[[Callable[[Settings], None]], Callable[..., None]]:
    """Give a command a flag for each of these settings and pass it the resulting Settings."""

    def decorate(command: Callable[[Settings], None]) -> Callable[..., None]:
        def run(config: Path | None, **flags: Any) -> None:
            given = {name: value for name, value in flags.items() if value not in (None, [])}
            command(load_settings(given, config))

        config = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
        )
        signature = inspect.Signature([*map(_flag, names), config])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


@app.command()
@_with_flags(*Settings.model_fields)
def serve(settings: Settings) -> None:
    """Serve the models until SIGTERM or SIGINT."""
    # The workers share the cores among themselves; a thread pool in numpy would fight them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server import logs
    from server.engine.served_models import ServedModels

    logs.configure(settings.log_level, settings.log_format)
    for name in unknown_environment_variables(os.environ):
        if "KEY" in name.upper():
            raise SettingError(f"{name} names no setting, and looks as if it should set a key")
        logging.getLogger(__name__).warning("%s names no setting", name)
    settings.check_exposure()
    models = ServedModels.find(settings)
    models.start_reading()
    # Importing the HTTP framework takes about as long as reading a small model.
    from server.serving import serve as run_server

    run_server(settings, models)


@models_app.command("list")
@_with_flags("models_dir")
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
