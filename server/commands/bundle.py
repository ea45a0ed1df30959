"""The commands `embedding-server bundle`: create, papers, show, install.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.flags import FOLDERS, TRUST, with_flags
from server.errors import BundleError, unusable
from server.settings import Settings

if TYPE_CHECKING:
    from server.delivery.bundle_reader import BundleReader
    from server.delivery.signatures import Signed


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
SignKey = Annotated[
    Path | None,
    typer.Option(
        metavar="KEY",
        help="Sign the file with this OpenSSH key; the signature is FILE.sig. A public key means "
        "the agent's.",
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
    sign: SignKey = None,
    force: Force = False,
) -> None:
    """Write models, and the software, into one file.

    With them go an SBOM (CycloneDX) and the texts of all licences. Prints the file's sha256; the same content always gives the same bytes. The file is a tar archive that plain tools can
    look into; its README.txt tells how to install it.
    """
    import tempfile

    from server.catalog.registry import read_registry
    from server.commands.progress import byte_progress
    from server.delivery import signatures
    from server.delivery.bundle_writer import Contents, check_output
    from server.delivery.sbom import check_library
    from server.delivery.wheels import collect_wheels, wheels_in

    if wheels and wheels_from:
        raise BundleError("--wheels and --wheels-from exclude each other")
    if extra and not wheels:
        raise BundleError("--extra needs --wheels")
    settings.check_data_dir()
    check_output(output, force=force)  # before minutes of work
    check_library()
    if sign:
        signatures.check_can_sign(sign)
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
    _name_missing_texts(contents.without_licence_text)
    if sign:
        key = signatures.sign(output, sign, digest)
        print(f"signed with {key}: {signatures.signature_of(output)}", file=sys.stderr)
    print(f"{digest}  {output}")  # as sha256sum writes it


@bundle_app.command("papers")
@with_flags(*FOLDERS)
def papers(
    settings: Settings,
    wheels_from: Annotated[Path, typer.Option(metavar="DIR", help="The software's wheels.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write into.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Models; default: all there are.")
    ] = None,
) -> None:
    """Write the SBOM and the licence texts of models and wheels, as a bundle holds them.

    For images, and for whatever else the software travels in.
    """
    from server.catalog.registry import read_registry
    from server.delivery.bundle_writer import Contents
    from server.delivery.wheels import wheels_in

    there = read_registry(*settings.model_folders())
    contents = Contents((there.select(names) if names else there).cards, wheels_in(wheels_from))
    try:
        for name, content in contents.papers.items():
            (output / name).write_bytes(content)
            print(output / name)
    except OSError as error:
        raise BundleError(unusable(f"cannot write {output}", error)) from error
    _name_missing_texts(contents.without_licence_text)


@bundle_app.command("show")
@with_flags(*TRUST)
def show(settings: Settings, file: BundleFile, sha256: Approved = None) -> None:
    """Show what is in a bundle and how to install it.

    Compares every byte with the bundle's own list. Only a digest that came another way, --sha256,
    or a signature by a key that counts, --trust, tells that it is the one that was approved.
    """
    from rich.filesize import decimal

    from server.delivery.bundle_format import instructions

    with _opened(file, settings, _checked_digest(sha256)) as (bundle, approved, seal):
        for _ in bundle.members():
            pass
        bundle.check_sha256(approved)
    manifest = bundle.manifest
    print(f"bundle of {manifest.software}, format {manifest.format}, every byte as its list says")
    print(f"sha256 {bundle.sha256}")
    print(seal)
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
    if manifest.papers:
        print("\nSBOM and licences")
        for name, pin in manifest.papers.items():
            print(f"  {pin.sha256}  {name}")
    print(f"\n{instructions(manifest.wheels, str(file))}", end="")


@bundle_app.command("install")
@with_flags(*FOLDERS, *TRUST)
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

    They go into the data folder; every byte is compared before one can be seen. With --trust nothing is read of a bundle
    before its signature is verified. Where there is nothing but FILE and Python,
    the software comes first: tar xf FILE wheels; then, in a virtual environment,
    pip install --no-index --find-links wheels embedding-server.
    """
    from server.delivery.install import install as install_models

    place = settings.installed_models_dir()
    with _opened(file, settings, _checked_digest(sha256)) as (bundle, approved, seal):
        settings.make_data_dir()
        fates = install_models(
            bundle, settings.models_dir, place, approved_sha256=approved, replace=replace
        )
    print(seal)
    for name, fate in fates.items():
        print(f"{name}: {fate} in {place / name}")


@contextmanager
def _opened(
    file: Path, settings: Settings, approved: str | None
) -> Iterator[tuple[BundleReader, str | None, str]]:
    """The bundle, its manifest read, with a progress bar over its bytes.

    With it come the digest that all of it must have, and a line that tells whose signature it has.
    Where a signature was verified, that is the digest of what was verified: what is read later
    cannot be another file's.
    """
    from server.commands.progress import byte_progress
    from server.delivery import signatures
    from server.delivery.bundle_reader import BundleReader, check_approved

    opened = signatures.open_regular(file, "bundle")
    size = os.fstat(opened.fileno()).st_size
    sealed = settings.trust is not None or os.path.lexists(signatures.signature_of(file))
    with opened, byte_progress(file.name, size * (1 + sealed)) as report:
        signed: Signed | None = None
        if settings.trust is not None:
            signed = signatures.verify(opened, file, settings.trust, settings.trust_revoked, report)
        elif signatures.has_program():
            signed = signatures.look_at(opened, file, report)
        if signed:
            check_approved(file, signed.sha256, approved)
            approved = signed.sha256
            opened.seek(0)
        yield BundleReader(opened, file, report), approved, _seal(signed, sealed=sealed)


def _seal(signed: Signed | None, *, sealed: bool) -> str:
    """The line that tells whose signature a bundle has."""
    if signed is None:
        return "signed, but nobody looked: there is no ssh-keygen here" if sealed else "not signed"
    if signed.signer is None:
        return f"signed with {signed.key}; no --trust says whether that key counts"
    return f"signed by {signed.signer} with {signed.key}"


def _name_missing_texts(titles: Collection[str]) -> None:
    if titles:
        print(f"no licence text comes with: {'; '.join(titles)}", file=sys.stderr)


def _checked_digest(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise BundleError("--sha256: a sha256 has 64 hexadecimal digits")
    return text
