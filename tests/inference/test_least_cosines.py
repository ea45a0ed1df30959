from __future__ import annotations

from typing import get_args

from server.catalog.card import GpuDtype
from server.catalog.int8_recipe import Int8Recipe
from server.inference import least_cosines
from server.settings import Settings


def test_what_an_import_lets_pass_no_server_refuses_by_default() -> None:
    assert least_cosines.START == least_cosines.TRAINED_DTYPE
    assert min(least_cosines.IMPORT, least_cosines.DEFAULT_DTYPE) > least_cosines.START


def test_the_least_cosine_of_a_start_is_what_the_help_of_the_setting_says() -> None:
    told = Settings.model_fields["min_parity"].description or ""
    on_cpu = least_cosines.START_ON_CPU
    assert on_cpu["float32"] == least_cosines.START
    assert f"Default: {least_cosines.START}; on the CPU {on_cpu['bfloat16']} in bfloat16" in told
    assert f"else {Int8Recipe().min_cosine}." in told


def test_packing_has_a_bound_in_every_dtype() -> None:
    assert set(least_cosines.PACKED) == set(get_args(GpuDtype))
