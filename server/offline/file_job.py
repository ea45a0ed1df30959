"""A whole input of texts into an output of vectors, window by window; resumable.

After each window the output is on disk before the checkpoint says so. A run that goes on cuts off
what the checkpoint does not know, and gives the bytes that one uninterrupted run gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.errors import OutputFileError, TextFileError
from server.inference.vector_form import VectorForm
from server.offline.checkpoint import Checkpoint, Fact, checkpoint_of, read_checkpoint
from server.offline.embed_windows import ShowProgress, embed_windows
from server.offline.embedder import Embedder
from server.offline.outputs import GrowingFile, format_of, json_lines, partial_of
from server.offline.texts import START, Mark, TextReader, TextWindow


@dataclass(frozen=True, slots=True)
class Recipe:
    """How texts become vectors."""

    form: VectorForm
    prompt: str = ""  # put in front of each text
    truncate: bool = False  # cut over-long texts, do not refuse them


class FileJob:
    """An output that is to be made, or gone on with; nothing is read or written yet.

    Raises:
        OutputFileError: the output is there already, or is not that of an interrupted run that
            `facts` fit to.
        MissingExtra: see `format_of`.
    """

    def __init__(
        self, output: Path, facts: dict[str, Fact], recipe: Recipe, *, resume: bool
    ) -> None:
        self._output = output
        self._recipe = recipe
        self._kind = format_of(output)
        self._checkpoint_file = checkpoint_of(output)
        found = read_checkpoint(self._checkpoint_file)
        partial = partial_of(output)
        if found is None or not resume:
            if output.exists():
                raise OutputFileError(f"{output} is there already; it is not overwritten")
            if found is not None:
                raise OutputFileError(
                    f"{partial} is from a run that was interrupted; go on with --resume, or delete "
                    f"it and {self._checkpoint_file}"
                )
            if partial.exists():
                raise OutputFileError(
                    f"{partial} is there without {self._checkpoint_file}; delete it to begin anew"
                )
            found = Checkpoint(facts)
        found.check_facts(facts)
        self._checkpoint = replace(found, facts=facts)

    @property
    def begun_at(self) -> Mark:
        """How far the input was embedded already."""
        return self._checkpoint.input

    def run(self, embedder: Embedder, reader: TextReader, show: ShowProgress) -> Mark:
        """Embed what is left; returns the end of the input.

        Raises:
            TextFileError: the input is not the one that was begun, or holds what cannot be embedded.
            OutputFileError: the output cannot be written.
        """
        reader.skip(self.begun_at)
        try:
            if self._output.exists():  # the last run ended between its last two steps
                if next(reader.windows(), None) is not None:
                    raise OutputFileError(
                        f"{self._output} is complete, and {reader.name} has grown since"
                    )
                partial_of(self._output).unlink(missing_ok=True)
            else:
                self._embed(embedder, reader, show)
            self._checkpoint_file.unlink()
        except OSError as error:
            raise OutputFileError(f"{self._output}: {error.strerror}") from error
        return self.begun_at

    def _embed(self, embedder: Embedder, reader: TextReader, show: ShowProgress) -> None:
        self._checkpoint.save(self._checkpoint_file)
        form = self._recipe.form
        file = self._kind(self._output, form.dimensions, self._checkpoint.output_bytes)

        def write(window: TextWindow, vectors: NDArray[np.float32]) -> None:
            shaped = form.shape(vectors, embedder.rotation)
            size = file.append(window.end.texts - len(shaped), shaped)
            self._checkpoint = replace(self._checkpoint, input=window.end, output_bytes=size)
            self._checkpoint.save(self._checkpoint_file)

        try:
            embed_windows(
                embedder,
                reader.windows(),
                write,
                prompt=self._recipe.prompt,
                truncate=self._recipe.truncate,
                start=self.begun_at,
                show=show,
            )
            self._check_any(reader)
            file.finish(self.begun_at.texts)
        finally:
            file.close()
            if self.begun_at == START:  # nothing was embedded, nothing is to be gone on with
                self._forget(file)

    def _check_any(self, reader: TextReader) -> None:
        if not self.begun_at.texts:
            raise TextFileError(f"{reader.name} holds no text")

    def _forget(self, file: GrowingFile) -> None:
        file.partial.unlink(missing_ok=True)
        self._checkpoint_file.unlink(missing_ok=True)


def write_lines(
    embedder: Embedder,
    reader: TextReader,
    recipe: Recipe,
    emit: Callable[[bytes], None],
    show: ShowProgress,
) -> Mark:
    """Embed the input as JSON lines for a pipe; returns the end of the input.

    Args:
        emit: called with the lines of one window after the other.

    Raises:
        TextFileError: it holds what cannot be embedded, or nothing.
    """
    end = START

    def write(window: TextWindow, vectors: NDArray[np.float32]) -> None:
        nonlocal end
        shaped = recipe.form.shape(vectors, embedder.rotation)
        emit(json_lines(window.end.texts - len(shaped), shaped))
        end = window.end

    embed_windows(
        embedder,
        reader.windows(),
        write,
        prompt=recipe.prompt,
        truncate=recipe.truncate,
        show=show,
    )
    if not end.texts:
        raise TextFileError(f"{reader.name} holds no text")
    return end
