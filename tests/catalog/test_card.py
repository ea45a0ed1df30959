from __future__ import annotations

import datetime
import hashlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

from server.catalog import card as catalog
from server.catalog.card import Card, Dtype, read_card
from server.errors import CardError
from tests.catalog import FILES, card_table, pins, variant_table, write_card

DIGEST = hashlib.sha256(b"other bytes").hexdigest()
ROTATION = pins({"rotation.safetensors": b"a rotation"})


def read(models_dir: Path, table: dict[str, Any]) -> Card:
    return read_card(write_card(models_dir, table), models_dir)


def repinned(name: str) -> dict[str, Any]:
    """The files of the tiny model, one of them with other bytes."""
    files = pins(FILES)
    return files | {name: files[name] | {"sha256": DIGEST}}


class TestReading:
    def test_a_card_says_what_its_file_says(self, tmp_path: Path) -> None:
        card = read(
            tmp_path,
            card_table(
                "org/tiny",
                aliases=["small"],
                prompts={"query": "query: ", "document": "passage: "},
                default_prompt="document",
                matryoshka={"dimensions": [8, 4]},
            ),
        )
        assert (card.name, card.aliases) == ("org/tiny", ("small",))
        assert (card.embedding_dim, card.max_input_tokens) == (8, 16)
        assert card.prompts == {"query": "query: ", "document": "passage: "}
        assert card.default_prompt == "document"
        assert card.matryoshka is not None
        assert card.matryoshka.dimensions == (8, 4)
        assert card.matryoshka.rotation is None
        assert set(card.files) == set(FILES)
        assert card.files["graph.onnx"].bytes == len(FILES["graph.onnx"])
        assert card.folder == tmp_path / "org/tiny"
        assert card.path("graph.onnx") == tmp_path / "org/tiny/graph.onnx"
        assert card.encoder_card is card

    @pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
    def test_created_is_midnight_utc_wherever_the_server_stands(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
    ) -> None:
        card = read(tmp_path, card_table(created=datetime.date(2021, 8, 30)))
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            assert card.created_unix_s == 1_630_281_600
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_the_cards_of_this_repository_can_be_read(self) -> None:
        models_dir = Path(__file__).parents[2] / "models"
        for path in models_dir.glob("*/card.toml"):
            assert read_card(path.parent, models_dir).name == path.parent.name


class TestWriting:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        table = card_table(
            "org/tiny",
            description='Grüße, "quoted"\nand more',
            prompts={"query": "query: "},
            matryoshka={"dimensions": [8, 4]},
            neighbours=[{"dimensions": 4, "overlap": 0.9, "overlap_plain": 0.7, "texts": 100}],
        )
        read_back = read(tmp_path / "by-hand", table)
        folder = tmp_path / "written" / "org" / "tiny"
        folder.mkdir(parents=True)
        catalog.write_card(folder, table)
        card = read_card(folder, tmp_path / "written")
        assert card == read_back.model_copy(update={"folder": folder})
        assert card.neighbours[0].overlap == 0.9

    def test_a_card_that_cannot_be_written_leaves_the_old_one(self, tmp_path: Path) -> None:
        catalog.write_card(tmp_path, card_table())
        before = (tmp_path / "card.toml").read_bytes()
        with pytest.raises(TypeError):
            catalog.write_card(tmp_path, card_table(license=None))
        assert (tmp_path / "card.toml").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["card.toml"]

    def test_a_folder_that_is_absent_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CardError, match=str(tmp_path / "absent")):
            catalog.write_card(tmp_path / "absent", card_table())

    def test_other_users_may_read_it(self, tmp_path: Path) -> None:
        catalog.write_card(tmp_path, card_table())
        assert (tmp_path / "card.toml").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("purpose", "default", "expected"),
    [
        ("query", None, "q: "),
        ("document", None, "d: "),
        (None, None, ""),
        (None, "document", "d: "),
        ("query", "document", "q: "),
    ],
)
def test_the_prompt_is_that_of_the_purpose_or_of_the_default(
    tmp_path: Path, purpose: Any, default: str | None, expected: str
) -> None:
    chosen = {"default_prompt": default} if default else {}
    card = read(tmp_path, card_table(prompts={"query": "q: ", "document": "d: "}, **chosen))
    assert card.prompt(purpose) == expected


BASE_KEYS = {
    "license",
    "owned_by",
    "created",
    "architecture",
    "embedding_dim",
    "max_input_tokens",
    "pooling",
    "normalize",
    "dtype",
    "prompts",
    "default_prompt",
}


class TestBase:
    def test_a_variant_takes_over_what_it_does_not_say(self, tmp_path: Path) -> None:
        base = read(
            tmp_path,
            card_table(
                license="MIT",
                embedding_dim=24,
                max_input_tokens=48,
                pooling="cls",
                prompts={"query": "q: "},
                default_prompt="query",
            ),
        )
        variant = read(tmp_path, variant_table())
        assert variant.model_dump(include=BASE_KEYS) == base.model_dump(include=BASE_KEYS)
        assert variant.base == base
        assert variant.encoder_card == base

    def test_a_variant_does_not_take_over_what_is_the_bases_own(self, tmp_path: Path) -> None:
        source = {"kind": "hub", "repository": "a/b", "revision": "c", "files": ["graph.onnx"]}
        write_card(
            tmp_path,
            card_table(
                aliases=["small"],
                matryoshka={"dimensions": [4]},
                sources=[source],
                neighbours=[{"dimensions": 4, "overlap": 0.9, "overlap_plain": 0.9, "texts": 9}],
                quality=[
                    {
                        "dimensions": 4,
                        "stsb_dev_spearman": 80.0,
                        "stsb_dev_spearman_plain": 80.0,
                    }
                ],
            ),
        )
        variant = read(tmp_path, variant_table())
        assert variant.name == "variant"
        assert variant.description == "A variant."
        assert variant.folder == tmp_path / "variant"
        assert (variant.aliases, variant.files, variant.sources) == ((), {}, ())
        assert (variant.matryoshka, variant.quality, variant.neighbours) == (None, (), ())

    def test_what_a_variant_says_itself_counts(self, tmp_path: Path) -> None:
        write_card(tmp_path, card_table(prompts={"query": "q: "}))
        variant = read(
            tmp_path,
            variant_table(
                license="MIT",
                prompts={"query": "question: "},
                files=ROTATION,
                matryoshka={"dimensions": [8], "rotation": "rotation.safetensors"},
            ),
        )
        assert variant.license == "MIT"
        assert variant.prompts == {"query": "question: "}
        assert set(variant.files) == {"rotation.safetensors"}

    @pytest.mark.parametrize(
        "change",
        [
            {"embedding_dim": 4},
            {"max_input_tokens": 4},
            {"pooling": "cls"},
            {"normalize": False},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_variant_cannot_say_otherwise_what_its_bases_encoder_decides(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        # One session serves both cards, so such a line would be a promise nobody keeps.
        write_card(tmp_path, card_table())
        with pytest.raises(CardError, match=next(iter(change))):
            read(tmp_path, variant_table(**change))

    def test_a_base_that_has_a_base_is_refused(self, tmp_path: Path) -> None:
        write_card(tmp_path, card_table())
        write_card(tmp_path, variant_table("middle"))
        with pytest.raises(CardError, match="base middle has a base itself"):
            read(tmp_path, variant_table("top", base="middle"))

    @pytest.mark.parametrize("base", ["variant", "other"])
    def test_a_card_that_is_its_own_base_is_refused(self, tmp_path: Path, base: str) -> None:
        write_card(tmp_path, variant_table("other", base="variant"))
        with pytest.raises(CardError, match="base"):
            read(tmp_path, variant_table("variant", base=base))

    def test_a_base_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CardError) as caught:
            read(tmp_path, variant_table(base="absent"))
        assert f"base absent is not in {tmp_path}" in caught.value.message

    def test_a_base_is_found_in_another_folder_and_the_last_one_wins(self, tmp_path: Path) -> None:
        folder = write_card(tmp_path / "installed", variant_table())
        write_card(tmp_path / "shipped", card_table(embedding_dim=8))
        places = (tmp_path / "shipped", tmp_path / "installed")
        assert read_card(folder, *places).embedding_dim == 8
        write_card(tmp_path / "installed", card_table(embedding_dim=4))
        assert read_card(folder, *places).embedding_dim == 4

    def test_a_base_outside_the_models_folder_is_refused(self, tmp_path: Path) -> None:
        write_card(tmp_path, card_table("outside"))
        models_dir = tmp_path / "models"
        for base in ("../outside", str(tmp_path / "outside")):
            with pytest.raises(CardError, match="base"):
                read(models_dir, variant_table(base=base))


TORCH = {
    "config": "tokenizer.json",
    "weights": ["model.safetensors"],
    "packed": True,
    "dtype": "float16",
}


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"name": ""}, "name"),
            ({"name": "tiny model"}, "name"),
            ({"name": "/tiny"}, "name"),
            ({"name": "org/../tiny"}, "name"),
            ({"name": ".tiny"}, "name"),
            ({"embedding_dim": 0}, "embedding_dim"),
            ({"embedding_dim": "eight"}, "embedding_dim"),
            ({"max_input_tokens": 0}, "max_input_tokens"),
            ({"pooling": "max"}, "pooling"),
            ({"dtype": "int8"}, "dtype"),
            ({"dtype": "float16"}, "dtype: must be float32; torch.dtype says"),
            ({"torch": TORCH | {"dtype": "int8"}}, "torch.dtype"),
            ({"torch": TORCH | {"weights": []}}, "torch.weights"),
            ({"torch": TORCH | {"config": "absent.json"}}, "torch names 'absent.json'"),
            (
                {"torch": TORCH | {"dense": [{"weights": "absent", "activation": "Tanh"}]}},
                "torch names 'absent'",
            ),
            (
                {
                    "torch": TORCH
                    | {"dense": [{"weights": "graph.onnx", "activation": "os.system"}]}
                },
                "torch.dense.0.activation",
            ),
            ({"created": "yesterday"}, "created"),
            ({"prompts": {"question": "q: "}}, "prompts"),
            ({"default_prompt": "question"}, "default_prompt"),
            ({"default_prompt": "query"}, "default_prompt 'query' is not among the prompts"),
            (
                {"default_prompt": "query", "prompts": {"document": "d: "}},
                "default_prompt 'query' is not among the prompts",
            ),
            ({"matryoshka": {"dimensions": []}}, "matryoshka.dimensions"),
            ({"matryoshka": {"dimensions": [9]}}, "matryoshka.dimensions"),
            ({"matryoshka": {"dimensions": [8, 9, 4]}}, "matryoshka.dimensions"),
            ({"matryoshka": {"dimensions": [8, 0]}}, "matryoshka.dimensions"),
            (
                {"matryoshka": {"dimensions": [8], "rotation": "rotation.safetensors"}},
                "matryoshka.rotation is not among the files",
            ),
            ({"files": {"a": {"bytes": -1, "sha256": DIGEST}}}, "files.a.bytes"),
            ({"files": {"a": {"bytes": 1, "sha256": DIGEST.upper()}}}, "files.a.sha256"),
            ({"files": {"a": {"bytes": 1, "sha256": DIGEST[1:]}}}, "files.a.sha256"),
            ({"files": {"a": {"bytes": 1}}}, "files.a.sha256"),
            ({"sources": [{"kind": "ftp"}]}, "sources.0"),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_a_wrong_value_is_refused_by_path_and_field(
        self, tmp_path: Path, change: dict[str, Any], named: str
    ) -> None:
        folder = write_card(tmp_path, card_table(**change), folder_name="here")
        with pytest.raises(CardError) as caught:
            read_card(folder, tmp_path)
        assert caught.value.message.startswith(f"card {folder / 'card.toml'}: ")
        assert named in caught.value.message

    @pytest.mark.parametrize(
        "change",
        [
            {"alias": ["small"]},
            {"folder": "/elsewhere"},
            {"matryoshka": {"dimensions": [8], "matrix": "rotation.safetensors"}},
            {"files": {"a": {"bytes": 1, "sha256": DIGEST, "md5": "0"}}},
            {
                "sources": [
                    {
                        "kind": "hub",
                        "repository": "a/b",
                        "revision": "c",
                        "files": ["graph.onnx"],
                        "token": "x",
                    }
                ]
            },
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_an_unknown_key_is_refused_at_every_level(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        with pytest.raises(CardError, match=rf"{next(iter(change))}.*[Ee]xtra inputs"):
            read(tmp_path, card_table(**change))

    @pytest.mark.parametrize("key", sorted(card_table()))
    def test_a_card_that_leaves_out_what_it_must_say_is_refused(
        self, tmp_path: Path, key: str
    ) -> None:
        folder = write_card(tmp_path, card_table())
        lines = (folder / "card.toml").read_text().splitlines()
        kept = [line for line in lines if not line.startswith(f'"{key}"')]
        assert len(kept) == len(lines) - 1
        (folder / "card.toml").write_text("\n".join(kept))
        with pytest.raises(CardError, match=rf"{key}: Field required"):
            read_card(folder, tmp_path)

    @pytest.mark.parametrize(
        "file", ["../weights", "a/../../weights", "/etc/passwd", "..", "a/../b"]
    )
    def test_a_file_outside_the_models_folder_is_refused(self, tmp_path: Path, file: str) -> None:
        with pytest.raises(CardError, match=re.escape(repr(file))):
            read(tmp_path, card_table(files=pins({file: b"x"})))

    @pytest.mark.parametrize("file", ["absent.bin", "../graph.onnx"])
    @pytest.mark.parametrize(
        "source",
        [
            {"kind": "hub", "repository": "a/b", "revision": "c"},
            {"kind": "pypi", "package": "a", "version": "1", "folder": "a"},
        ],
        ids=lambda source: source["kind"],
    )
    def test_a_source_may_give_only_files_that_the_card_vouches_for(
        self, tmp_path: Path, source: dict[str, Any], file: str
    ) -> None:
        with pytest.raises(CardError, match=re.escape(file)):
            read(tmp_path, card_table(sources=[source | {"files": ["graph.onnx", file]}]))

    @pytest.mark.parametrize(
        ("content", "reason"), [(b"name = ", "Invalid value"), (b"name = '\xff'", "utf-8")]
    )
    def test_a_card_that_is_not_toml_is_refused_by_its_path(
        self, tmp_path: Path, content: bytes, reason: str
    ) -> None:
        (tmp_path / "card.toml").write_bytes(content)
        with pytest.raises(CardError) as caught:
            read_card(tmp_path, tmp_path)
        assert caught.value.message.startswith(f"card {tmp_path / 'card.toml'}: ")
        assert reason in caught.value.message

    def test_a_folder_without_a_card_is_refused_by_the_cards_path(self, tmp_path: Path) -> None:
        with pytest.raises(CardError) as caught:
            read_card(tmp_path, tmp_path)
        assert caught.value.message == (f"card {tmp_path / 'card.toml'}: No such file or directory")


# What decides a vector: another value, another fingerprint.
DECIDING: dict[str, list[dict[str, Any]]] = {
    "files": [{"files": repinned(name)} for name in FILES],
    "pooling": [{"pooling": "cls"}, {"pooling": "last_token"}],
    "normalize": [{"normalize": False}],
    "prompts": [{"prompts": {"query": "q: "}}, {"prompts": {"query": "q:"}}],
    "default_prompt": [{"prompts": {"query": "q: "}, "default_prompt": "query"}],
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
        write_card(tmp_path, card_table())
        before = read(tmp_path, variant_table())
        write_card(tmp_path, card_table(files=repinned("model.safetensors")))
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
        write_card(tmp_path, card_table())
        variant = read(tmp_path, variant_table())
        for card in (variant, variant.encoder_card):
            dtypes: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
            served = [card.computed_in(dtype) for dtype in dtypes]
            assert len({one.fingerprint for one in served}) == 3
            assert len({one.encoder_key for one in served}) == 3
            assert served[0] is card
            assert served[1].computed_in("float32").fingerprint == card.fingerprint

    def test_it_is_sixteen_hexadecimal_digits(self, tmp_path: Path) -> None:
        assert re.fullmatch(r"[0-9a-f]{16}", read(tmp_path, card_table()).fingerprint)


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

    def test_the_size_on_disk_counts_the_base(self, tmp_path: Path) -> None:
        base = read(tmp_path, card_table())
        assert base.file_bytes == sum(map(len, FILES.values()))
        variant = read(tmp_path, variant_table(files=pins({"rotation": b"12345"})))
        assert variant.file_bytes == base.file_bytes + 5


def test_a_card_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write_card(tmp_path, card_table())
    file = folder / "card.toml"
    file.write_text("\ufeff" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_card(folder, tmp_path).name == "tiny"


@pytest.mark.parametrize("key", ["embedding_dim", "max_input_tokens"])
def test_a_number_that_toml_does_not_have_is_refused_by_its_field(tmp_path: Path, key: str) -> None:
    folder = write_card(tmp_path, card_table() | {key: 4321})
    path = folder / "card.toml"
    path.write_text(path.read_text().replace("4321", f"0x{'f' * 5000}"))  # too long to print
    with pytest.raises(CardError, match=f": {key}: Input should be less than or equal to"):
        read_card(folder, tmp_path)
