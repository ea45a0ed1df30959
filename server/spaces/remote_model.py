"""A model that a server has as a side of a comparison, asked by POST /v1/embeddings."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from server.errors import (
    ContextLengthExceeded,
    RemoteServerError,
    RemoteServerRefused,
    TextFileError,
)
from server.offline.embed_windows import EmbeddingProgress, ShowProgress
from server.offline.texts import TextWindow
from server.spaces.embeddings_client import Answer, EmbeddingsClient
from server.spaces.side import Asked, SideFacts
from server.spaces.text_lines import TextLine, windows_of

# A request; within the 300,000 tokens and 2,048 inputs of OpenAI's API, and small enough that a
# server which serves others beside it has their requests computed in between.
REQUEST_TEXTS = 256
REQUEST_CHARS = 64 * 1024
_POSITION = re.compile(r"\binput\[(\d{1,4})\]", re.ASCII)


class RemoteModel:
    """Asks the server one text at once, so that a mistake is told before anything long begins.

    Args:
        given: as the person wrote it.

    Raises:
        RemoteServerError: the server cannot be asked, or has no such model.
    """

    def __init__(self, given: str, client: EmbeddingsClient, model: str, asked: Asked) -> None:
        self.given = given
        self._client = client
        self._fields: dict[str, object] = {"model": model}
        # Fields of this software's own are sent only if they are wanted: others refuse them.
        if asked.input_type is not None:
            self._fields["input_type"] = asked.input_type
        if asked.truncate:
            self._fields["truncate"] = True
        self._probed = client.embed(["probe"], **self._fields)

    def embed(
        self, lines: Sequence[TextLine], show: ShowProgress
    ) -> tuple[NDArray[np.float32], SideFacts]:
        probed = self._probed
        vectors = np.empty((len(lines), probed.vectors.shape[1]), np.float32)
        tokens = 0
        for window in windows_of(lines, most_texts=REQUEST_TEXTS, most_chars=REQUEST_CHARS):
            answer = self._ask(window)
            end = window.end.texts
            vectors[end - len(window.texts) : end] = answer.vectors
            tokens += answer.tokens
            show(EmbeddingProgress(end, tokens, 0))
        facts = SideFacts(
            given=self.given,
            model=probed.model or str(self._fields["model"]),
            dimensions=vectors.shape[1],
            computed="by a server",
            fingerprint=probed.fingerprint,
        )
        return vectors, facts

    def _ask(self, window: TextWindow) -> Answer:
        with self._named_by_line(window):
            answer = self._client.embed(list(window.texts), **self._fields)
        probed = self._probed
        if answer.vectors.shape[1] != probed.vectors.shape[1]:
            raise RemoteServerError(
                f"{self.given}: vectors of {answer.vectors.shape[1]} dimensions, and before of "
                f"{probed.vectors.shape[1]}"
            )
        if answer.fingerprint != probed.fingerprint:
            raise RemoteServerError(
                f"{self.given}: the server's fingerprint has changed from {probed.fingerprint} to "
                f"{answer.fingerprint} meanwhile"
            )
        return answer

    @contextlib.contextmanager
    def _named_by_line(self, window: TextWindow) -> Iterator[None]:
        """A refusal that names an input names the line instead."""
        try:
            yield
        except RemoteServerRefused as error:
            found = _POSITION.search(error.said)
            if found is None or int(found[1]) >= len(window.texts):
                raise
            said = error.said
            if error.code == ContextLengthExceeded.code:
                said = said.partition(" (input[")[0] + "; shorten the text, or cut it by --truncate"
            place = window.position(int(found[1]))
            raise TextFileError(f"{place}: refused by {self.given}: {said}") from None
