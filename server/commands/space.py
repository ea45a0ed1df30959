"""The commands `embedding-server space`: compare.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from server.commands.flags import with_flags
from server.commands.texts import MODEL_SETTINGS, Field, InputType, SkipBlank, Texts, Truncate
from server.settings import Settings
from server.spaces.verdict import Verdict

A_SIDE = "NAME of a model here, NAME@DTYPE, NAME@DEVICE, or a server's http://HOST:PORT#NAME."
A_KEY = "Where the key of {}'s server is: env:VARIABLE or file:PATH."
# Exit code where the verdict is weaker than what was asked for; Python's own failures have 1.
BELOW = 3

space_app = typer.Typer(
    help="Which vectors may be compared with which.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@space_app.command()
@with_flags(*MODEL_SETTINGS)
def compare(
    settings: Settings,
    a: Annotated[str, typer.Argument(metavar="A", help=A_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, written likewise.")],
    text: Texts,
    at_least: Annotated[
        Verdict | None,
        typer.Option(help=f"End with exit code {BELOW} if the verdict is weaker than this one."),
    ] = None,
    key_a: Annotated[str | None, typer.Option(metavar="WHERE", help=A_KEY.format("A"))] = None,
    key_b: Annotated[str | None, typer.Option(metavar="WHERE", help=A_KEY.format("B"))] = None,
    input_type: InputType = None,
    truncate: Truncate = False,
    skip_blank: SkipBlank = False,
    field: Field = "text",
    max_texts: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Most texts; of more so many are drawn.")
    ] = 100_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell whether two models, dtypes, devices or servers give vectors of one space."""
    from server.commands.progress import FittingBars
    from server.commands.space_tables import comparison_json, print_comparison
    from server.spaces.compare import TextWishes, compare_spaces
    from server.spaces.side import Asked
    from server.spaces.sides import open_side

    settings.check_data_dir()
    asked = Asked(input_type, truncate)
    left = open_side(a, settings, asked, key_a, "--key-a")
    right = open_side(b, settings, asked, key_b, "--key-b")
    wishes = TextWishes(text, max_texts, field, skip_blank)
    found = compare_spaces(left, right, wishes, FittingBars())
    if as_json:
        print(comparison_json(found))
    else:
        print_comparison(found)
    if at_least is not None and not found.verdict.is_at_least(at_least):
        raise typer.Exit(BELOW)
