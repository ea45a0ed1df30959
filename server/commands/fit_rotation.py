"""The command `embedding-server models fit-rotation`.

Imports what it needs when it runs, so that mistakes and `--help` answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from server.commands.flags import with_flags
from server.commands.texts import (
    MODEL_SETTINGS,
    Evaluate,
    Field,
    InputType,
    MaxTexts,
    Plot,
    Texts,
)
from server.settings import Settings


@with_flags(*MODEL_SETTINGS)
def fit_rotation(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Model whose vectors shall be cut.")],
    text: Texts,
    new_name: Annotated[
        str | None, typer.Option("--name", help="Name of the new model; default: NAME-matryoshka.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--dimensions", metavar="N,N", help="Sizes to recommend; default: powers of two to 32."
        ),
    ] = None,
    input_type: InputType = None,
    field: Field = "text",
    max_texts: MaxTexts = 40_000,
    evaluate: Evaluate = None,
    plot: Plot = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take the place of a variant that has the name.")
    ] = False,
) -> None:
    """Make a model's vectors fit for cutting, by a rotation learned from your texts."""
    from server.commands.progress import FittingBars
    from server.commands.size_tables import comparison_panels, print_comparison
    from server.fitting import fit
    from server.fitting.plots import check_plot, draw
    from server.fitting.sampling import SampleWishes

    if plot:
        check_plot(plot)
    wishes = SampleWishes(text, max_texts, field, input_type, evaluate)
    found = fit.fit_rotation(
        settings, name, wishes, FittingBars(), new_name=new_name, sizes=sizes, force=force
    )
    print_comparison(found)
    if plot:
        draw(comparison_panels(found), plot)
    made = found.install()
    print(f"{made.name}: written to {made.folder}; serve it with --model {made.name}")
