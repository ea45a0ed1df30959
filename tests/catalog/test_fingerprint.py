from __future__ import annotations

import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from server.catalog.card import Card, Dtype
from server.catalog.card_file import read_card
from server.catalog.int8_recipe import Int8Recipe
from tests.catalog import CPU_PRECISION, FILES, card_table, pins, variant_table
from tests.catalog import write_card as write_by_hand

DIGEST = hashlib.sha256(b"other bytes").hexdigest()
ROTATION = pins({"rotation.safetensors": b"a rotation"})


def read(models_dir: Path, table: dict[str, Any]) -> Card:
    return read_card(write_by_hand(models_dir, table), models_dir)


def repinned(name: str) -> dict[str, Any]:
    """The files of the tiny model, one of them with other bytes."""
    files = pins(FILES)
    return files | {name: files[name] | {"sha256": DIGEST}}


# What decides a vector: another value, another fingerprint.
DECIDING: dict[str, list[dict[str, Any]]] = {
    "files": [{"files": repinned(name)} for name in FILES],
    "pooling": [{"pooling": "cls"}, {"pooling": "last_token"}],
    "normalize": [{"normalize": False}],
    "prompts": [{"prompts": {"query": "q: "}}, {"prompts": {"query": "q:"}}],
    "default_prompt": [
        {"prompts": {"query": "q: "}, "default_prompt": "query"},
        {"prompts": {"STS": "s: "}, "default_prompt": "STS"},
        {"prompts": {"STS": "t: "}, "default_prompt": "STS"},
    ],
    "max_input_tokens": [{"max_input_tokens": 17}],
    "matryoshka": [
        {
            "matryoshka": {"dimensions": [8], "rotation": "graph.onnx"},
        },
        {
            "matryoshka": {"dimensions": [8], "rotation": "tokenizer.json"},
        },
        {"matryoshka": {"dimensions": [8], "layer_norm": True}},
    ],
}
# What only tells about it: the fingerprint stays.
TELLING: dict[str, dict[str, Any]] = {
    "name": {"name": "renamed"},
    "description": {"description": "Another text."},
    "license": {"license": "MIT"},
    "owned_by": {"owned_by": "somebody"},
    "created": {"created": datetime.date(2025, 1, 1)},
    "architecture": {"architecture": "xlm-roberta"},
    "aliases": {"aliases": ["text-embedding-3-small"]},
    "prompts": {"prompts": {"STS": "s: ", "clustering": "c: ", "passage": ""}},
    "quality": {
        "quality": [{"dimensions": 8, "stsb_dev_spearman": 80.0, "stsb_dev_spearman_plain": 80.0}]
    },
    "neighbours": {
        "neighbours": [{"dimensions": 8, "overlap": 0.9, "overlap_plain": 0.7, "texts": 100}]
    },
    "sources": {
        "sources": [{"kind": "hub", "repository": "a/b", "revision": "c", "files": ["graph.onnx"]}]
    },
    "matryoshka": {"matryoshka": {"dimensions": [8, 4]}},
    "parity": {
        "parity": {"against": "another", "texts": 2, "min_cosine": 1.0, "max_difference": 0.0}
    },
    "reference": {
        "reference": {"texts": ["a"], "file": "reference.safetensors"},
        "files": {**pins(FILES), **pins({"reference.safetensors": b"vectors"})},
    },
    "int8": {  # in float32
        "int8": {"offered": False, "group_size": 128, "keep": ["*.down"], "min_cosine": 0.995}
    },
    "cpu_precision": {"cpu_precision": [CPU_PRECISION]},
    "embedding_dim": {"embedding_dim": 7},  # the graph decides it
    "torch": {
        "torch": {
            "config": "config.json",
            "weights": ["model.safetensors"],
            "packed": True,
            "dtype": "float16",
        },
        "files": {**pins(FILES), **pins({"config.json": b"{}"})},
    },
}
# Fingerprints of cards that were written when `query` and `document` were all that there was.
BOTH = {"query": "query: ", "document": "passage: "}
INSTRUCT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
OF_EARLIER_CARDS: list[tuple[dict[str, str], str | None, str]] = [
    ({}, None, "6ebcf8bef865409b"),
    ({"query": "q: "}, None, "76dc92ea131fa83e"),
    ({"document": "d: "}, None, "be40567762ae6828"),
    (BOTH, None, "f985af6aec54dd44"),
    (BOTH, "query", "9762ee3605ca8e15"),
    (BOTH, "document", "5f7a87f70c5018a5"),
    ({"query": "x: ", "document": "x: "}, "document", "c6bbfa00b38e30a6"),
    ({"query": INSTRUCT}, None, "7348c5f919a30f22"),
    ({"query": "q: ", "document": ""}, None, "adeb1d103fb4f2a5"),
    ({"query": "", "document": ""}, "query", "c91b15b2edc55e61"),
    ({"query": ""}, None, "247a0e8afa416b75"),
]
# One value alone, or seen through the others: `folder` is where, `base` whose files.
NEITHER = {"dtype", "folder", "base"}


class TestFingerprint:
    def test_every_field_of_a_card_is_known_to_these_tests(self) -> None:
        assert set(DECIDING) | set(TELLING) | NEITHER == set(Card.model_fields)

    @pytest.mark.parametrize(
        "change", [change for changes in DECIDING.values() for change in changes], ids=str
    )
    def test_it_changes_with_what_decides_a_vector(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        plain = read(tmp_path, card_table())
        assert read(tmp_path, card_table(**change)).fingerprint != plain.fingerprint

    def test_no_two_of_these_changes_give_the_same(self, tmp_path: Path) -> None:
        changes = [change for changes in DECIDING.values() for change in changes]
        prints = {read(tmp_path, card_table(**change)).fingerprint for change in changes}
        assert len(prints) == len(changes)

    @pytest.mark.parametrize("change", TELLING.values(), ids=str)
    def test_it_stays_with_what_only_tells_about_the_model(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        plain = read(tmp_path / "a", card_table())
        assert read(tmp_path / "b", card_table(**change)).fingerprint == plain.fingerprint

    def test_the_order_of_the_card_does_not_matter(self, tmp_path: Path) -> None:
        table = card_table(prompts={"query": "q: ", "document": "d: "})
        turned = dict(reversed(table.items())) | {
            "files": dict(reversed(table["files"].items())),
            "prompts": dict(reversed(table["prompts"].items())),
        }
        plain = read(tmp_path / "a", table)
        assert read(tmp_path / "b", turned).fingerprint == plain.fingerprint

    def test_a_variant_that_changes_nothing_has_its_bases(self, tmp_path: Path) -> None:
        base = read(tmp_path, card_table())
        assert read(tmp_path, variant_table(aliases=["v"])).fingerprint == base.fingerprint

    def test_a_variant_has_another_when_its_bases_weights_change(self, tmp_path: Path) -> None:
        write_by_hand(tmp_path, card_table())
        before = read(tmp_path, variant_table())
        write_by_hand(tmp_path, card_table(files=repinned("model.safetensors")))
        assert read(tmp_path, variant_table()).fingerprint != before.fingerprint

    def test_a_variant_has_another_with_every_rotation(self, tmp_path: Path) -> None:
        base = read(tmp_path, card_table())
        rotated: dict[str, Any] = {
            "files": ROTATION,
            "matryoshka": {"dimensions": [8], "rotation": "rotation.safetensors"},
        }
        first = read(tmp_path, variant_table(**rotated))
        rotated["files"] = pins({"rotation.safetensors": b"another rotation"})
        second = read(tmp_path, variant_table(**rotated))
        assert len({base.fingerprint, first.fingerprint, second.fingerprint}) == 3

    def test_each_dtype_that_is_computed_in_has_one_of_its_own(self, tmp_path: Path) -> None:
        write_by_hand(tmp_path, card_table())
        variant = read(tmp_path, variant_table())
        for card in (variant, variant.encoder_card):
            dtypes: tuple[Dtype, ...] = ("float32", "float16", "bfloat16", "int8")
            served = [card.computed_in(dtype) for dtype in dtypes]
            assert len({one.fingerprint for one in served}) == 4
            assert len({one.encoder_key for one in served}) == 4
            assert served[0] is card
            assert served[1].computed_in("float32").fingerprint == card.fingerprint

    def test_in_int8_it_changes_with_the_recipe_but_not_with_the_floor(
        self, tmp_path: Path
    ) -> None:
        recipes: list[dict[str, Any]] = [
            {},
            {"int8": {"group_size": 128}},
            {"int8": {"keep": ["*.down"]}},
            {"int8": {"keep": ["*.up"]}},
            {"int8": {"keep": ["*.up", "*.down"]}},
        ]
        cards = [read(tmp_path / str(n), card_table(**one)) for n, one in enumerate(recipes)]
        assert len({card.computed_in("int8").fingerprint for card in cards}) == len(recipes)
        assert len({card.computed_in("bfloat16").fingerprint for card in cards}) == 1
        same_vectors: list[dict[str, Any]] = [
            {"min_cosine": 0.5},
            {"group_size": 64, "keep": []},
            {"offered": False},
        ]
        for n, same in enumerate(same_vectors):
            card = read(tmp_path / f"same{n}", card_table(int8=same)).computed_in("int8")
            assert card.fingerprint == cards[0].computed_in("int8").fingerprint
        again = read(tmp_path / "again", card_table(int8={"keep": ["*.down", "*.up", "*.down"]}))
        assert again.computed_in("int8").fingerprint == cards[-1].computed_in("int8").fingerprint

    def test_a_variant_has_the_recipe_of_its_base(self, tmp_path: Path) -> None:
        base = read(tmp_path, card_table(int8={"group_size": 128}, cpu_precision=[CPU_PRECISION]))
        variant = read(tmp_path, variant_table())
        assert variant.int8_recipe == base.int8_recipe == base.int8 != Int8Recipe()
        assert (variant.int8, variant.cpu_precision) == (None, ())  # these are said of the base
        computed = variant.computed_in("int8")
        assert computed.fingerprint == base.computed_in("int8").fingerprint != base.fingerprint
        assert computed.encoder_key == base.computed_in("int8").encoder_key

    def test_that_of_a_model_stays_what_clients_have_stored(self, tmp_path: Path) -> None:
        facts: dict[str, Any] = {"prompts": {"query": "q: "}, "default_prompt": "query"}
        assert read(tmp_path / "a", card_table()).fingerprint == "6ebcf8bef865409b"
        assert read(tmp_path / "b", card_table(**facts)).fingerprint == "c7adb9f86e2e66bb"
        layer_norm = {"dimensions": [8], "layer_norm": True}
        assert (
            read(tmp_path / "c", card_table(matryoshka=layer_norm)).fingerprint
            == "beaac2ecd79811e9"
        )
        in_int8 = read(tmp_path / "a", card_table()).computed_in("int8")
        assert in_int8.fingerprint == "f5fac0a840a05e5c"

    @pytest.mark.parametrize(("prompts", "default", "expected"), OF_EARLIER_CARDS)
    def test_cards_with_prompts_keep_theirs(
        self, tmp_path: Path, prompts: dict[str, str], default: str | None, expected: str
    ) -> None:
        chosen = {"default_prompt": default} if default else {}
        assert read(tmp_path, card_table(prompts=prompts, **chosen)).fingerprint == expected

    @pytest.mark.parametrize(("prompts", "default", "expected"), OF_EARLIER_CARDS)
    def test_prompts_of_other_purposes_do_not_change_it(
        self, tmp_path: Path, prompts: dict[str, str], default: str | None, expected: str
    ) -> None:
        chosen = {"default_prompt": default} if default else {}
        more = prompts | {"STS": "s: ", "a name.of Words": "w: ", "clustering": ""}
        assert read(tmp_path, card_table(prompts=more, **chosen)).fingerprint == expected

    def test_the_publishers_names_of_queries_and_documents_do_not_change_it(
        self, tmp_path: Path
    ) -> None:
        plain = {"query": "q: ", "document": "d: "}
        named = {"search_query": "q: ", "passage": "d: ", "document": ""}
        ours = read(tmp_path / "a", card_table(prompts=plain, default_prompt="document"))
        theirs = read(tmp_path / "b", card_table(prompts=named, default_prompt="passage"))
        assert ours.fingerprint == theirs.fingerprint
        shared = {theirs.prompt_table.fingerprint_for(name) for name in (None, *named)}
        assert shared == {ours.fingerprint}

    def test_an_answer_behind_another_prompt_has_one_of_its_own(self, tmp_path: Path) -> None:
        def prompted(place: str, **prompts: str) -> Card:
            return read(tmp_path / place, card_table(prompts=prompts))

        card = prompted("a", query="q: ", STS="s: ", same="q: ", bare="")
        own = card.prompt_table.fingerprint_for("STS")
        assert own == card.prompt_table.fingerprint_for("text-matching") != card.fingerprint
        assert re.fullmatch(r"[0-9a-f]{16}", own)
        for name in (None, "query", "document", "same", "bare"):
            assert card.prompt_table.fingerprint_for(name) == card.fingerprint
        # Only that prompt is in it, and its name is not.
        other = prompted("b", query="another: ", similarity="s: ").prompt_table
        assert other.fingerprint_for("STS") == own
        assert prompted("c", STS="t: ").prompt_table.fingerprint_for("STS") != own

    def test_each_dtype_has_one_of_its_own_behind_another_prompt(self, tmp_path: Path) -> None:
        card = read(tmp_path, card_table(prompts={"STS": "s: "}))
        own = card.prompt_table.fingerprint_for("STS")
        assert card.computed_in("float16").prompt_table.fingerprint_for("STS") != own
        assert card.computed_in("float16").computed_in("float32").fingerprint == card.fingerprint

    def test_it_is_sixteen_hexadecimal_digits(self, tmp_path: Path) -> None:
        assert re.fullmatch(r"[0-9a-f]{16}", read(tmp_path, card_table()).fingerprint)
