"""The papers of a delivery: what it consists of, and under which licences. For bundles and images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from server.catalog.card import FilePin
from server.delivery.licences import Licences
from server.delivery.sbom import Models, sbom
from server.delivery.wheel_metadata import read_wheel

SBOM: Final = "sbom.cdx.json"
LICENCES: Final = "licences.txt"


class Papers:
    """Made from models and wheels; reads the wheels.

    Args:
        models: with the pins of their card files; bases among them.
        wheels: with their pins.

    Attributes:
        files: content by name.
        without_text: a line for each wheel and model that brings no licence text.

    Raises:
        BundleError: a wheel cannot be read.
        MissingExtra: `papers` is not installed.
    """

    def __init__(self, models: Models, wheels: Mapping[Path, FilePin]) -> None:
        read = {read_wheel(path): pin for path, pin in wheels.items()}
        licences = Licences((card for card, _ in models), read)
        self.without_text = tuple(licences.without_text)
        self.files = {SBOM: sbom(models, read), LICENCES: licences.encoded()}
