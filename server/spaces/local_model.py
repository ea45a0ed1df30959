"""A model of this machine's disk as a side of a comparison: the vectors that a server would answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.inference.vector_form import VectorForm
from server.offline.embed_windows import ShowProgress, embed_windows
from server.offline.embedder import Embedder, find_card, offline_opener
from server.offline.texts import WINDOW_CHARS, WINDOW_TEXTS, TextWindow
from server.settings import Settings
from server.spaces.side import Asked, SideFacts
from server.spaces.text_lines import TextLine, windows_of


class LocalModel:
    """Finds the model's card at once, and reads its weights when it is to embed.

    Args:
        given: as the person wrote it.
        settings: where it lies and how it is computed.

    Raises:
        SettingError, CardError, ModelFileError: the model cannot be used.
        InvalidRequest: it has no such prompt.
    """

    def __init__(self, given: str, name: str, settings: Settings, asked: Asked) -> None:
        self.given = given
        self._settings = settings
        self._asked = asked
        self._opener = offline_opener(settings)
        self._card = find_card(settings, self._opener, name)
        self._prompt = self._card.prompt_table.text(asked.input_type)

    def embed(
        self, lines: Sequence[TextLine], show: ShowProgress
    ) -> tuple[NDArray[np.float32], SideFacts]:
        card = self._card
        form = VectorForm.of(card)
        vectors = np.empty((len(lines), form.dimensions), np.float32)
        with Embedder.load(card, self._opener, self._settings) as embedder:

            def write(window: TextWindow, part: NDArray[np.float32]) -> None:
                end = window.end.texts
                vectors[end - len(part) : end] = form.shape(part, embedder.rotation)

            embed_windows(
                embedder,
                windows_of(lines, most_texts=WINDOW_TEXTS, most_chars=WINDOW_CHARS),
                write,
                prompt=self._prompt,
                truncate=self._asked.truncate,
                show=show,
            )
        facts = SideFacts(
            given=self.given,
            model=card.name,
            dimensions=form.dimensions,
            computed=f"{card.dtype}, {', '.join(self._opener.placement.backend_for(card).devices)}",
            fingerprint=card.prompt_table.fingerprint_for(self._asked.input_type),
        )
        return vectors, facts
