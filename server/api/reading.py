"""How a request's inputs become its model's tokens: which prompt, whose token ids, cut or not."""

from __future__ import annotations

from dataclasses import dataclass

from server.catalog.card import Card
from server.errors import InvalidRequest
from server.inference.inputs import Inputs, TokenIdInputs


@dataclass(frozen=True, slots=True)
class Reading:
    """One request's inputs, and how they are read."""

    inputs: Inputs
    prompt: str  # put before each text
    truncate: bool  # cut an input that is too long, instead of refusing it
    own_token_ids: bool  # the inputs are ids of the model's own vocabulary

    @classmethod
    def of(
        cls,
        card: Card,
        inputs: Inputs,
        *,
        input_type: str | None,
        truncate: bool,
        own_token_ids: bool,
    ) -> Reading:
        """Choose the prompt: by `input_type`, else the model's default, else none.

        Args:
            own_token_ids: what token ids mean to this model, if the inputs are some: ids of its
                own vocabulary, not OpenAI's.

        Raises:
            InvalidRequest: the model has no such prompt, or one is asked for together with the model's
                own token ids.
        """
        own_token_ids = own_token_ids and isinstance(inputs, TokenIdInputs)
        prompt = card.prompt_table.text(input_type)
        if own_token_ids:
            if prompt and input_type:
                raise InvalidRequest(
                    "input_type cannot be used with token ids of the model's own vocabulary; put "
                    "the prompt's ids in front yourself.",
                    param="input_type",
                )
            prompt = ""
        return cls(inputs, prompt, truncate, own_token_ids)
