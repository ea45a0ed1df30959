"""From a file of texts to a file of vectors, as the command `embed` does it.

Finds the model and sees that the output may be made before anything long begins. Draws nothing and
prints nothing.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from server import __version__
from server.errors import SettingError
from server.inference.vector_form import VectorForm
from server.offline.checkpoint import Fact
from server.offline.embed_windows import ShowProgress
from server.offline.embedder import Embedder, find_card, offline_opener
from server.offline.file_job import FileJob, Recipe, write_lines
from server.offline.texts import START, TextReader
from server.settings import Settings

# Shows how far it has come while it lasts; is given the input's bytes (None: a pipe) and those that
# were embedded before.
ProgressBar = Callable[[int | None, int], AbstractContextManager[ShowProgress]]


@dataclass(frozen=True, slots=True)
class FileWishes:
    """What the person who embeds a file says."""

    file: Path  # see TextReader
    output: Path | None = None  # None: lines of JSON for a pipe
    model: str | None = None  # None: the first one that is served
    input_type: str | None = None
    dimensions: int | None = None  # None: the native size
    truncate: bool = False  # cut over-long texts, do not refuse them
    skip_blank: bool = False
    field: str = "text"
    resume: bool = False


class FileOutcome(NamedTuple):
    """What has become of a file."""

    texts: int
    texts_before: int  # of them, by the run that was interrupted
    seconds: float  # without reading the model


class EmbedFile:
    """A file of texts that is to become a file of vectors; nothing is written yet.

    Whatever can be wrong without reading the model or the texts is told at once.

    Raises:
        SettingError, CardError, ModelFileError: the model cannot be used.
        InvalidRequest: it has no vectors of this size, or no such prompt.
        OutputFileError: the output is there already, or cannot be gone on with.
        MissingExtra: see `format_of`.
    """

    def __init__(self, settings: Settings, wishes: FileWishes) -> None:
        if wishes.resume and wishes.output is None:
            raise SettingError("--resume needs --output: standard output cannot be gone on with")
        settings.check_data_dir()
        self._settings = settings
        self._wishes = wishes
        self._opener = offline_opener(settings)
        self.card = find_card(settings, self._opener, wishes.model)
        self.form = VectorForm.of(self.card, wishes.dimensions)
        prompt = self.card.prompt_table.text(wishes.input_type)
        self._recipe = Recipe(self.form, prompt, wishes.truncate)
        self._job: FileJob | None = None
        if wishes.output:
            self._job = FileJob(wishes.output, self._facts(), self._recipe, resume=wishes.resume)

    @property
    def texts_on_disk(self) -> int:
        """How many texts' vectors a run that is interrupted now has left to go on from."""
        return self._job.begun_at.texts if self._job else 0

    def run(self, emit: Callable[[bytes], None], bar: ProgressBar) -> FileOutcome:
        """Read the model and embed what is left.

        Args:
            emit: gets the lines of one window after the other if there is no output file.

        Raises:
            ModelFileError, ModelLoadError: the model cannot be used.
            TextFileError: the input cannot be embedded.
            OutputFileError: the output cannot be written.
            KeyboardInterrupt, Terminated: see `embed_windows`.
        """
        wishes = self._wishes
        begun_at = self._job.begun_at if self._job else START
        with (
            TextReader(wishes.file, field=wishes.field, skip_blank=wishes.skip_blank) as reader,
            Embedder.load(self.card, self._opener, self._settings) as embedder,
        ):
            began_s = time.perf_counter()
            with bar(reader.size_bytes, begun_at.bytes) as show:
                if self._job:
                    end = self._job.run(embedder, reader, show)
                else:
                    end = write_lines(embedder, reader, self._recipe, emit, show)
        return FileOutcome(end.texts, begun_at.texts, time.perf_counter() - began_s)

    def _facts(self) -> dict[str, Fact]:
        """All that decides an output's bytes beside the input."""
        return {
            "model": self.card.name,
            "fingerprint": self.card.prompt_table.fingerprint_for(self._wishes.input_type),
            "dimensions": self.form.dimensions,
            "prompt": self._recipe.prompt,
            "field": self._wishes.field,
            "truncate": self._recipe.truncate,
            "skip_blank": self._wishes.skip_blank,
            "max_batch_tokens": self._settings.max_batch_tokens or "auto",
            "device": "CPU" if self._opener.placement.on_cpu else "GPU",
            "version": __version__,
            "onnxruntime": importlib.metadata.version("onnxruntime"),
        }
