"""How near two vectors of one text must be, wherever this software compares them.

Least cosines. The one that a server asks for when it starts is the setting `min_parity`; what an
import lets pass is nearer than that, so that a server does not refuse what was imported.
"""

from __future__ import annotations

from typing import Final

# An import with sentence-transformers, both in float32: rounding alone stays above 0.999999, and a
# wrong pooling, prompt or tokenizer falls far below.
IMPORT: Final = 0.9999
# A text alone with the same text among others, on the backend that is to serve: in float32 rounding
# stays above 0.9999999; scales that a batch shares (dynamic int8) fall to 0.976.
COMPANY: Final = 0.9999
# A dtype with float32, to be a card's default on GPUs: nearest neighbours stay the same.
DEFAULT_DTYPE: Final = 0.9999
# bfloat16 with float32 where the model was trained in it: a model may need its range on texts that
# nobody tried, and that is worth more than digits.
TRAINED_DTYPE: Final = 0.999
# What a server asks for when it starts, where neither `min_parity` nor the card says. On a CPU
# all-MiniLM-L6-v2 gave at least 0.99994 in bfloat16 over 4,158 texts; int8's stands in its recipe.
START: Final = TRAINED_DTYPE
START_ON_CPU: Final = {"float32": START, "bfloat16": 0.9995}
# Sequences packed without padding with each alone, by dtype: two kernels, each rounding in its own
# order.
PACKED: Final = {"float32": 0.99999, "float16": 0.999, "bfloat16": 0.999}
# The replay of a CUDA graph with the pass that it was recorded from, over the same input, by dtype.
# The kernels are the same, but a product may be computed by another of them inside a graph, so the
# bound is that of two kernels; an address or a length that was recorded by mistake gives vectors of
# another input, whose cosine is far below.
RECORDED: Final = PACKED
# Two sides whose vectors may lie in one index: random errors that leave 0.999 keep 0.977 of ten
# nearest neighbours (all-MiniLM-L6-v2). bfloat16 is as near as that to float32 (0.9999), int8 by no
# recipe (0.994 to 0.998 over 2,910 sentences).
SPACE: Final = 0.999
