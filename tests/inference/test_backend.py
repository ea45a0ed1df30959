from __future__ import annotations

import numpy as np

from server.inference.backend import pad


def test_padding_is_on_the_right_and_masked() -> None:
    input_ids, attention_mask = pad([np.array([5, 6, 7], np.int32), np.array([8], np.int32)])
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert input_ids.dtype == attention_mask.dtype == np.int64
