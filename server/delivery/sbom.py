"""The list of all that is delivered, as CycloneDX (JSON, version 1.6) for programs to read.

The same wheels and models give the same bytes: there is no time in it, and its serial number is
made of its content. The library that knows the format is wanted only where bundles are made: it is
the extra `papers`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server import __version__
from server.catalog.card import Card, FilePin
from server.catalog.sources import HubSource, PypiSource
from server.delivery.wheel_metadata import OWN_LICENCE, WheelMetadata
from server.errors import MissingExtra
from server.program.command_lines import DISTRIBUTION

if TYPE_CHECKING:
    from cyclonedx.model import ExternalReference, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License
    from packageurl import PackageURL

_PROPERTY = f"{DISTRIBUTION}:"
Models = Sequence[tuple[Card, FilePin]]  # each with the pin of its card file
_EXTRA = re.compile(r"""\bextra == ["']([^"']+)["']""")


def check_library() -> None:
    """Raise MissingExtra if `papers` is not installed: better before wheels are fetched."""
    if importlib.util.find_spec("cyclonedx") is None:
        raise MissingExtra("an SBOM", "cyclonedx-python-lib", "papers")


def sbom(models: Models, wheels: Mapping[WheelMetadata, FilePin]) -> bytes:
    """The SBOM of these models and wheels.

    Raises:
        MissingExtra: `papers` is not installed.
    """
    check_library()
    from cyclonedx.output.json import JsonV1Dot6

    document = json.loads(JsonV1Dot6(_bom(models, wheels)).output_as_string())
    # The library puts the time of making here, and a random number there.
    del document["metadata"]["timestamp"], document["serialNumber"]
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, content).urn
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _bom(models: Models, wheels: Mapping[WheelMetadata, FilePin]) -> Bom:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    own = {wheel: pin for wheel, pin in wheels.items() if wheel.name == DISTRIBUTION}
    root = Component(
        name=DISTRIBUTION,
        type=ComponentType.APPLICATION,
        version=__version__,
        bom_ref=f"{DISTRIBUTION}@{__version__}",
        licenses=_licences(OWN_LICENCE),
        # No package index has it.
        purl=PackageURL("generic", None, DISTRIBUTION, __version__),
        hashes=[_sha256(pin) for pin in own.values()],
    )
    libraries: dict[str, list[Component]] = {}  # several of a name, for several kinds of machine
    for wheel, pin in wheels.items():
        if wheel not in own:
            libraries.setdefault(wheel.name, []).append(_library(wheel, pin))
    by_card = {card.name: _model(card, pin) for card, pin in models}
    bom = Bom(components=[*chain.from_iterable(libraries.values()), *by_card.values()])
    bom.metadata.component = root
    needed = {
        name: [library for need in needs for library in libraries.get(need, ())]
        for name, needs in _needs(wheels).items()
    }
    bom.register_dependency(root, [*needed.get(DISTRIBUTION, ()), *by_card.values()])
    for name, those in libraries.items():
        for library in those:
            bom.register_dependency(library, needed[name])
    for card, _ in models:
        base = [by_card[card.base.name]] if card.base else []
        bom.register_dependency(by_card[card.name], base)
    return bom


def _library(wheel: WheelMetadata, pin: FilePin) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    said = [("sbom-in-wheel", path) for path in wheel.sboms]
    if not wheel.licence_texts:
        said.append(("licence-text", "missing in the wheel"))
    return Component(
        name=wheel.name,
        type=ComponentType.LIBRARY,
        version=wheel.version,
        bom_ref=f"wheels/{wheel.file}",
        licenses=_licences(wheel.licence),
        purl=PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.file}),
        hashes=[_sha256(pin)],
        properties=[Property(name=_PROPERTY + key, value=value) for key, value in said],
    )


def _model(card: Card, card_pin: FilePin) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    place = f"models/{card.name}"
    files = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"{place}/{name}",
            hashes=[_sha256(pin)],
        )
        for name, pin in {"card.toml": card_pin, **card.files}.items()
    ]
    return Component(
        name=card.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=card.fingerprint,
        bom_ref=place,
        publisher=card.owned_by or None,
        description=card.description or None,
        licenses=_licences(card.license),
        external_references=[_source(source) for source in card.sources],
        components=files,
        purl=_hub_purl(card),
    )


def _hub_purl(card: Card) -> PackageURL | None:
    from packageurl import PackageURL

    for source in card.sources:
        if isinstance(source, HubSource):
            owner, _, name = source.repository.rpartition("/")
            return PackageURL("huggingface", owner or None, name, source.revision)
    return None


def _source(source: PypiSource | HubSource) -> ExternalReference:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri

    if isinstance(source, HubSource):
        url = f"https://huggingface.co/{source.repository}/tree/{source.revision}"
    else:
        url = f"https://pypi.org/project/{source.package}/{source.version}/"
    return ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(url),
        comment=f"files: {', '.join(source.files)}",
    )


def _licences(said: str | None) -> list[License]:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.license import LicenseAcknowledgement

    if not said:
        return []
    declared = LicenseAcknowledgement.DECLARED
    return [LicenseFactory().make_from_string(said, license_acknowledgement=declared)]


def _sha256(pin: FilePin) -> HashType:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=pin.sha256)


def _needs(wheels: Iterable[WheelMetadata]) -> dict[str, list[str]]:
    """The canonical names of what each distribution needs, the same on every platform.

    What an extra needs counts if something delivered asks for that extra; the software's own extras
    count if all that they need is delivered.
    """
    needs: dict[str, list[Requirement]] = {}
    for wheel in wheels:
        needs.setdefault(wheel.name, []).extend(wheel.requirements)
    own: dict[str, set[str]] = {}
    for need in needs.get(DISTRIBUTION, ()):
        for extra in _extras(need):
            own.setdefault(extra, set()).add(canonicalize_name(need.name))
    here = {DISTRIBUTION: frozenset(e for e, wanted in own.items() if wanted <= needs.keys())}
    asked = here  # extras of each distribution
    while True:
        counting = {
            name: [need for need in those if _counts(need, asked.get(name, frozenset()))]
            for name, those in needs.items()
        }
        more = dict(here)
        for need in chain.from_iterable(counting.values()):
            name = canonicalize_name(need.name)
            more[name] = more.get(name, frozenset()) | {canonicalize_name(e) for e in need.extras}
        if more == asked:
            return {
                name: sorted({canonicalize_name(need.name) for need in those})
                for name, those in counting.items()
            }
        asked = more


def _counts(need: Requirement, asked: frozenset[str]) -> bool:
    extras = _extras(need)
    return not extras or bool(extras & asked)


def _extras(need: Requirement) -> set[str]:
    return {canonicalize_name(extra) for extra in _EXTRA.findall(str(need.marker or ""))}
