from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.catalog.card import Card
from server.catalog.card_file import read_card
from server.errors import InvalidRequest
from tests.catalog import FILES, card_table, pins, variant_table
from tests.catalog import write_card as write_by_hand


def read(models_dir: Path, table: dict[str, Any]) -> Card:
    return read_card(write_by_hand(models_dir, table), models_dir)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_created_is_midnight_utc_wherever_the_server_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    card = read(tmp_path, card_table(created=datetime.date(2021, 8, 30)))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert card.created_unix_s == 1_630_281_600
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("input_type", "default", "expected"),
    [
        ("query", None, "q: "),
        ("document", None, "d: "),
        (None, None, ""),
        (None, "document", "d: "),
        ("query", "document", "q: "),
        ("clustering", "document", "c: "),
        (None, "Clustering", "c: "),
        ("query", "Clustering", "q: "),
    ],
)
def test_the_prompt_is_that_of_the_purpose_or_of_the_default(
    tmp_path: Path, input_type: str | None, default: str | None, expected: str
) -> None:
    chosen = {"default_prompt": default} if default else {}
    prompts = {"query": "q: ", "document": "d: ", "Clustering": "c: "}
    card = read(tmp_path, card_table(prompts=prompts, **chosen))
    assert card.prompt_table.text(input_type) == expected
    assert card.prompt_table is card.prompt_table  # made once, not once a request


def test_a_purpose_that_the_card_lacks_is_refused_by_its_name(tmp_path: Path) -> None:
    card = read(tmp_path, card_table(prompts={"query": "q: "}))
    with pytest.raises(InvalidRequest, match="'document' for the model 'tiny', not 'STS'"):
        card.prompt_table.text("STS")


class TestChanging:
    def test_a_changed_card_has_a_fingerprint_of_its_own(self, tmp_path: Path) -> None:
        card = read(tmp_path, card_table())
        assert card.changed(license="MIT").fingerprint == card.fingerprint
        assert card.changed(pooling="cls").fingerprint != card.fingerprint
        assert card.changed(pooling="cls").encoder_key != card.encoder_key

    def test_what_does_not_fit_together_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match="default_prompt 'query' is not among"):
            read(tmp_path, card_table()).changed(default_prompt="query")


class TestEncoder:
    def test_cards_share_what_computes_the_same_wherever_it_lies(self, tmp_path: Path) -> None:
        one = read(tmp_path / "a", card_table("one"))
        other = read(tmp_path / "b", card_table("other", prompts={"query": "q: "}, aliases=["x"]))
        variant = read(tmp_path / "a", variant_table("variant", "one"))
        assert one.encoder_key == other.encoder_key == variant.encoder_key

    @pytest.mark.parametrize(
        "named",
        [
            {"matryoshka": {"dimensions": [4], "rotation": "more"}},
            {"reference": {"texts": ["a"], "file": "more"}},
        ],
        ids=lambda named: next(iter(named)),
    )
    def test_rotation_and_reference_vectors_are_no_part_of_it(
        self, tmp_path: Path, named: dict[str, Any]
    ) -> None:
        more = card_table(files=pins({**FILES, "more": b"a matrix"}), **named)
        plain = read(tmp_path / "a", card_table())
        assert read(tmp_path / "b", more).encoder_key == plain.encoder_key

    @pytest.mark.parametrize(
        "change",
        [
            *({"files": pins({**FILES, name: b"other"})} for name in FILES),
            {"files": pins({**FILES, "model-2.safetensors": b"a shard"})},
            {"max_input_tokens": 8},
            {"pooling": "cls"},
            {"normalize": False},
            {"embedding_dim": 4},
        ],
        ids=str,
    )
    def test_another_file_or_reading_is_another_encoder(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        plain = read(tmp_path / "a", card_table())
        assert read(tmp_path / "b", card_table(**change)).encoder_key != plain.encoder_key

    def test_of_the_int8_recipe_it_has_what_decides_a_vector_where_that_is_computed(
        self, tmp_path: Path
    ) -> None:
        tables: list[dict[str, Any]] = [
            {},
            {"int8": {}},
            {"int8": {"offered": False}},
            {"int8": {"min_cosine": 0.5}},
            {"int8": {"group_size": 128}},
            {"int8": {"keep": ["*.down"]}},
        ]
        cards = [read(tmp_path / str(n), card_table(**one)) for n, one in enumerate(tables)]
        for dtype in ("float32", "float16", "bfloat16"):
            assert len({one.computed_in(dtype).encoder_key for one in cards}) == 1
        keys = [one.computed_in("int8").encoder_key for one in cards]
        assert len(set(keys[:4])) == 1
        assert len(set(keys)) == 3

    def test_the_size_on_disk_counts_the_base(self, tmp_path: Path) -> None:
        base = read(tmp_path, card_table())
        assert base.file_bytes == sum(map(len, FILES.values()))
        variant = read(tmp_path, variant_table(files=pins({"rotation": b"12345"})))
        assert variant.file_bytes == base.file_bytes + 5
