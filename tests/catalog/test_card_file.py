from __future__ import annotations

import errno
import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.catalog.card import Card
from server.catalog.card_file import read_card, read_table, write_card
from server.catalog.prompts import fault_of_names
from server.errors import CardError
from tests.catalog import CPU_PRECISION, FILES, card_table, pins, variant_table
from tests.catalog import write_card as write_by_hand

DIGEST = hashlib.sha256(b"other bytes").hexdigest()
ROTATION = pins({"rotation.safetensors": b"a rotation"})


def read(models_dir: Path, table: dict[str, Any]) -> Card:
    return read_card(write_by_hand(models_dir, table), models_dir)


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
            int8={"group_size": 128, "keep": ["*.[0-9].down"], "min_cosine": 0.9952},
            cpu_precision=[CPU_PRECISION, {**CPU_PRECISION, "stsb_dev_spearman": 86.7}],
            neighbours=[{"dimensions": 4, "overlap": 0.9, "overlap_plain": 0.7, "texts": 100}],
        )
        read_by_hand = read(tmp_path / "by-hand", table)
        folder = tmp_path / "written" / "org" / "tiny"
        folder.mkdir(parents=True)
        write_card(read_by_hand, folder)
        card = read_card(folder, tmp_path / "written")
        assert card == read_by_hand.changed(folder=folder)
        assert card.neighbours[0].overlap == 0.9
        assert read_table(folder) == table

    @settings(max_examples=30)
    @given(
        prompts=st.dictionaries(
            st.sampled_from(["retrieval.query", "a name of Words", '"quoted" = 1', "日本語"])
            | st.text(min_size=1, max_size=9).filter(lambda name: not fault_of_names([name])),
            st.text(max_size=9),
            min_size=1,
            max_size=4,
        )
    )
    def test_prompts_keep_their_names_and_texts_whatever_they_are(
        self, prompts: dict[str, str]
    ) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            facts = card_table(prompts=prompts, default_prompt=min(prompts))
            card = Card.model_validate(facts | {"folder": folder})
            write_card(card, folder)
            assert read_card(folder) == card
            assert read_table(folder)["prompts"] == prompts
            assert read_card(folder).default_prompt == min(prompts)

    def test_defaults_that_nobody_chose_are_not_written(self, tmp_path: Path) -> None:
        table = card_table(aliases=[])
        write_card(read(tmp_path, table), tmp_path)
        assert read_table(tmp_path) == table
        assert list(read_table(tmp_path)) == [key for key in Card.model_fields if key in table]

    def test_a_variant_says_only_what_its_base_does_not(self, tmp_path: Path) -> None:
        base = read(tmp_path / "models", card_table("org/tiny", license="MIT"))
        own = {"name": "variant", "description": "A variant.", "aliases": (), "license": "MIT"}
        variant = base.variant(own | {"folder": tmp_path})
        write_card(variant, tmp_path, tmp_path / "elsewhere", tmp_path / "models")
        assert read_table(tmp_path) == {
            "name": "variant",
            "description": "A variant.",
            "base": "org/tiny",
            "aliases": [],
            "files": {},
        }
        assert read_card(tmp_path, tmp_path / "models") == variant

    def test_a_variant_whose_base_would_not_be_found_is_not_written(self, tmp_path: Path) -> None:
        base = read(tmp_path / "models", card_table())
        variant = base.variant({"name": "variant", "folder": tmp_path})
        with pytest.raises(CardError, match=f"base tiny is not in {tmp_path / 'elsewhere'}"):
            write_card(variant, tmp_path, tmp_path / "elsewhere")
        assert not (tmp_path / "card.toml").exists()

    def test_a_card_that_cannot_be_written_leaves_the_old_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fill_the_disk(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        folder = tmp_path / "tiny"
        card = read(tmp_path, card_table())
        before = (folder / "card.toml").read_bytes()
        monkeypatch.setattr("os.fsync", fill_the_disk)
        with pytest.raises(CardError, match=r"card\.toml: No space left on device"):
            write_card(card.changed(license="MIT"), folder)
        assert (folder / "card.toml").read_bytes() == before
        assert [path.name for path in folder.iterdir()] == ["card.toml"]

    def test_a_folder_that_is_absent_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CardError, match=str(tmp_path / "absent")):
            write_card(read(tmp_path, card_table()), tmp_path / "absent")

    def test_other_users_may_read_it(self, tmp_path: Path) -> None:
        write_card(read(tmp_path, card_table()), tmp_path)
        assert (tmp_path / "card.toml").stat().st_mode & 0o777 == 0o644


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
        write_by_hand(
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
        write_by_hand(tmp_path, card_table(prompts={"query": "q: "}))
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
        write_by_hand(tmp_path, card_table())
        with pytest.raises(CardError, match=next(iter(change))):
            read(tmp_path, variant_table(**change))

    def test_a_base_that_has_a_base_is_refused(self, tmp_path: Path) -> None:
        write_by_hand(tmp_path, card_table())
        write_by_hand(tmp_path, variant_table("middle"))
        with pytest.raises(CardError, match="base middle has a base itself"):
            read(tmp_path, variant_table("top", base="middle"))

    @pytest.mark.parametrize("base", ["variant", "other"])
    def test_a_card_that_is_its_own_base_is_refused(self, tmp_path: Path, base: str) -> None:
        write_by_hand(tmp_path, variant_table("other", base="variant"))
        with pytest.raises(CardError, match="base"):
            read(tmp_path, variant_table("variant", base=base))

    def test_a_base_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CardError) as caught:
            read(tmp_path, variant_table(base="absent"))
        assert f"base absent is not in {tmp_path}" in caught.value.message

    def test_a_base_is_found_in_another_folder_and_the_last_one_wins(self, tmp_path: Path) -> None:
        folder = write_by_hand(tmp_path / "installed", variant_table())
        write_by_hand(tmp_path / "shipped", card_table(embedding_dim=8))
        places = (tmp_path / "shipped", tmp_path / "installed")
        assert read_card(folder, *places).embedding_dim == 8
        write_by_hand(tmp_path / "installed", card_table(embedding_dim=4))
        assert read_card(folder, *places).embedding_dim == 4

    def test_a_base_outside_the_models_folder_is_refused(self, tmp_path: Path) -> None:
        write_by_hand(tmp_path, card_table("outside"))
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
            ({"int8": {"group_size": 48}}, "int8.group_size"),
            ({"int8": {"keep": [""]}}, "int8.keep"),
            ({"int8": {"min_cosine": 1.5}}, "int8.min_cosine"),
            ({"int8": {"bits": 4}}, "int8.bits"),
            ({"int8": {"offered": "perhaps"}}, "int8.offered"),
            ({"cpu_precision": [{**CPU_PRECISION, "dtype": "float16"}]}, "cpu_precision.0.dtype"),
            ({"cpu_precision": [{**CPU_PRECISION, "texts": 0}]}, "cpu_precision.0.texts"),
            ({"cpu_precision": [{**CPU_PRECISION, "min_cosine": 2}]}, "cpu_precision.0.min_cosine"),
            (
                {"cpu_precision": [{**CPU_PRECISION, "neighbours_kept": 97.5}]},
                "cpu_precision.0.neighbours_kept",
            ),
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
            ({"prompts": {"": "q: "}}, "prompts: '' is no name of a prompt"),
            ({"prompts": {"a\tb": "q: "}}, r"prompts: the name 'a\tb' has characters"),
            ({"prompts": {"query": 1}}, "prompts.query"),
            ({"default_prompt": 1}, "default_prompt"),
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
        folder = write_by_hand(tmp_path, card_table(**change), folder_name="here")
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
        folder = write_by_hand(tmp_path, card_table())
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


def test_a_card_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write_by_hand(tmp_path, card_table())
    file = folder / "card.toml"
    file.write_text("\ufeff" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_card(folder, tmp_path).name == "tiny"


@pytest.mark.parametrize("key", ["embedding_dim", "max_input_tokens"])
def test_a_number_that_toml_does_not_have_is_refused_by_its_field(tmp_path: Path, key: str) -> None:
    folder = write_by_hand(tmp_path, card_table() | {key: 4321})
    path = folder / "card.toml"
    path.write_text(path.read_text().replace("4321", f"0x{'f' * 5000}"))  # too long to print
    with pytest.raises(CardError, match=f": {key}: Input should be less than or equal to"):
        read_card(folder, tmp_path)
