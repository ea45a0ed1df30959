"""What tests of bfloat16 and int8 on a CPU do where the processor has no instructions for them."""

from __future__ import annotations

import pytest

from server.catalog.card import Dtype
from server.errors import SettingError
from server.inference.cpu_instructions import quick_dtypes
from server.inference.placement import find_placement


def is_refused(dtype: Dtype) -> bool:
    """Whether this processor does not compute in `dtype`; then the refusal is asserted here."""
    if dtype in quick_dtypes():
        return False
    with pytest.raises(SettingError, match=f"no instructions for {dtype}"):
        find_placement("cpu", dtype)
    return True
