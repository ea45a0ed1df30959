"""The commands `embedding-server models`: list, pull, import, clean, verify.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.flags import FOLDERS, Witnessing, with_flags
from server.commands.import_flags import (
    Aliases,
    Base,
    DocumentPrompt,
    Folder,
    Force,
    Graph,
    ImportedName,
    MaxInputTokens,
    NamedPrompts,
    Normalize,
    Onnx,
    Pooling,
    QueryPrompt,
    Replace,
    Sizes,
)
from server.commands.on_demand import commands_on_demand
from server.commands.printing import print_table
from server.errors import ModelFileError, SettingError
from server.program.command_lines import own_command
from server.settings import Settings

if TYPE_CHECKING:
    from server.catalog.card import Card


models_app = typer.Typer(
    cls=commands_on_demand({"fit-rotation": "server.commands.fit_rotation:fit_rotation"}),
    help="The models on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@models_app.command("list")
@with_flags(*FOLDERS)
def list_models(settings: Settings) -> None:
    """Show the models on this machine and whether their files are there."""
    from rich.table import Table

    from server.catalog.registry import read_registry
    from server.catalog.verify import missing_files

    settings.check_data_dir()
    table = Table("model", "dimensions", "max tokens", "Matryoshka", "files", "also called")
    registry = read_registry(*settings.model_folders())
    registry.warn_of_broken()
    for card in registry.cards:
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
    print_table(table)


@models_app.command("pull")
@with_flags(*FOLDERS)
def pull_models(
    settings: Settings,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models of this machine, by their cards' names, or of the Hugging Face hub, as "
            "organisation/model; default: those that are served.",
            metavar="[NAME]...",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Commit, tag or branch of a model of the hub; default: the newest.",
            metavar="REVISION",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What clients call a model of the hub; default: its name.", metavar="NAME"
        ),
    ] = None,
    pooling: Pooling = None,
    normalize: Normalize = None,
) -> None:
    """Fetch the files of models that are not there yet, and check every byte.

    A model of the hub is imported as `models import` does. HF_ENDPOINT names a mirror, HTTPS_PROXY
    a proxy, HF_TOKEN the token for models that need one.
    """
    from server.catalog.registry import read_registry
    from server.delivery.pull import pull

    registry = read_registry(*settings.model_folders())
    there = {called for card in registry.cards for called in (card.name, *card.aliases)}
    there |= {called for card in registry.broken for called in (card.name, *card.aliases)}
    from_hub = [asked for asked in names or () if "/" in asked and asked not in there]
    told = (revision, name, pooling, normalize) != (None, None, None, None)
    if told and (len(from_hub) != 1 or len(names or ()) != 1):
        raise SettingError(
            "--revision, --name, --pooling and --normalize go with one model of the hub"
        )
    pulled: set[str] = set()
    known = [asked for asked in names or settings.model if asked not in from_hub]
    cards = registry.select(known).cards if known else ()
    registry.warn_of_broken()
    for card in cards:
        if card.name not in pulled:  # as another one's base
            pull(card, _say)
            pulled |= {card.name, card.encoder_card.name}
    if from_hub:
        from server.importing.from_hub import import_from_hub

        for repository in from_hub:
            card = import_from_hub(
                settings, repository, revision, name, _say, pooling=pooling, normalize=normalize
            )
            _tell_installed(card)


def _tell_installed(card: Card) -> None:
    print(f"{card.name}: installed in {card.folder}, fingerprint {card.fingerprint}")
    if not card.normalize:
        print("Its vectors are not of unit length: compare them by cosine, not by dot product.")
    print(f"Serve it with: {own_command('serve', '--model', card.name)}")


def _say(line: str) -> None:
    print(line, flush=True)


@models_app.command("import")
@with_flags(*FOLDERS)
def import_folder(
    settings: Settings,
    path: Folder,
    name: ImportedName = None,
    matryoshka: Sizes = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    prompt: NamedPrompts = None,
    alias: Aliases = None,
    pooling: Pooling = None,
    normalize: Normalize = None,
    graph: Graph = None,
    onnx: Onnx = None,
    max_input_tokens: MaxInputTokens = None,
    base: Base = None,
    force: Force = False,
    replace: Replace = False,
) -> None:
    """Install a model from a folder on disk, and refuse one that is not its publisher's.

    No code of the folder is run and nothing is unpickled. Each tensor has to have its place. The
    vectors are compared with sentence-transformers' and with those of a second way to compute them.
    docs/how-to/import-checks.md has every refusal, and what to do about it.
    """
    from server.importing.importer import import_model
    from server.importing.plan import Wishes
    from server.importing.prompts import wished_prompts

    wishes = Wishes(
        name=name,
        matryoshka=_read_sizes(matryoshka),
        prompts=wished_prompts(prompt or (), query_prompt, document_prompt),
        aliases=tuple(alias or ()),
        pooling=pooling,
        normalize=normalize,
        graph=graph,
        onnx=onnx,
        max_input_tokens=max_input_tokens,
        base=base,
        force=force,
        replace=replace,
    )
    place = settings.installed_models_dir()
    settings.make_data_dir()
    card = import_model(path, place, wishes, _say, beside=settings.models_dir)
    _tell_installed(card)


def _read_sizes(text: str | None) -> tuple[int, ...]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal():
            raise SettingError(f"--matryoshka: {part!r} is no number")
    return tuple(map(int, parts))


@models_app.command("clean")
@with_flags(*FOLDERS)
def clean(settings: Settings) -> None:
    """Remove what failed or killed pulls and imports have left, and tell how much that freed.

    No model is touched, nor what a running one uses, nor any folder of your own. A download that
    the next pull would have gone on with is removed, too.
    """
    from rich.filesize import decimal

    from server.delivery.leftovers import clear_leftovers

    total = 0
    faults = []
    downloads = settings.downloads_dir() if settings.data_dir else None
    for left in clear_leftovers(settings.model_folders(), downloads):
        if left.fault is not None:
            faults.append(f"{left.folder}: {left.fault}")
            continue
        told = "in use, left alone" if left.freed is None else f"removed, {decimal(left.freed)}"
        print(f"{left.folder}: {told}")
        total += left.freed or 0
    print(f"freed {decimal(total)}")
    if faults:
        raise ModelFileError(f"cannot clear {'; '.join(faults)}")


@models_app.command("verify")
@with_flags(*FOLDERS)
def verify_models(
    settings: Settings,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Models, by their cards' names; default: all on this machine."),
    ] = None,
    witness: Witnessing = False,
) -> None:
    """Compare every byte of the models with their cards; changes nothing, needs no network."""
    from rich.filesize import decimal

    from server.catalog.registry import read_registry
    from server.catalog.verify import differences
    from server.commands.progress import byte_progress

    settings.check_data_dir()
    folders = settings.model_folders()
    registry = read_registry(*folders)
    if names:
        cards = registry.select(names).cards
        registry.warn_of_broken()
    else:
        registry.check_whole()
        cards = registry.cards
    if not cards:
        raise ModelFileError(f"there is no model in {', '.join(map(str, folders))}")
    # A base is read once, however many share it.
    owners = {owner.folder: owner for card in cards for owner in card.with_base}
    wrong = {}
    total = sum(pin.bytes for owner in owners.values() for pin in owner.files.values())
    with byte_progress("sha256", total) as report:
        for folder, owner in owners.items():
            wrong[folder] = list(differences(folder, owner.files, report).values())
    for card in cards:
        problems = [problem for owner in card.with_base for problem in wrong[owner.folder]]
        pins = [pin for owner in card.with_base for pin in owner.files.values()]
        size = decimal(sum(pin.bytes for pin in pins))
        told = "; ".join(problems) or f"{len(pins)} files, {size}, sha256 as the card says"
        print(f"{card.name}: {told}")
    found = [problem for problems in wrong.values() for problem in problems]
    if found:
        raise ModelFileError(f"not what the cards say: {'; '.join(found)}")
    if witness:
        from server.commands.witnessing import check_by_witness

        check_by_witness(cards, insist=bool(names))
