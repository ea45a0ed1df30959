"""The commands that read files of texts: embed, dimensions.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from server.commands.flags import with_flags
from server.program.termination import Terminated
from server.settings import Settings

if TYPE_CHECKING:
    from server.offline.embed_file import FileJob, Show
    from server.offline.embedder import OfflineModel
    from server.offline.texts import Mark, TextReader

MODEL_SETTINGS = (
    *("models_dir", "data_dir", "threads", "device", "dtype", "min_parity"),
    *("max_batch_tokens", "check_files"),
)

InputType = Annotated[
    Literal["query", "document"] | None,
    typer.Option(help="Put the model's prompt for this purpose before each text."),
]
Field = Annotated[str, typer.Option(help="Field of a .jsonl file's objects that holds the text.")]
Texts = Annotated[
    list[Path], typer.Option(help="FILE.txt or FILE.jsonl of your texts (repeatable).")
]
MaxTexts = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Most texts; of more so many are drawn.")
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv", help="Also correlate with scored pairs: text,text,score a line."
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: FILE.svg or FILE.png.")]


@with_flags(*MODEL_SETTINGS)
def embed(
    settings: Settings,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|-",
            help="Texts: FILE.txt (one a line), FILE.jsonl (strings, or objects with --field), or "
            "- for lines from standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="FILE.npy, FILE.jsonl or FILE.parquet; default: JSON lines on standard output.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, by its card's name; default: the first served one.")
    ] = None,
    input_type: InputType = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Size of the vectors.")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut over-long texts, do not refuse them.")
    ] = False,
    skip_blank: Annotated[
        bool, typer.Option("--skip-blank", help="Leave out blank texts, do not refuse them.")
    ] = False,
    field: Field = "text",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what an interrupted run has left.")
    ] = False,
) -> None:
    """Turn a file of texts into a file of vectors, without a server."""
    # The workers share the cores among themselves; a thread pool in numpy would fight them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import time

    from server.errors import SettingError
    from server.inference.vector_form import VectorForm
    from server.offline.embed_file import FileJob, facts_of, write_lines
    from server.offline.embedder import find_card, load_model
    from server.offline.progress_bar import embedding_bar
    from server.offline.texts import START, TextReader

    if resume and output is None:
        raise SettingError("--resume needs --output: standard output cannot be gone on with")
    settings.check_data_dir()
    card = find_card(settings, model or settings.model[0])
    size = VectorForm.of(card, dimensions).dimensions
    prompt = card.prompt(input_type)
    facts = facts_of(card, settings, dimensions=size, prompt=prompt, cut_texts=truncate,
                     field=field, skip_blank=skip_blank)  # fmt: skip
    job = FileJob(output, facts, resume=resume) if output else None
    start = job.begun_at if job else START
    with TextReader(file, field=field, skip_blank=skip_blank) as reader:
        loaded = load_model(settings, card)
        began_s = time.perf_counter()
        with embedding_bar(
            "embedding", total=reader.size_bytes, unit="read_bytes", start=start.bytes
        ) as show:
            if job:
                end = _run_job(job, loaded, reader, show)
            else:
                end = write_lines(
                    loaded, reader, _write_out, show,
                    dimensions=size, prompt=prompt, cut_texts=truncate,
                )  # fmt: skip
    seconds = time.perf_counter() - began_s
    again = f" ({start.texts:,} of them before)" if start.texts else ""
    where = f"{output}: " if output else ""
    print(
        f"{where}{end.texts:,} texts{again}, {size} dimensions, {card.name}, {seconds:.1f} s",
        file=sys.stderr,
    )


def _run_job(job: FileJob, model: OfflineModel, reader: TextReader, show: Show) -> Mark:
    try:
        return job.run(model, reader, show)
    except (KeyboardInterrupt, Terminated):
        if texts := job.begun_at.texts:
            print(f"interrupted after {texts:,} texts; go on with --resume", file=sys.stderr)
        raise


def _write_out(lines: bytes) -> None:
    from server.errors import OutputFileError

    try:
        # A buffer of our own: with PYTHONUNBUFFERED Python has none, and a write that takes only the
        # first part, since the disk is full or the reader went away, would pass for a whole one.
        with open(sys.stdout.fileno(), "wb", closefd=False) as out:
            out.write(lines)
    except BrokenPipeError:  # the reader has what it wanted; typer ends quietly
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  # what is left would fail again
        raise OutputFileError(f"standard output: {error.strerror}") from error


@with_flags(*MODEL_SETTINGS)
def dimensions(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Model, by its card's name.")],
    text: Texts,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--dimensions", metavar="N,N", help="Sizes to measure; default: the recommended ones."
        ),
    ] = None,
    input_type: InputType = None,
    field: Field = "text",
    max_texts: MaxTexts = 50_000,
    evaluate: Evaluate = None,
    plot: Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell how much each size of a model's vectors keeps on your texts."""
    from server.fitting.measuring import (
        MIN_TEXTS,
        check_count,
        embed_pairs,
        embed_visibly,
        measure,
        parse_sizes,
        read_scored_pairs,
    )
    from server.fitting.plots import check_plot, draw
    from server.fitting.rotation import SEED, recommended_sizes
    from server.fitting.tables import dimensions_json, dimensions_panels, print_dimensions
    from server.offline.embedder import find_card, load_model
    from server.offline.texts import sample_texts

    if plot:
        check_plot(plot)
    settings.check_data_dir()
    card = find_card(settings, name)
    recommended = card.matryoshka.dimensions if card.matryoshka else ()
    wanted = sizes or ",".join(map(str, recommended or recommended_sizes(card.embedding_dim)))
    chosen = parse_sizes(wanted, card.embedding_dim)
    scored = read_scored_pairs(evaluate) if evaluate else None
    texts, there = sample_texts(text, field=field, most=max_texts, seed=SEED)
    check_count(texts, MIN_TEXTS)
    model, prompt = load_model(settings, card), card.prompt(input_type)
    vectors = embed_visibly(model, texts, "embedding", prompt=prompt)
    pairs = embed_pairs(model, scored, prompt=prompt) if scored else None
    rows = measure(vectors, model.cut, chosen, pairs)
    if as_json:
        print(dimensions_json(card, rows, texts=len(texts), there=there))
    else:
        print_dimensions(card, rows, texts=len(texts), there=there)
    if plot:
        draw(dimensions_panels(card, rows), plot)
