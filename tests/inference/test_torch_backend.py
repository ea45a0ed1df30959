"""Packed equals padded equals ONNX Runtime, whatever is computed together, and what cannot is told."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.catalog.card import TOKENIZER_FILE, Card, PoolingMode, TorchModel
from server.errors import ModelLoadError
from server.importing.folder import read_folder
from server.importing.importer import import_model
from server.importing.plan import Wishes
from server.importing.proof_texts import HALF_PRECISION_TEXTS
from server.importing.torch_reference import TorchReference
from server.inference import torch_backend, torch_last_layer
from server.inference.backend import Layout, LoadOptions, OutOfMemory, TokenIds
from server.inference.inputs import TextInputs
from server.inference.loader import Encoder
from server.inference.pooling import cosines
from server.inference.tokenizer import Tokenizer
from server.inference.torch_backend import TorchBackend, load_backends
from server.inference.torch_compile import are_compiled, compile_layers, release_layers
from server.inference.torch_modules import PackedModule, lay_out
from tests.importing.exports import Exports
from tests.importing.folders import ARCHITECTURES, make_folder

CPU = "cpu:0"  # as torch names it; plain "cpu" means ONNX Runtime to the loader
LENGTHS = (1, 2, 3, 9, 12, 40, 128, 256)


def sequences(*lengths: int, seed: int = 0, low: int = 1000, high: int = 30_000) -> list[TokenIds]:
    draw = np.random.default_rng(seed)
    return [draw.integers(low, high, length, dtype=np.int32) for length in lengths]


@pytest.fixture(scope="module")
def exact(plain_card: Card) -> TorchBackend:
    return TorchBackend(plain_card, CPU)


def with_tail(packed: PackedModule, texts: list[TokenIds]) -> tuple[NDArray[np.float32], int]:
    """As in a recorded shape: unused slots, and 21 ids behind the last sequence.

    Returns the vectors, and how many token rows were NaN before they were pooled.
    """
    ids, bounds, longest = lay_out([torch.from_numpy(text) for text in texts])
    ids = torch.cat([ids, torch.full((21,), int(ids.max()), dtype=ids.dtype)])
    bounds = torch.cat([bounds, bounds[-1:].expand(3)])
    rows: list[torch.Tensor] = []
    seeing = packed.transformer.register_forward_hook(
        lambda module, args, found: rows.append(found.last_hidden_state[0])
    )
    with torch.inference_mode():
        vectors = packed(ids, bounds, longest).numpy()[: len(texts)]
    seeing.remove()
    return vectors, int(rows[0].isnan().any(dim=1).sum())


class TestTheRealModel:
    def test_packed_it_computes_what_onnx_runtime_does(
        self, exact: TorchBackend, encoder: Encoder
    ) -> None:
        assert exact.layout is Layout.PACKED
        texts = sequences(*LENGTHS)
        expected = encoder.backends[0].forward(texts)
        found = exact.forward(texts)
        assert found.dtype == np.float32
        assert found.shape == (len(LENGTHS), 384)
        assert np.abs(found - expected).max() < 2e-6

    @pytest.mark.parametrize(("dtype", "least"), [("float16", 0.99999), ("bfloat16", 0.9995)])
    def test_in_half_precision_it_is_as_near_as_its_card_says(
        self, plain_card: Card, encoder: Encoder, dtype: Any, least: float
    ) -> None:
        backend = TorchBackend(plain_card.computed_in(dtype), CPU)
        texts = sequences(*LENGTHS)
        assert backend.layout is Layout.PACKED
        assert cosines(backend.forward(texts), encoder.backends[0].forward(texts)).min() > least

    def test_it_tells_how_many_ids_its_weights_hold(self, exact: TorchBackend) -> None:
        assert [exact.count_embeddings(size) for size in (7, 30_522, 50_000)] == [7, 30_522, 30_522]

    @settings(max_examples=15)
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.randoms())
    def test_a_vector_depends_neither_on_order_nor_on_company(
        self, exact: TorchBackend, lengths: list[int], random: Any
    ) -> None:
        texts = sequences(*lengths)
        together = exact.forward(texts)
        order = list(range(len(texts)))
        random.shuffle(order)
        shuffled = exact.forward([texts[place] for place in order])
        assert np.abs(shuffled - together[order]).max() < 1e-6
        one = random.choice(order)
        assert np.abs(exact.forward([texts[one]])[0] - together[one]).max() < 1e-6

    def test_an_id_outside_the_vocabulary_is_an_error_and_no_more(
        self, exact: TorchBackend
    ) -> None:
        good = sequences(5)
        before = exact.forward(good)
        with pytest.raises(ValueError, match="30522"):
            exact.forward([*good, np.array([30_522], np.int32)])
        assert exact.forward(good).tobytes() == before.tobytes()

    @pytest.mark.parametrize("pooling", ["mean", "cls", "last_token"])
    def test_slots_that_are_not_used_and_what_lies_behind_change_nothing(
        self, exact: TorchBackend, pooling: PoolingMode
    ) -> None:
        texts = sequences(4, 7)
        packed = PackedModule(exact._padded.transformer, exact._padded.dense, pooling)
        with torch.inference_mode():
            expected = packed(*lay_out([torch.from_numpy(text) for text in texts])).numpy()
        found, nan_rows = with_tail(packed, texts)
        assert np.abs(found - expected).max() < 1e-6
        assert nan_rows == 21  # as a kernel may leave what it does not compute


@pytest.fixture(scope="module")
def tiny(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Card]:
    """Imports a tiny model of an architecture, once for all tests."""
    made: dict[tuple[str, str], Card] = {}

    def card_of(architecture: str, pooling: str = "mean") -> Card:
        if (architecture, pooling) not in made:
            place = tmp_path_factory.mktemp(architecture)
            dense = [(32, torch.nn.Tanh)] if architecture == "gemma3_text" else []
            folder = make_folder(place / "model", architecture, pooling=pooling, dense=dense)
            wishes = Wishes(name=architecture)
            card = import_model(folder, place / "models", wishes, lambda line: None)
            made[architecture, pooling] = card
        return made[architecture, pooling]

    return card_of


def within_vocabulary(*lengths: int) -> list[TokenIds]:
    return sequences(*lengths, low=40, high=120)


PADDED = ("mpnet", "t5")  # transformers gives their attention no other function
PACKED = [name for name in ARCHITECTURES if name not in PADDED]


class TestEveryArchitecture:
    @pytest.mark.parametrize("architecture", PACKED)
    def test_packed_equals_padded_equals_sentence_transformers(
        self, tiny: Callable[..., Card], architecture: str
    ) -> None:
        card = tiny(architecture)
        assert card.torch is not None
        assert card.torch.packed
        backend = TorchBackend(card, CPU)
        assert backend.layout is Layout.PACKED
        tokenizer = Tokenizer(card.path(TOKENIZER_FILE), card.max_input_tokens)
        texts = tokenizer.encode_texts(
            TextInputs(is_list=True, texts=list(HALF_PRECISION_TEXTS)),
            prompt="", truncate=True, max_request_tokens=10_000,
        )  # fmt: skip
        packed = backend.forward(texts)
        within, nan_rows = with_tail(backend._packed, texts)
        assert nan_rows == 21
        order = np.random.default_rng(0).permutation(len(texts))
        shuffled = [*backend.forward([texts[i] for i in order[:6]])]
        shuffled += [*backend.forward([texts[i] for i in order[6:]])]
        folder = read_folder(card.folder.parent.parent / "model")
        theirs = TorchReference(folder, card.max_input_tokens).embed(HALF_PRECISION_TEXTS, "")
        backend._padded.attend()
        with torch.inference_mode():
            padded = backend._run(texts, packed=False)
        differences = {
            "NaN behind the last sequence": np.abs(packed - within).max(),
            "padded": np.abs(packed - padded).max(),
            "sentence-transformers": np.abs(packed - theirs).max(),
            "in another company and order": np.abs(packed[order] - np.stack(shuffled)).max(),
        }
        print(architecture, *(f"| {name} {value:.1e}" for name, value in differences.items()))
        assert max(differences.values()) < 2e-6

    @pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
    @pytest.mark.parametrize("architecture", ["bert", "qwen3"])
    def test_every_pooling_is_that_of_the_graph(
        self, tiny: Callable[..., Card], architecture: str, pooling: str
    ) -> None:
        from server.inference.loader import load_encoder

        card = tiny(architecture, pooling)
        texts = within_vocabulary(3, 1, 20)
        graph = load_encoder(card).backends[0].forward(texts)
        assert np.abs(TorchBackend(card, CPU).forward(texts) - graph).max() < 2e-6

    @pytest.mark.parametrize("architecture", PADDED)
    def test_what_takes_no_attention_function_is_padded_and_the_card_and_the_log_say_so(
        self, tiny: Callable[..., Card], caplog: pytest.LogCaptureFixture, architecture: str
    ) -> None:
        card = tiny(architecture)
        assert card.torch is not None
        assert not card.torch.packed
        with caplog.at_level(logging.INFO):
            backend = TorchBackend(card, CPU)
        assert f"model {architecture}: padded" in caplog.text
        assert backend.layout is Layout.PADDED
        from server.inference.loader import load_encoder

        texts = within_vocabulary(5, 1, 30)
        graph = load_encoder(card).backends[0].forward(texts)
        assert np.abs(backend.forward(texts) - graph).max() < 2e-6

    def test_what_computes_another_vector_when_packed_is_padded(
        self,
        tiny: Callable[..., Card],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        card = tiny("xlm-roberta")
        right = TorchBackend(card, CPU).forward(within_vocabulary(5, 30))
        # The trap of RoBERTa's positions, which begin behind the padding's id.
        monkeypatch.setattr(
            "server.inference.torch_modules._padding_that_counts", lambda model: None
        )
        backend = TorchBackend(card, CPU)
        assert backend.layout is Layout.PADDED
        assert "not packed, since its vectors differ" in caplog.text
        assert np.abs(backend.forward(within_vocabulary(5, 30)) - right).max() < 2e-6

    def test_a_last_layer_that_gives_another_vector_computes_all_tokens(
        self,
        tiny: Callable[..., Card],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        card, texts = tiny("qwen3", "lasttoken"), within_vocabulary(3, 1, 20)
        backend = TorchBackend(card, CPU)
        expected = backend.forward(texts)
        assert backend._packed._narrow
        kinds = torch_last_layer._NORMS_BEFORE
        wrong = kinds["Qwen3DecoderLayer"]._replace(feed_forward="post_attention_layernorm")
        monkeypatch.setitem(kinds, "Qwen3DecoderLayer", wrong)
        with caplog.at_level(logging.WARNING):
            found = TorchBackend(card, CPU)
        assert "not with a narrow last layer, since its vectors differ" in caplog.text
        assert (found.layout, found._packed._narrow) == (Layout.PACKED, False)
        assert np.abs(found.forward(texts) - expected).max() < 1e-6

    def test_a_padding_token_in_a_text_does_not_count_as_with_roberta(
        self, tiny: Callable[..., Card]
    ) -> None:
        from server.inference.loader import load_encoder

        card = tiny("xlm-roberta")
        texts = within_vocabulary(4, 9, 30)
        for text, places in zip(texts, ([0], [2, 3, 8], [29]), strict=True):
            text[places] = 1  # <pad>
        backend = TorchBackend(card, CPU)
        assert backend.layout is Layout.PACKED
        graph = load_encoder(card).backends[0].forward(texts)
        assert np.abs(backend.forward(texts) - graph).max() < 2e-6

    def test_what_fails_when_packed_is_padded(
        self,
        tiny: Callable[..., Card],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def refuse(*_: object) -> None:
            raise RuntimeError("no kernel for this")

        monkeypatch.setattr("server.inference.torch_modules.lay_out", refuse)
        monkeypatch.setattr(torch_backend, "lay_out", refuse)
        assert TorchBackend(tiny("bert"), CPU).layout is Layout.PADDED
        assert "not packed, since that fails: no kernel for this" in caplog.text

    @pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
    def test_compiled_layers_compute_the_same_and_can_be_released(
        self, tiny: Callable[..., Card]
    ) -> None:
        backend = TorchBackend(tiny("qwen3"), CPU)
        texts = within_vocabulary(1, 5, 30)
        expected = backend.forward(texts)
        transformer = backend._padded.transformer
        compile_layers(transformer)
        assert np.abs(backend.forward(texts) - expected).max() < 1e-5
        assert np.abs(backend.forward(texts[:2]) - expected[:2]).max() < 1e-5
        release_layers(transformer)
        assert all(layer._compiled_call_impl is None for layer in transformer.layers)


@pytest.mark.parametrize(
    ("dtype", "capability", "why"),
    [
        ("float32", (9, 0), "packed attention is for half precision"),
        ("float16", (7, 5), "its GPU is too old for packed attention"),  # not compiled first
    ],
)
def test_what_the_attention_kernel_cannot_do_is_padded_without_a_try(
    plain_card: Card,
    exact: TorchBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: str,
    capability: tuple[int, int],
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(exact, "_device", torch.device("cuda:0"))
    monkeypatch.setattr(exact, "_dtype", dtype)
    with caplog.at_level(logging.INFO):
        assert not exact._find_packed_form(plain_card)
    assert caplog.messages == [f"model {plain_card.name}: padded, since {why}"]


class TestPreparing:
    def test_the_budget_is_halved_until_the_worst_micro_batch_fits(
        self, exact: TorchBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = exact._run

        def run_in_little_memory(texts: list[TokenIds], **form: Any) -> Any:
            if sum(map(len, texts)) > 600:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")
            return run(texts, **form)

        monkeypatch.setattr(exact, "_run", run_in_little_memory)
        budget, tokens_per_second = exact.prepare(2048)
        assert budget == 512
        assert tokens_per_second > 0
        assert "micro-batches of 512 tokens at most" in caplog.text
        with pytest.raises(OutOfMemory, match="Tried to allocate"):
            exact.forward(sequences(256, 256, 256))

    def test_a_model_whose_longest_text_does_not_fit_is_refused(
        self, exact: TorchBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(exact, "_run", run)
        with pytest.raises(ModelLoadError, match="256 tokens does not fit"):
            exact.prepare(None)

    def test_numbers_that_overflow_are_found_before_the_first_request(
        self, exact: TorchBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exact, "_run", lambda texts, **_: np.full((len(texts), 384), np.nan))
        with pytest.raises(ModelLoadError, match=r"too narrow for it.*another --dtype"):
            exact.prepare(512)

    def test_layers_that_would_be_compiled_again_and_again_compute_as_they_are_written(
        self, exact: TorchBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked: list[list[list[int]]] = []
        monkeypatch.setattr(
            torch_backend, "warm_up", lambda forward, packings: asked.append(packings)
        )
        monkeypatch.setattr(exact, "_run", lambda texts, **_: np.zeros((len(texts), 384)))
        exact.prepare(512)
        assert asked == []  # nothing is compiled
        compile_layers(exact._padded.transformer, "eager")
        exact.prepare(512)
        assert [256] in asked[0]
        assert not are_compiled(exact._padded.transformer)
        assert "not compiled, since each micro-batch is compiled anew" in caplog.text

    def test_devices_share_the_smallest_budget(
        self, plain_card: Card, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = iter([(4096, 2e6), (2048, 1e6)])
        monkeypatch.setattr(TorchBackend, "prepare", lambda self, wished: next(found))
        backends, capacity = load_backends(plain_card, [CPU, CPU], LoadOptions())
        assert len(backends) == 2
        assert capacity.batch_tokens == 2048
        assert capacity.tokens_per_second == 1e6


class TestMemory:
    def test_when_a_pass_ran_out_of_memory_nothing_of_it_is_kept(
        self, exact: TorchBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept: list[weakref.ref[torch.Tensor]] = []

        def run(*_: object, **__: object) -> None:
            activations = torch.zeros(10)
            kept.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(exact, "_run", run)
        monkeypatch.setattr(torch_backend, "empty_cache", lambda: kept.append(kept[0]()))  # type: ignore[arg-type]
        with pytest.raises(OutOfMemory):
            exact.forward(sequences(3))
        assert kept[1] is None


def hostile(card: Card, place: Path, **config: object) -> Card:
    """A copy of the card's model whose config says something else."""
    place.mkdir()
    for name in card.files:
        (place / name).symlink_to(card.path(name))
    (place / "config.json").unlink()
    content = json.loads(card.path("config.json").read_text()) | config
    (place / "config.json").write_text(json.dumps(content))
    facts = {name: getattr(card, name) for name in Card.model_fields}
    return Card.model_construct(**facts | {"folder": place})


class TestHostileConfigs:
    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
    def test_it_cannot_name_a_kernel_to_be_fetched(
        self, plain_card: Card, tmp_path: Path, exact: TorchBackend, key: str
    ) -> None:
        card = hostile(plain_card, tmp_path / "model", **{key: "somebody/kernel"})
        texts = sequences(3, 9)
        assert np.abs(TorchBackend(card, CPU).forward(texts) - exact.forward(texts)).max() < 1e-6

    @pytest.mark.parametrize(
        "config",
        [
            {"hidden_size": "large"},
            {"hidden_size": 385},
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            {"model_type": "no such model"},
            {"auto_map": {"AutoModel": "code.Model"}, "model_type": "own"},
        ],
        ids=str,
    )
    def test_what_cannot_be_is_one_line(
        self, plain_card: Card, tmp_path: Path, config: dict[str, object]
    ) -> None:
        with pytest.raises(ModelLoadError, match="model all-MiniLM-L6-v2: "):
            TorchBackend(hostile(plain_card, tmp_path / "model", **config), CPU)


class TestCardsThatSayTooLittle:
    def test_a_card_without_a_torch_table_is_refused_with_the_remedy(
        self, plain_card: Card
    ) -> None:
        facts = {name: getattr(plain_card, name) for name in Card.model_fields}
        card = Card.model_construct(**facts | {"torch": None})
        with pytest.raises(ModelLoadError, match=r"models import .* --replace"):
            TorchBackend(card, CPU)

    def test_weights_of_another_model_are_refused(
        self, tiny: Callable[..., Card], plain_card: Card, tmp_path: Path
    ) -> None:
        other = tiny("qwen3")
        for name in ("config.json", "tokenizer.json"):
            (tmp_path / name).write_bytes(other.path(name).read_bytes())
        (tmp_path / "model.safetensors").symlink_to(plain_card.path("model.safetensors"))
        facts = {name: getattr(plain_card, name) for name in Card.model_fields}
        torch_model = TorchModel(
            config="config.json", weights=("model.safetensors",), packed=True, dtype="float32"
        )
        card = Card.model_construct(**facts | {"folder": tmp_path, "torch": torch_model})
        with pytest.raises(ModelLoadError, match=r"qwen3 wants .* that the files lack: "):
            TorchBackend(card, CPU)
