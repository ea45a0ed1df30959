"""The flags of `embedding-server models import`; pure declarations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Folder = Annotated[
    Path, typer.Argument(help="Hugging Face or sentence-transformers folder.", metavar="FOLDER")
]
ImportedName = Annotated[
    str | None,
    typer.Option(help="What clients call it; default: the folder's name.", metavar="NAME"),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        help="Sizes to which its vectors may be cut, as it was trained; default: as the table of "
        "families has it for its name.",
        metavar="768,512,...",
    ),
]
QueryPrompt = Annotated[
    str | None,
    typer.Option(
        help="Text put before queries; default: the folder's own, else the table's.", metavar="TEXT"
    ),
]
DocumentPrompt = Annotated[
    str | None,
    typer.Option(
        help="Text put before documents; default: the folder's own, else the table's.",
        metavar="TEXT",
    ),
]
NamedPrompts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TEXT", help="Text put before texts of another purpose (repeatable)."
    ),
]
Aliases = Annotated[
    list[str] | None,
    typer.Option(help="Another name for clients (repeatable).", metavar="NAME"),
]
Pooling = Annotated[
    Literal["mean", "cls", "last_token"] | None,
    typer.Option(
        help="How token vectors become one, for a folder without modules.json; default: as the "
        "table of families has it for its name."
    ),
]
Normalize = Annotated[
    bool | None,
    typer.Option(
        "--normalize/--no-normalize",
        help="Whether vectors get the length 1, for a folder without modules.json; default: as the "
        "table of families has it for its name.",
    ),
]
Graph = Annotated[
    Literal["own", "published"] | None,
    typer.Option(
        help="Make the graph, which needs the [torch] extra, or use the publisher's; default: own "
        "if torch is installed."
    ),
]
Onnx = Annotated[
    str | None,
    typer.Option(
        help="Use this graph of the publisher's, from the folder; default: onnx/model.onnx, or the "
        "only one that there is.",
        metavar="FILE",
    ),
]
MaxInputTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens of the longest text, at most what the model has positions for; default: what "
        "the folder says.",
        metavar="N",
        min=1,
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the model that an adapter (LoRA) was trained on; they are merged.",
        metavar="FOLDER",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Keep it though a comparison of its vectors failed, or the witness has no formula for it; "
        "gets past no other refusal.",
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Take the place of an installed model.")]
