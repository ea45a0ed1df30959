"""From a request's inputs to the token ids that a model reads, without holding up the event loop.

Short texts are tokenised at once, long ones in threads, huge ones one after another in a thread of
their own. Lives in the event loop's thread; knows nothing of queues, HTTP or keys.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

from server.engine.ratio import Ratio
from server.errors import TooManyTokens
from server.inference import cl100k
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs, TokenIdInputs
from server.inference.tokenizer import Tokenizer

# Below this many characters, tokenising takes less time than the way to a thread and back.
INLINE_CHARS = 2_000
TOKENIZING_THREADS = 2
# Requests of more characters take seconds; they have one thread, and nobody shorter waits for it.
HUGE_CHARS = 1_048_576
# How many times `max_request_tokens` of OpenAI's ids are decoded when each input is then cut.
DECODED_BEFORE_CUT = 4
# Until there are measurements: OpenAI's rule of thumb.
GUESSED_TOKENS_PER_CHAR = 0.25


class RequestTokenizer:
    """A model's tokenizer at work for requests.

    Args:
        max_request_tokens: most tokens all inputs of one request may hold together.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_request_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_request_tokens = max_request_tokens
        self._tokens_per_char = Ratio(GUESSED_TOKENS_PER_CHAR, weight=1_000)
        self._threads = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenize")
        self._thread_of_huge = ThreadPoolExecutor(1, thread_name_prefix="tokenize-huge")

    def estimate(self, inputs: Inputs) -> int:
        """About how many tokens the inputs are."""
        if isinstance(inputs, TokenIdInputs):
            count, estimate = len(inputs.token_ids), float(sum(map(len, inputs.token_ids)))
        else:
            count = len(inputs.texts)
            estimate = sum(map(len, inputs.texts)) * self._tokens_per_char.value
        most = min(count * self._tokenizer.max_input_tokens, self._max_request_tokens)
        return min(max(round(estimate), count), most)

    def costs_little(self, inputs: Inputs) -> bool:
        """Whether tokenising takes less time than asking whether it is of use."""
        if isinstance(inputs, TokenIdInputs):
            return sum(map(len, inputs.token_ids)) <= INLINE_CHARS * GUESSED_TOKENS_PER_CHAR
        return sum(map(len, inputs.texts)) <= INLINE_CHARS

    async def tokenize(
        self, inputs: Inputs, *, prompt: str, truncate: bool, own_token_ids: bool
    ) -> list[TokenIds]:
        """The token ids that the model will read, one array an input, in input order.

        Args:
            prompt: put in front of each text; not used with the model's own token ids.
            own_token_ids: ids in the input are the model's own, not OpenAI's cl100k_base.

        Raises:
            InvalidRequest: an id is unknown, an input or all of them are too long.
        """
        stop = threading.Event()
        encode = functools.partial(
            self._tokenize,
            inputs,
            prompt=prompt,
            truncate=truncate,
            own_token_ids=own_token_ids,
            stop=stop,
        )
        if isinstance(inputs, TokenIdInputs):
            chars = 0
        elif (chars := sum(map(len, inputs.texts))) <= INLINE_CHARS:
            return self._learn(0 if truncate else chars, encode())
        threads = self._thread_of_huge if chars > HUGE_CHARS else self._threads
        try:
            token_ids = await asyncio.get_running_loop().run_in_executor(threads, encode)
            return self._learn(0 if truncate else chars, token_ids)
        finally:
            stop.set()  # cancelled: the thread goes to those who still wait

    def close(self) -> None:
        """Begin nothing any more; does not wait for the threads."""
        for threads in (self._threads, self._thread_of_huge):
            threads.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for the threads; blocks."""
        for threads in (self._threads, self._thread_of_huge):
            threads.shutdown()

    def _tokenize(
        self,
        inputs: Inputs,
        *,
        prompt: str,
        truncate: bool,
        own_token_ids: bool,
        stop: threading.Event,
    ) -> list[TokenIds]:
        if isinstance(inputs, TokenIdInputs):
            if own_token_ids:
                return self._tokenizer.read_token_ids(
                    inputs, truncate=truncate, max_request_tokens=self._max_request_tokens
                )
            self._check_total(inputs, truncate=truncate)
            inputs = cl100k.decode(inputs)
        return self._tokenizer.encode_texts(
            inputs,
            prompt=prompt,
            truncate=truncate,
            max_request_tokens=self._max_request_tokens,
            stop=stop,
        )

    def _learn(self, chars: int, token_ids: list[TokenIds]) -> list[TokenIds]:
        """Note how many tokens this many characters made; 0: they tell nothing."""
        if chars:
            self._tokens_per_char.observe(sum(map(len, token_ids)), chars)
        return token_ids

    def _check_total(self, inputs: TokenIdInputs, *, truncate: bool) -> None:
        """Refuse too many of OpenAI's ids before they are decoded."""
        # What is cut away later does not count, but must not take memory without bound either.
        most = self._max_request_tokens * (DECODED_BEFORE_CUT if truncate else 1)
        total = 0
        for index, ids in enumerate(inputs.token_ids):
            total += len(ids)
            if total > most:
                raise TooManyTokens(max_request_tokens=most, position=inputs.position(index))
