"""One file that brings models, and the software's wheels, to a machine without network.

A bundle is an uncompressed tar archive (weights and wheels do not get smaller) whose first member,
`bundle.json`, lists every other member with size and sha256, sorted by name. Owners, modes and
times are constants, so the manifest decides every byte of the headers and of the padding. Reading
therefore does not interpret an archive: it makes the headers that the manifest calls for and
compares. A link, a device, a path that climbs out, a second member of one name, or a byte too
many cannot be said in this format.

The format itself, as bytes; `bundle_writer` and `bundle_reader` have the files. Pure.
"""

from __future__ import annotations

import functools
import json
import re
import tarfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from server import __version__
from server.catalog.card import CARD_FILE, FilePin
from server.catalog.names import is_card_name
from server.delivery.papers import LICENCES, SBOM
from server.delivery.signatures import NAMESPACE

FORMAT: Final = 2
READABLE: Final = (1, 2)  # the first had no papers
MANIFEST = "bundle.json"
README = "README.txt"
MODELS = "models/"
WHEELS = "wheels/"
MAX_MANIFEST_BYTES = 1 << 20

_MODE = 0o644
_MTIME_S = 315_532_800  # 1980-01-01 UTC; of 0, some versions of tar say that it is implausible
CHUNK_BYTES = 1 << 20
END = bytes(2 * tarfile.BLOCKSIZE)
# Each part of a path: no ".", no "..", nothing hidden, nothing that looks like an option.
_PART = re.compile(r"\w[\w.+!\-]*")

_WITH_WHEELS = """\
To install it without network, with Python {python} on a machine of the kind its wheels are for,
in a folder that holds nothing else:

  ssh-keygen -Y verify -f TRUSTED -I SIGNER -n {namespace} -s {file}.sig < {file}    # if signed
  sha256sum {file}    # must be the digest that was approved
  tar xf {file} wheels
  python3 -I -m venv embedding-server
  embedding-server/bin/pip install --no-index --find-links wheels embedding-server
  embedding-server/bin/embedding-server bundle install {file}
"""
_WITHOUT_WHEELS = """\
It brings no wheels. To install it where embedding-server is installed:

  ssh-keygen -Y verify -f TRUSTED -I SIGNER -n {namespace} -s {file}.sig < {file}    # if signed
  sha256sum {file}    # must be the digest that was approved
  embedding-server bundle install {file}
"""


def instructions(wheels: Iterable[str], file: str) -> str:
    """What to type on the machine without network, for a bundle with wheels of these names."""
    if not wheels:
        return _WITHOUT_WHEELS.format(file=file, namespace=NAMESPACE)
    # A wheel for one version has it twice; `cp311-abi3` is for 3.11 and all that follow.
    found = (re.search(r"-cp3(\d+)-cp3\1t?-", name) for name in wheels)
    minors = sorted({int(one[1]) for one in found if one})
    python = " or ".join(f"3.{minor}" for minor in minors) or "3.11 or newer"
    return _WITH_WHEELS.format(file=file, python=python, namespace=NAMESPACE)


class Manifest(BaseModel, extra="forbid", frozen=True):
    """What is in a bundle: `files`, by their paths in the archive, the manifest left out."""

    format: Literal[1, 2] = FORMAT
    software: Annotated[str, Field(pattern=r"^embedding-server [\w.+!\-]{1,100}$")] = (
        f"embedding-server {__version__}"
    )
    files: dict[str, FilePin]

    @field_validator("files")
    @classmethod
    def _can_be_unpacked(
        cls, files: dict[str, FilePin], others: ValidationInfo
    ) -> dict[str, FilePin]:
        names = list(filter(None, map(_model_of_card, files)))
        cards = {f"{MODELS}{name}" for name in names}
        single = {README, SBOM, LICENCES} if others.data.get("format") == FORMAT else {README}
        seen: dict[str, str] = {}
        for path in files:
            # Some file systems do not tell these apart.
            other = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if other is not path:
                raise ValueError(f"{other!r} and {path!r} may be one file")
            if not all(_PART.fullmatch(part) for part in path.split("/")):
                raise ValueError(f"{path!r} is no path that a bundle may hold")
            folders = [str(folder) for folder in Path(path).parents]
            wheel = path.endswith(".whl") and folders[:-1] == [WHEELS.rstrip("/")]
            if not wheel and path not in single and len(cards.intersection(folders)) != 1:
                raise ValueError(f"{path!r} is neither a wheel nor a file of exactly one model")
        for name in names:
            if not is_card_name(name):
                raise ValueError(f"{name!r} is no name of a model")
        return files

    @property
    def papers(self) -> dict[str, FilePin]:
        """The SBOM and the licence texts; none in format 1."""
        return {name: self.files[name] for name in (SBOM, LICENCES) if name in self.files}

    @functools.cached_property
    def models(self) -> tuple[str, ...]:
        """The names of the models, sorted."""
        return tuple(filter(None, map(_model_of_card, self.files)))

    def of_model(self, name: str) -> dict[str, FilePin]:
        """A model's files, by their paths in its folder, the card among them."""
        return self._below(f"{MODELS}{name}/")

    @property
    def wheels(self) -> dict[str, FilePin]:
        """The wheels, by their file names."""
        return self._below(WHEELS)

    def _below(self, folder: str) -> dict[str, FilePin]:
        return {
            path.removeprefix(folder): pin
            for path, pin in self.files.items()
            if path.startswith(folder)
        }

    def encoded(self) -> bytes:
        """The one way to write this manifest."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()


def archive_bytes(manifest: Manifest) -> int:
    """Size of the bundle with this manifest."""
    sizes = {MANIFEST: len(manifest.encoded())}
    sizes |= {path: pin.bytes for path, pin in manifest.files.items()}
    parts = (len(header(path, size)) + size + len(padding(size)) for path, size in sizes.items())
    return sum(parts) + len(END)


def _model_of_card(path: str) -> str | None:
    """The model's name if this is the path of a card."""
    found = re.fullmatch(f"{MODELS}(.+)/{re.escape(CARD_FILE)}", path, re.DOTALL)
    return found[1] if found else None


def header(path: str, size: int) -> bytes:
    """What stands before a member: one block, more only for a long name or over 8 GiB."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size, _MODE, _MTIME_S
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """The zeros behind a content of so many bytes."""
    return bytes(-size % tarfile.BLOCKSIZE)


def reason_of(error: ValidationError) -> str:
    """What is wrong with a manifest, in one line that cannot steer a terminal."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return printable(f"{place}: {problem['msg']}" if place else problem["msg"])


def printable(text: str) -> str:
    """Text from a bundle for a message: it must not steer the terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
