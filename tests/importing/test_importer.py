"""What an import accepts, what it refuses, and what it leaves behind."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer

from server.catalog.card import TOKENIZER_FILE, Card
from server.catalog.card_file import read_card
from server.catalog.registry import read_registry
from server.errors import ImportRefused, StartupError
from server.importing import importer, packages
from server.importing.cpu_proof import prove_on_cpu
from server.importing.folder import read_folder
from server.importing.importer import import_model
from server.importing.plan import Wishes
from server.inference.cpu_instructions import quick_dtypes
from server.inference.loader import load_encoder
from server.inference.opening import Opener
from server.inference.placement import find_placement
from server.settings import Settings
from tests.catalog import write_card as write_by_hand
from tests.conftest import PLAIN, REPOSITORY
from tests.importing.exports import Exports
from tests.importing.folders import DIM, MAX_TOKENS, change_json, make_folder
from tests.panics import let_panic


def ignore(line: str) -> None:
    pass


pytestmark = pytest.mark.usefixtures("exports")


def card_of(data_dir: Path, name: str) -> Card:
    return read_card(data_dir / "models" / name, data_dir / "models")


def test_the_shipped_graph_comes_from_the_official_folder(
    official_folder: Path, tmp_path: Path
) -> None:
    card = import_model(official_folder, tmp_path / "models", Wishes(name=PLAIN), ignore)
    shipped = read_card(REPOSITORY / "models" / PLAIN, REPOSITORY / "models")
    assert card.path("graph.onnx").read_bytes() == shipped.path("graph.onnx").read_bytes()
    assert card.path("graph.onnx").stat().st_size < 100_000
    assert card.license == "apache-2.0"
    assert card.fingerprint == shipped.fingerprint


# --- a publisher's graph --------------------------------------------------------------------------


def test_a_publishers_graph_is_used_without_torch(tmp_path: Path, exports: Exports) -> None:
    folder = make_folder(tmp_path / "bert", "bert", pooling="cls")
    exports.published(folder)
    script = f"""
        import builtins, sys
        from server.importing import packages
        real = builtins.__import__
        def without_torch(name, *rest, **named):
            if name.partition(".")[0] in ("torch", "transformers", "sentence_transformers", "onnx"):
                raise ModuleNotFoundError(name)
            return real(name, *rest, **named)
        builtins.__import__ = without_torch
        packages.is_installed = lambda package: False
        sys.argv = ["x", "models", "import", {str(folder)!r}, "--data-dir", {str(tmp_path / "data")!r}]
        from server.commands.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not compared with sentence-transformers" in done.stdout
    card = card_of(tmp_path / "data", "bert")
    assert card.parity is not None
    assert card.parity.against == "witness (bert in numpy)"
    assert set(card.files) == {
        "graph.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "reference.safetensors",
    }


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_publishers_graph_gives_the_same_vectors(
    tmp_path: Path, exports: Exports, pooling: str
) -> None:
    folder = make_folder(tmp_path / "bert", "bert", pooling=pooling)
    exports.published(folder)
    wishes = Wishes(graph="published")
    card = import_model(folder, tmp_path / "models", wishes, ignore)
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999
    assert "model.safetensors" not in card.files
    assert card.torch is None
    ids = [np.array([2, 7, 9, 3], np.int32), np.array([2, 5, 6, 7, 8, 3], np.int32)]
    own = import_model(folder, tmp_path / "own", Wishes(graph="own"), ignore)
    left, right = (load_encoder(c).backends[0].forward(ids) for c in (card, own))
    assert np.abs(left - right).max() < 1e-6


def test_a_publishers_graph_of_other_weights_is_refused(tmp_path: Path, exports: Exports) -> None:
    folder = make_folder(tmp_path / "bert")
    exports.published(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"] *= 4
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ImportRefused, match=r"cosine 0\.\d+ with sentence-transformers .* --force"):
        import_model(folder, tmp_path / "models", Wishes(graph="published"), ignore)


@pytest.mark.parametrize(("pooled", "stays"), [("mean", True), ("cls", False), ("longer", False)])
def test_a_graph_that_pools_otherwise_than_the_folder_says_is_refused_without_weights(
    tmp_path: Path, exports: Exports, pooled: str, stays: bool
) -> None:
    folder = make_folder(tmp_path / "bert", "bert", normalize=False)
    graph = exports.published(folder)
    (folder / "model.safetensors").unlink()
    model = onnx.load(graph)
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    first = helper.make_tensor("first", TensorProto.INT64, [], [0])
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    model.graph.initializer.extend([axis, first, two])
    tokens, found = model.graph.output[0].name, "sentence_embedding"
    cls = helper.make_node("Gather", [tokens, "first"], [found], axis=1)
    mask = [
        helper.make_node("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float_mask", "axis_2"], ["wide_mask"]),
        helper.make_node("Mul", [tokens, "wide_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["float_mask", "axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Mul", ["mean", "two"], ["twice"]),
        helper.make_node("Identity", ["twice" if pooled == "longer" else "mean"], [found]),
    ]
    model.graph.initializer.append(helper.make_tensor("axis_2", TensorProto.INT64, [1], [2]))
    model.graph.node.extend([cls] if pooled == "cls" else mask)
    shape = ["batch", DIM]
    model.graph.output.append(helper.make_tensor_value_info(found, TensorProto.FLOAT, shape))
    onnx.save(model, graph)
    if stays:
        import_model(folder, tmp_path / "models", Wishes(), ignore)
        return
    expected = r"the graph's own vector of a text is not that of its token vectors by pooling mean"
    with pytest.raises(ImportRefused, match=expected):
        import_model(folder, tmp_path / "models", Wishes(), ignore)


def test_a_graph_that_cannot_be_read_is_refused_by_its_name_in_the_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ImportRefused) as refused:
        import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert refused.value.message.startswith(f"{folder / 'onnx' / 'model.onnx'}: ")
    assert str(tmp_path / "models") not in refused.value.message


def test_a_model_that_torch_cannot_try_is_installed_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("not implemented for 'Half'\nmore")

    monkeypatch.setattr("server.importing.torch_precision.try_dtypes", fail)
    lines: list[str] = []
    folder = make_folder(tmp_path / "bert")
    card = import_model(folder, tmp_path / "models", Wishes(), lines.append)
    assert card.torch is None
    assert lines[-1] == "on the CPU only: not implemented for 'Half'"


def test_a_graph_that_wants_what_is_not_there_is_refused(tmp_path: Path, exports: Exports) -> None:
    folder = make_folder(tmp_path / "bert")
    graph = exports.published(folder)
    model = onnx.load(graph)
    for node in model.graph.node:
        node.input[:] = ["position_ids" if n == "token_type_ids" else n for n in node.input]
    next(i for i in model.graph.input if i.name == "token_type_ids").name = "position_ids"
    onnx.save(model, graph)
    with pytest.raises(Exception, match="wants position_ids"):
        import_model(folder, tmp_path / "models", Wishes(graph="published"), ignore)
    assert not list((tmp_path / "models").iterdir())


# --- names, prompts, sizes ------------------------------------------------------------------------


def test_what_is_published_of_a_family_fills_the_gaps(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "nomic-embed-text-v1.5", "nomic_bert")
    lines: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(matryoshka=(16, 32)), lines.append)
    assert card.prompts == {"query": "search_query: ", "document": "search_document: "}
    assert card.matryoshka is not None
    assert card.matryoshka.dimensions == (DIM, 32, 16)
    assert card.matryoshka.layer_norm
    assert any("(table of families, from nomic-ai/nomic-embed-text-v1.5)" in line for line in lines)


def test_own_prompts_come_before_the_familys_and_the_commands_before_both(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "e5-base-v2", "bert", prompts={"query": "own: "})
    models = tmp_path / "models"
    assert import_model(folder, models, Wishes(), ignore).prompts == {"query": "own: "}
    wishes = Wishes(prompts={"document": "mine: "}, replace=True)
    card = import_model(folder, models, wishes, ignore)
    assert card.prompts == {"query": "own: ", "document": "mine: "}


def test_sizes_from_one_to_the_models_own_are_taken(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert")
    card = import_model(folder, tmp_path / "models", Wishes(matryoshka=(DIM, 1)), ignore)
    assert card.matryoshka is not None
    assert card.matryoshka.dimensions == (DIM, 1)


def test_sizes_beyond_the_models_own_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert")
    with pytest.raises(ImportRefused, match="--matryoshka: 64 is not between 1 and 48"):
        import_model(folder, tmp_path / "models", Wishes(matryoshka=(64, 16)), ignore)


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b/c", " ", ".hidden", "blank name", "ümlaut"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "bert")
    with pytest.raises(ImportRefused, match="cannot be a model's name"):
        import_model(folder, tmp_path / "models", Wishes(name=name), ignore)
    assert not (tmp_path / "models").exists()


def test_the_hub_clients_cache_gives_the_models_name_and_publisher(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "made")
    snapshot = tmp_path / "models--intfloat--e5-small-v2" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--intfloat--e5-small-v2" / "blobs"
    blobs.mkdir(parents=True)
    files = [path for path in made.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        link = snapshot / path.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.rename(blobs / str(number)))
    card = import_model(snapshot, tmp_path / "models", Wishes(), ignore)
    assert (card.name, card.owned_by) == ("e5-small-v2", "intfloat")
    assert not any(card.path(name).is_symlink() for name in card.files)
    assert card.prompts == {"query": "query: ", "document": "passage: "}


# --- refusals -------------------------------------------------------------------------------------


def change_module(folder: Path, number: int, **changes: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[number] |= changes
    (folder / "modules.json").write_text(json.dumps(modules))


def change_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """Set tensors of a folder's weights; None removes one. Dots are written as two underscores."""
    file = folder / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    content = load_file(file) | named
    save_file({name: tensor for name, tensor in content.items() if tensor is not None}, file)


def cut(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


BREAKS: dict[str, Callable[[Path], object]] = {
    "no model": lambda folder: (folder / "config.json").unlink(),
    "broken JSON": lambda folder: (folder / "config.json").write_text("{"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "pickle": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "own code": lambda folder: change_json(
        folder / "config.json",
        model_type="own_bert",
        auto_map={"AutoModel": "modeling_own.OwnModel"},
    ),
    "own code under a known name": lambda folder: change_json(
        folder / "config.json",
        auto_map={"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    ),
    "own code without its mention": lambda folder: (folder / "modeling_bert.py").touch(),
    "own tokenizer": lambda folder: change_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    ),
    "missing bias": lambda folder: change_tensors(
        folder, encoder__layer__0__attention__self__query__bias=None
    ),
    "adapter weights": lambda folder: change_tensors(
        folder, encoder__layer__0__attention__self__query__lora_A__weight=np.ones((2, DIM), "f4")
    ),
    "own module": lambda folder: change_module(folder, 0, type="custom_st.Transformer"),
    "max pooling": lambda folder: change_json(
        folder / "1_Pooling" / "config.json", pooling_mode="max"
    ),
    "module elsewhere": lambda folder: change_module(folder, 1, path="../1_Pooling"),
    "no pooling file": lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
    "cut weights": lambda folder: cut(folder / "model.safetensors"),
    "shard elsewhere": lambda folder: (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../other.safetensors"}})
    ),
    "shard overwritten": lambda folder: (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "reference.safetensors"}})
    ),
    "pooling of a number": lambda folder: change_json(
        folder / "1_Pooling" / "config.json", pooling_mode=5
    ),
    "pooling of lists": lambda folder: change_json(
        folder / "1_Pooling" / "config.json", pooling_mode=[["mean"]]
    ),
    "default prompt of a list": lambda folder: change_json(
        folder / "config_sentence_transformers.json", default_prompt_name=["query"]
    ),
    "length of a boolean": lambda folder: change_json(
        folder / "sentence_bert_config.json", max_seq_length=True
    ),
    "length without room": lambda folder: change_json(
        folder / "sentence_bert_config.json", max_seq_length=2
    ),
    "length beyond positions": lambda folder: change_json(
        folder / "sentence_bert_config.json", max_seq_length=512
    ),
    "half a character": lambda folder: change_json(
        folder / "config_sentence_transformers.json", prompts={"query": "\ud800"}
    ),
    "dangling link": lambda folder: relink(folder / "modules.json", folder / "absent"),
    "named pipe": lambda folder: relink(folder / "modules.json", None),
}


def relink(file: Path, target: Path | None) -> None:
    file.unlink()
    if target is None:
        os.mkfifo(file)
    else:
        file.symlink_to(target)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no model", "no config.json"),
        ("broken JSON", "config.json: not JSON"),
        ("no tokenizer", "no tokenizer.json"),
        ("pickle", "weights only as pytorch_model.bin, which can run code"),
        ("own code", "its own code (modeling_own.OwnModel) would have to be run"),
        (
            "own code under a known name",
            (
                "its own code (jinaai/jina-bert-implementation--modeling_bert.JinaBertModel) would have "
                "to be run, which is never done; bert of transformers without it is another model"
            ),
        ),
        ("own code without its mention", "its own code (modeling_bert.py) would have to be run"),
        ("own tokenizer", "its tokenizer's own code (tokenization_own.OwnTokenizer) would have"),
        (
            "missing bias",
            (
                "bert wants 1 tensor that the files lack: encoder.layer.0.attention.self.query.bias; "
                "get the publisher's whole files, whose names are as transformers saves them"
            ),
        ),
        (
            "adapter weights",
            (
                "the files hold 1 tensor that bert does not take: "
                "encoder.layer.0.attention.self.query.lora_A.weight; merge the adapter into its base"
            ),
        ),
        ("own module", "custom_st.Transformer is code of the model's own, which is never run"),
        ("max pooling", "pooling is max, but must be one of mean, cls, lasttoken"),
        ("module elsewhere", "../1_Pooling lies outside the model's folder"),
        ("no pooling file", "1_Pooling/config.json: No such file"),
        ("cut weights", "model.safetensors: not a safetensors file: it is cut off"),
        ("shard elsewhere", "../../other.safetensors lies outside the folder"),
        ("shard overwritten", "reference.safetensors cannot be a file of weights"),
        ("pooling of a number", "pooling is 5, but must be one of"),
        ("pooling of lists", "pooling is ['mean'], but must be one of"),
        ("default prompt of a list", "default_prompt_name must be a text"),
        ("length of a boolean", "says nowhere how many tokens"),
        ("length without room", "2 tokens leave no room beside special ones"),
        ("length beyond positions", "a text of 512 tokens cannot be computed"),
        ("half a character", "config_sentence_transformers.json: not JSON"),
        ("dangling link", "modules.json: No such file or directory"),
        ("named pipe", "modules.json: not a file"),
    ],
)
def test_what_cannot_be_served_as_it_was_meant_is_refused_and_leaves_nothing(
    tmp_path: Path, kind: str, reason: str
) -> None:
    folder = make_folder(tmp_path / "bert")
    BREAKS[kind](folder)
    with pytest.raises(StartupError) as caught:
        import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_missing_weights_are_refused_though_forced_and_before_they_are_copied(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path / "bert")
    change_tensors(folder, embeddings__LayerNorm__weight=None, embeddings__LayerNorm__bias=None)
    lines: list[str] = []
    with pytest.raises(ImportRefused, match="bert wants 2 tensors that the files lack"):
        import_model(folder, tmp_path / "models", Wishes(force=True), lines.append)
    assert not any(line.startswith("making the graph") for line in lines)


def test_a_language_models_head_is_left_out_and_a_pooler_is_not_missed(tmp_path: Path) -> None:
    """As checkpoints of BertForMaskedLM are; and the pooler's place is NaN, which nothing uses."""
    folder = make_folder(tmp_path / "bert")
    change_tensors(
        folder,
        cls__predictions__bias=np.ones(400, "f4"),
        embeddings__position_ids=np.arange(64)[None],
        pooler__dense__weight=None,
        pooler__dense__bias=None,
    )
    card = import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999
    assert card.torch is not None
    assert card.torch.packed


def test_a_publishers_graph_does_for_own_code_which_nothing_here_could_compare_with(
    tmp_path: Path, exports: Exports
) -> None:
    folder = make_folder(tmp_path / "bert")
    exports.published(folder)
    change_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"})
    lines: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(), lines.append)
    assert (card.parity, card.torch) == (None, None)
    assert "model.safetensors" not in card.files
    using = lines.index("using the publisher's onnx/model.onnx")
    assert lines[using + 1] == (
        "only that graph is the publisher's model: its own code (modeling_own.OwnModel) would have "
        "to be run, which is never done; bert of transformers without it is another model"
    )
    assert lines[-1] == (
        "warning: the publisher's graph was compared with nothing: sentence-transformers makes "
        "another model of this folder"
    )
    own = Wishes(graph="own", replace=True)
    with pytest.raises(ImportRefused, match=r"--graph published takes the publisher's graph$"):
        import_model(folder, tmp_path / "models", own, ignore)


def test_vectors_unlike_the_publishers_are_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "bert")
    other = make_folder(tmp_path / "other", pooling="cls")
    real = importlib.import_module("server.importing.torch_reference").TorchReference
    monkeypatch.setattr(
        "server.importing.torch_reference.TorchReference",
        lambda _, max_tokens: real(read_folder(other), max_tokens),
    )
    with pytest.raises(ImportRefused, match=r"at least 0\.9999 is needed .* --force"):
        import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert not list((tmp_path / "models").iterdir())
    lines: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(force=True), lines.append)
    assert card.parity is not None
    assert card.parity.min_cosine < 0.9999
    assert any(line.startswith("warning: ") for line in lines)


def test_an_installed_model_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert")
    models = tmp_path / "models"
    first = import_model(folder, models, Wishes(), ignore)
    change_json(folder / "1_Pooling" / "config.json", pooling_mode="cls")
    with pytest.raises(ImportRefused, match=r"model bert is there already .* --replace"):
        import_model(folder, models, Wishes(), ignore)
    assert read_card(models / "bert", models).fingerprint == first.fingerprint
    assert import_model(folder, models, Wishes(replace=True), ignore).pooling == "cls"
    assert [path.name for path in models.iterdir()] == ["bert"]


@pytest.mark.parametrize("alias", ["", "two words", "one,two", "a\nb", "all-MiniLM-L6-v2", "first"])
def test_an_alias_that_would_keep_servers_from_starting_is_refused(
    tmp_path: Path, alias: str
) -> None:
    folder, models = make_folder(tmp_path / "bert"), tmp_path / "models"
    import_model(folder, models, Wishes(name="other", aliases=("first",)), ignore)
    shipped = REPOSITORY / "models"
    with pytest.raises(ImportRefused, match=r"--alias|is what clients call the model"):
        import_model(folder, models, Wishes(aliases=(alias,)), ignore, beside=shipped)
    with pytest.raises(ImportRefused, match="'first' is what clients call the model other"):
        import_model(folder, models, Wishes(name="first"), ignore, beside=shipped)
    assert {card.name for card in read_registry(shipped, models).cards} > {"other"}


def test_a_shipped_model_is_not_displaced(tmp_path: Path) -> None:
    """Its variant would have a base of another size, and no server would start."""
    folder, models = make_folder(tmp_path / "bert"), tmp_path / "models"
    wishes, shipped = Wishes(name=PLAIN, replace=True), REPOSITORY / "models"
    with pytest.raises(ImportRefused, match=r"came with this software|is made of the"):
        import_model(folder, models, wishes, ignore, beside=shipped)


def test_the_base_of_a_variant_is_not_replaced(tmp_path: Path) -> None:
    folder, models = make_folder(tmp_path / "bert"), tmp_path / "models"
    import_model(folder, models, Wishes(), ignore)
    write_by_hand(models, {"name": "variant", "base": "bert", "files": {}})
    with pytest.raises(ImportRefused, match="variant is made of the bert that is there"):
        import_model(folder, models, Wishes(replace=True), ignore)


def test_models_are_not_put_inside_or_in_place_of_others(tmp_path: Path) -> None:
    """An organisation's folder is none of a model's: replacing it would remove all it holds."""
    folder, models = make_folder(tmp_path / "bert"), tmp_path / "models"
    import_model(folder, models, Wishes(name="org/one"), ignore)
    import_model(folder, models, Wishes(name="two"), ignore)
    with pytest.raises(ImportRefused, match="org holds other models"):
        import_model(folder, models, Wishes(name="org", replace=True), ignore)
    with pytest.raises(ImportRefused, match="two is a model itself"):
        import_model(folder, models, Wishes(name="two/three"), ignore)
    assert [card.name for card in read_registry(models).cards] == ["org/one", "two"]


def test_of_two_imports_at_once_the_slower_is_refused(tmp_path: Path) -> None:
    folder, models = make_folder(tmp_path / "bert"), tmp_path / "models"
    fast: list[Card] = []

    def overtake(line: str) -> None:
        if line.startswith("comparing") and not fast:
            fast.append(import_model(folder, models, Wishes(name="bert"), lambda _: None))

    with pytest.raises(ImportRefused, match="is there already"):
        import_model(folder, models, Wishes(aliases=("slow",)), overtake)
    assert read_card(models / "bert", models).aliases == ()


def test_a_family_is_known_whatever_the_model_is_called_here(tmp_path: Path) -> None:
    folder, models = make_folder(tmp_path / "bert"), tmp_path / "models"
    origin = ("nomic-ai/nomic-embed-text-v1.5", "c" * 40)
    card = import_model(folder, models, Wishes(name="mine", origin=origin), ignore)
    assert card.prompts["query"] == "search_query: "


def test_a_folder_with_nothing_but_a_published_graph_needs_no_wish(
    tmp_path: Path, exports: Exports
) -> None:
    folder = make_folder(tmp_path / "bert")
    exports.published(folder)
    (folder / "model.safetensors").unlink()
    lines: list[str] = []
    import_model(folder, tmp_path / "models", Wishes(), lines.append)
    assert "using the publisher's onnx/model.onnx" in lines


def test_a_long_limit_does_not_make_the_comparison_take_all_memory(tmp_path: Path) -> None:
    """At its full length the padding mask alone would be 16 GiB."""
    folder = make_folder(tmp_path / "qwen", "qwen3", pooling="lasttoken")
    change_json(folder / "sentence_bert_config.json", max_seq_length=65_536)
    card = import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert card.max_input_tokens == 65_536
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999


def test_a_terminated_import_leaves_nothing(tmp_path: Path) -> None:
    folder, data = make_folder(tmp_path / "bert"), tmp_path / "data"
    command = [sys.executable, "-m", "server", "models", "import", str(folder)]
    with subprocess.Popen(
        [*command, "--data-dir", str(data)], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert next(line for line in running.stdout if line.startswith("comparing"))
        running.send_signal(signal.SIGTERM)
        running.wait()
    assert running.returncode == 143
    assert not list((data / "models").iterdir())
    assert data.stat().st_mode & 0o077 == 0


def test_an_interrupted_import_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("comparing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_model(make_folder(tmp_path / "bert"), tmp_path / "models", Wishes(), interrupt)
    assert not list((tmp_path / "models").iterdir())


def test_a_folder_without_modules_is_what_a_person_says_as_sentence_transformers_has_it(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path / "bert", normalize=False)
    (folder / "modules.json").unlink()
    (folder / "config_sentence_transformers.json").unlink()
    lines: list[str] = []
    wishes = Wishes(pooling="cls", normalize=True)
    card = import_model(folder, tmp_path / "models", wishes, lines.append)
    assert (card.pooling, card.normalize) == ("cls", True)
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999
    assert {"pooling: cls (--pooling)", "normalize: yes (--normalize)"} < set(lines)


def test_a_known_name_without_modules_is_pooled_as_published_and_every_fact_is_told(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path / "bge-small-en-v1.5", pooling="cls")
    (folder / "modules.json").unlink()
    lines: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(), lines.append)
    assert (card.pooling, card.normalize) == ("cls", True)
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999
    table = "(table of families, from BAAI/bge-base-en-v1.5)"
    assert lines[:5] == [
        f"pooling: cls {table}",
        "dense layers: none (no modules.json names any)",
        f"normalize: yes {table}",
        f"longest input: {MAX_TOKENS} tokens (tokenizer_config.json)",
        "lower case: left to tokenizer.json (sentence_bert_config.json does not say it)",
    ]
    assert {
        f'prompt query: "Represent this sentence for searching relevant passages: " {table}',
        "default prompt: none (config_sentence_transformers.json names none)",
        "Matryoshka sizes: none (none are known; --matryoshka says them)",
    } < set(lines)


def test_texts_are_put_into_lower_case_where_the_folder_says_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert")
    change_json(folder / "sentence_bert_config.json", do_lower_case=True, max_seq_length=MAX_TOKENS)
    card = import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999
    tokenizer = load_encoder(card).tokenizer
    upper, lower = (tokenizer._rust.encode(text).ids for text in ("THE FOX", "the fox"))
    assert upper == lower


def test_tokens_that_the_weights_lack_are_named_and_the_import_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is compared: that is not what this is about, and takes most of the time.
    monkeypatch.setattr(packages, "is_installed", lambda package: package == "torch")
    folder = make_folder(tmp_path / "bert")
    tokenizer = RustTokenizer.from_file(str(folder / TOKENIZER_FILE))
    first = tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"[NEW{number}]" for number in range(12)])
    tokenizer.save(str(folder / TOKENIZER_FILE))
    told: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(), told.append)
    (warning,) = [line for line in told if line.startswith("warning:")]
    assert f"'[NEW0]' ({first}), '[NEW1]' ({first + 1})" in warning
    assert warning.endswith(f"'[NEW9]' ({first + 9}) and 2 more")
    assert load_encoder(card).num_embeddings == first


@pytest.mark.parametrize("when", ["when it is read", "at every text", "at emoji"])
def test_a_tokenizer_that_panics_is_refused_in_one_line(when: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert")
    let_panic(folder / TOKENIZER_FILE, when)
    with pytest.raises(StartupError) as refused:
        import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert "\n" not in refused.value.message
    assert not list((tmp_path / "models").rglob("card.toml"))


# --- lower precision on a CPU ---------------------------------------------------------------------


def test_a_card_says_what_the_lower_precisions_of_a_cpu_keep_and_is_served_by_that(
    tmp_path: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "prove_on_cpu", prove_on_cpu)
    lines: list[str] = []
    import_model(make_folder(tmp_path / "bert"), tmp_path / "models", Wishes(), lines.append)
    card = card_of(tmp_path, "bert")
    there = [dtype for dtype in ("bfloat16", "int8") if dtype in quick_dtypes()]
    assert [one.dtype for one in card.cpu_precision] == there
    assert any(line.startswith("on a CPU: int8 with groups of 32;") for line in lines) == (
        "int8" in there
    )
    for dtype in there:
        opener = Opener(Settings(), find_placement("cpu", dtype))
        assert opener.open_encoder(card).embedding_dim == DIM  # at the card's floor
    if "int8" in there:
        assert card.int8 is not None
        assert card.int8.group_size == 32  # which divides the feed-forward's inputs
