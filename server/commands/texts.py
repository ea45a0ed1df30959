"""The commands that read files of texts: embed, dimensions.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.commands.flags import with_flags
from server.program.termination import Terminated
from server.settings import Settings

MODEL_SETTINGS = (
    *("models_dir", "data_dir", "threads", "device", "dtype", "min_parity"),
    *("max_batch_tokens", "check_files"),
)

InputType = Annotated[
    str | None,
    typer.Option(
        help="Put the model's prompt for this purpose before each text: query, document, or the "
        "name of one of its prompts."
    ),
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
# The flags of `embed` alone.
TextFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE|-",
        help="Texts: FILE.txt (one a line), FILE.jsonl (strings, or objects with --field), or "
        "- for lines from standard input.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="FILE.npy, FILE.jsonl or FILE.parquet; default: JSON lines on standard output.",
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Model, by its card's name; default: the first served one.")
]
Dimensions = Annotated[int | None, typer.Option(min=1, help="Size of the vectors.")]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut over-long texts, do not refuse them.")
]
SkipBlank = Annotated[
    bool, typer.Option("--skip-blank", help="Leave out blank texts, do not refuse them.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with what an interrupted run has left.")
]


@with_flags(*MODEL_SETTINGS)
def embed(
    settings: Settings,
    file: TextFile,
    output: Output = None,
    model: Model = None,
    input_type: InputType = None,
    dimensions: Dimensions = None,
    truncate: Truncate = False,
    skip_blank: SkipBlank = False,
    field: Field = "text",
    resume: Resume = False,
) -> None:
    """Turn a file of texts into a file of vectors, without a server."""
    # The workers share the cores among themselves; a thread pool in numpy would fight them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server.commands.progress import embedding_progress
    from server.offline.embed_file import EmbedFile, FileWishes

    wishes = FileWishes(
        file=file,
        output=output,
        model=model,
        input_type=input_type,
        dimensions=dimensions,
        truncate=truncate,
        skip_blank=skip_blank,
        field=field,
        resume=resume,
    )
    work = EmbedFile(settings, wishes)
    try:
        done = work.run(
            _write_out,
            lambda total, start: embedding_progress(
                "embedding", total, unit="read_bytes", start=start
            ),
        )
    except (KeyboardInterrupt, Terminated):
        if texts := work.texts_on_disk:
            print(f"interrupted after {texts:,} texts; go on with --resume", file=sys.stderr)
        raise
    again = f" ({done.texts_before:,} of them before)" if done.texts_before else ""
    where = f"{output}: " if output else ""
    print(
        f"{where}{done.texts:,} texts{again}, {work.form.dimensions} dimensions, "
        f"{work.card.name}, {done.seconds:.1f} s",
        file=sys.stderr,
    )


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
    from server.commands.progress import FittingBars
    from server.commands.size_tables import dimensions_json, dimensions_panels, print_dimensions
    from server.fitting.plots import check_plot, draw
    from server.fitting.sampling import SampleWishes
    from server.fitting.survey import survey_sizes

    if plot:
        check_plot(plot)
    wishes = SampleWishes(text, max_texts, field, input_type, evaluate)
    found = survey_sizes(settings, name, wishes, FittingBars(), sizes=sizes)
    if as_json:
        print(dimensions_json(found))
    else:
        print_dimensions(found)
    if plot:
        draw(dimensions_panels(found), plot)
