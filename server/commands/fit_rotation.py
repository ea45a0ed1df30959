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
    from functools import partial

    from server.fitting.measuring import (
        check_count,
        embed_pairs,
        embed_visibly,
        measure,
        parse_sizes,
        read_scored_pairs,
    )
    from server.fitting.plots import check_plot, draw
    from server.fitting.rotation import SEED, STEPS, fit, protected_sizes, recommended_sizes
    from server.fitting.tables import comparison_panels, print_comparison
    from server.fitting.variant import (
        VariantPlan,
        check_it_helps,
        held_out_count,
        least_texts,
        neighbours_rows,
    )
    from server.inference.matryoshka import shorten
    from server.inference.pooling import normalize
    from server.offline.embedder import find_card, load_model
    from server.offline.progress_bar import step_bar
    from server.offline.texts import sample_texts

    if plot:
        check_plot(plot)
    card = find_card(settings, name)
    plan = VariantPlan(settings, card, new_name, force=force)
    native = card.embedding_dim
    chosen = parse_sizes(sizes or ",".join(map(str, recommended_sizes(native))), native)
    scored = read_scored_pairs(evaluate) if evaluate else None
    texts, there = sample_texts(text, field=field, most=max_texts, seed=SEED)
    check_count(texts, least_texts(native))
    model, prompt = load_model(settings, card), card.prompt(input_type)
    vectors = embed_visibly(model, texts, "embedding", prompt=prompt)
    pairs = embed_pairs(model, scored, prompt=prompt) if scored else None
    held_out = vectors[: held_out_count(len(texts))]
    with step_bar("fitting", total=STEPS) as step:
        rotation = fit(
            normalize(vectors[len(held_out) :]),
            protected_sizes(native, chosen),
            steps=STEPS,
            after_step=step,
        )
    plain = measure(held_out, model.cut, chosen, pairs)
    rotated = measure(held_out, partial(shorten, rotation=rotation), chosen, pairs)
    print_comparison(
        plain, rotated, fitted=len(texts) - len(held_out), held_out=len(held_out), there=there
    )
    if plot:
        draw(comparison_panels(plain, rotated), plot)
    check_it_helps(plain, rotated)
    made = plan.install(rotation, chosen, neighbours_rows(plain, rotated, len(held_out)))
    print(f"{made.name}: written to {made.folder}; serve it with --model {made.name}")
