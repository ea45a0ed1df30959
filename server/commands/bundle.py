"""The commands `embedding-server bundle`: create, show, install.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.flags import FOLDERS, with_flags
from server.errors import BundleError, unusable
from server.settings import Settings

if TYPE_CHECKING:
    from server.delivery.bundle_reader import BundleReader


bundle_app = typer.Typer(
    help="One file with models, and the software, for a machine without network.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BundleFile = Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")]
Approved = Annotated[
    str | None,
    typer.Option(
        "--sha256", metavar="HEX", help="What the sha256 of the whole file must be, as approved."
    ),
]


# The flags of `bundle create`.
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME", help="Models, by their cards' names; bases come along."),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The bundle to write.")
]
Wheels = Annotated[
    bool,
    typer.Option(
        "--wheels",
        help="Add every wheel that installs this server without a package index, at the "
        "versions installed here, for this platform; pip fetches them.",
    ),
]
WheelsFrom = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Add the wheels of this folder instead, say for another platform."
    ),
]
Extras = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="With --wheels: bring what the extra NAME needs, too, say shared (repeatable).",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")]


@bundle_app.command("create")
@with_flags(*FOLDERS)
def create(
    settings: Settings,
    names: Names,
    output: Output,
    wheels: Wheels = False,
    wheels_from: WheelsFrom = None,
    extra: Extras = None,
    force: Force = False,
) -> None:
    """Write models, and the software, into one file.

    Prints the file's sha256; the same content always gives the same bytes. The file is a tar archive that plain tools can
    look into; its README.txt tells how to install it.
    """
    import tempfile

    from server.catalog.registry import read_registry
    from server.commands.progress import byte_progress
    from server.delivery.bundle_writer import Contents, check_output
    from server.delivery.wheels import collect_wheels, wheels_in

    if wheels and wheels_from:
        raise BundleError("--wheels and --wheels-from exclude each other")
    if extra and not wheels:
        raise BundleError("--extra needs --wheels")
    settings.check_data_dir()
    check_output(output, force=force)  # before minutes of work
    there = read_registry(*settings.model_folders())
    cards = there.select(names).cards
    there.warn_of_broken()
    with tempfile.TemporaryDirectory(prefix="embedding-server-") as scratch:
        added = []
        if wheels_from:
            added = wheels_in(wheels_from)
        elif wheels:
            added = collect_wheels(Path(scratch), extra or ())
        contents = Contents(cards, added)
        with byte_progress(output.name, contents.archive_bytes) as report:
            digest = contents.write(output, force=force, report=report)
    print(f"{digest}  {output}")  # as sha256sum writes it


@bundle_app.command("show")
def show(file: BundleFile, sha256: Approved = None) -> None:
    """Show what is in a bundle and how to install it.

    Compares every byte with the bundle's own list; only a digest that came another way, --sha256,
    tells that it is the one that was approved.
    """
    from rich.filesize import decimal

    from server.delivery.bundle_format import instructions

    approved = _checked_digest(sha256)
    with _opened(file) as bundle:
        for _ in bundle.members():
            pass
        bundle.check_sha256(approved)
    manifest = bundle.manifest
    print(f"bundle of {manifest.software}, format {manifest.format}, every byte as its list says")
    print(f"sha256 {bundle.sha256}")
    for name in manifest.models:
        files = manifest.of_model(name)
        size = decimal(sum(pin.bytes for pin in files.values()))
        print(f"\nmodel {name}, {size}")
        for path, pin in files.items():
            print(f"  {pin.sha256}  {path}")
    if manifest.wheels:
        size = decimal(sum(pin.bytes for pin in manifest.wheels.values()))
        print(f"\n{len(manifest.wheels)} wheels, {size}")
        for wheel, pin in manifest.wheels.items():
            print(f"  {pin.sha256}  {wheel}")
    print(f"\n{instructions(manifest.wheels, str(file))}", end="")


@bundle_app.command("install")
@with_flags(*FOLDERS)
def install(
    settings: Settings,
    file: BundleFile,
    sha256: Approved = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Put the bundle's models in the place of others of their names."
        ),
    ] = False,
) -> None:
    """Install a bundle's models: all of them, or none.

    They go into the data folder; every byte is compared before one can be seen. Where there is nothing but FILE and Python,
    the software comes first: tar xf FILE wheels; then, in a virtual environment,
    pip install --no-index --find-links wheels embedding-server.
    """
    from server.delivery.install import install as install_models

    approved = _checked_digest(sha256)
    place = settings.installed_models_dir()
    with _opened(file) as bundle:
        settings.make_data_dir()
        fates = install_models(
            bundle, settings.models_dir, place, approved_sha256=approved, replace=replace
        )
    for name, fate in fates.items():
        print(f"{name}: {fate} in {place / name}")


@contextmanager
def _opened(file: Path) -> Iterator[BundleReader]:
    """The bundle, its manifest read, with a progress bar over its bytes."""
    from server.commands.progress import byte_progress
    from server.delivery.bundle_reader import BundleReader

    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would never open
            raise BundleError(f"bundle {file} is no regular file")
        opened = file.open("rb")
    except OSError as error:
        raise BundleError(unusable(f"bundle {file}", error)) from error
    with opened, byte_progress(file.name, status.st_size) as report:
        yield BundleReader(opened, file, report)


def _checked_digest(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise BundleError("--sha256: a sha256 has 64 hexadecimal digits")
    return text
