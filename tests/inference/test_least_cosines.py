from __future__ import annotations

from typing import get_args

from server.catalog.card import Dtype
from server.inference import least_cosines
from server.settings import Settings


def test_what_an_import_lets_pass_no_server_refuses_by_default() -> None:
    asked_for = Settings.model_fields["min_parity"].default
    assert asked_for == least_cosines.TRAINED_DTYPE
    assert min(least_cosines.IMPORT, least_cosines.DEFAULT_DTYPE) > asked_for


def test_packing_has_a_bound_in_every_dtype() -> None:
    assert set(least_cosines.PACKED) == set(get_args(Dtype))
