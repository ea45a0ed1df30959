"""The command `embedding-server`: which commands there are, and how each of them ends.

A command's module is imported when it is called, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, NoReturn

import typer

from server import __version__
from server.commands.on_demand import commands_on_demand
from server.errors import EmbeddingServerError, GivenUp, first_line
from server.program.rust_panics import is_panic
from server.program.termination import exit_code_when_stopped, raise_when_stopped

BROKEN = 1  # exit code of a server that cannot go on, and may after a restart
MISTAKE = 2  # of every error that a user can mend, and of a library that fails
# In the order in which the help shows them: what is called, a command or a group of them.
COMMANDS: Mapping[str, str] = {
    "usage": "server.commands.usage:usage",
    "embed": "server.commands.texts:embed",
    "dimensions": "server.commands.texts:dimensions",
    "space": "server.commands.space:space_app",
    "serve": "server.commands.serve:serve",
    "doctor": "server.commands.doctor:doctor",
    "models": "server.commands.models:models_app",
    "bundle": "server.commands.bundle:bundle_app",
    "keys": "server.commands.keys:keys_app",
}

app = typer.Typer(
    name="embedding-server",
    cls=commands_on_demand(COMMANDS),
    help="OpenAI's embeddings API from transformer models on local disk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point: errors of ours become one line and exit code 2; signals, see `termination`."""
    with exit_code_when_stopped():
        raise_when_stopped()
        try:
            app()
        except EmbeddingServerError as error:
            _end_with(error.message, BROKEN if isinstance(error, GivenUp) else MISTAKE)
        except BaseException as error:
            if not is_panic(error):
                raise
            _end_with(f"a library failed: {first_line(error)}", MISTAKE)


def _end_with(message: str, code: int) -> NoReturn:
    print(f"embedding-server: {message}", file=sys.stderr)
    raise SystemExit(code) from None


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"embedding-server {__version__}")
        raise typer.Exit
