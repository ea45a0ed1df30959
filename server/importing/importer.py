"""A Hugging Face folder to an installed model: card, graph, weights, tokenizer, and the proof.

The story of an import: read, plan, build, prove, write, place. The model is put together in a
workshop and moved to its place at the end, so that an import that fails or is interrupted leaves
nothing. Torch is needed only where a graph has to be made or compared; it is imported by the modules
whose names begin with `torch_`. Knows nothing of queues, HTTP or keys.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import save

from server.catalog.card import GRAPH_FILE, Card, Reference
from server.catalog.card_file import read_card, write_card
from server.delivery.placing import workshop
from server.errors import ImportRefused, InferenceFailed
from server.importing import origin
from server.importing.adapter_folder import find_base, whole_folder
from server.importing.build import build_files, makes_own_graph, pin_files
from server.importing.company import prove_company
from server.importing.cpu_proof import prove_on_cpu
from server.importing.families import find_family
from server.importing.folder import ModelFolder, read_folder
from server.importing.places import check_free, choose_name
from server.importing.plan import Wishes, choose_sizes
from server.importing.prompts import choose_prompts
from server.importing.proof import prove_dtypes, prove_it_computes, prove_parity
from server.importing.proof_texts import REFERENCE_TEXTS
from server.importing.recognising import refuse_what_is_no_model
from server.importing.special_tokens import show_tokens
from server.importing.told import tell
from server.importing.weight_files import REFERENCE_FILE
from server.importing.witness_proof import prove_by_witness


def import_model(
    path: Path,
    into: Path,
    wishes: Wishes,
    report: Callable[[str], None],
    *,
    beside: Path | None = None,
) -> Card:
    """Make an installed model of a folder.

    Args:
        into: the folder of installed models; made if need be.
        report: called with one line of progress at a time.
        beside: the models that came with the software; None if there are none.

    Raises:
        ImportRefused: the folder cannot be served as its publisher meant it, or its place is taken.
        CardError, ModelLoadError: what came out cannot be used.
    """
    refuse_what_is_no_model(path)
    base = find_base(path, wishes.base, look_beside=wishes.origin is None)
    try:
        with whole_folder(path, base, into, report) as whole:
            if whole is not path:
                refuse_what_is_no_model(whole)
            folder = read_folder(
                whole,
                names=origin.own_names(path, wishes),
                pooling=wishes.pooling,
                normalize=wishes.normalize,
                onnx=wishes.onnx,
                max_input_tokens=wishes.max_input_tokens,
            )
            return _install(replace(folder, given=path), into, wishes, report, beside)
    except InferenceFailed as error:  # a text of the proof is one of those at which it fails
        raise ImportRefused(f"{path}: {error.message}") from error
    except OSError as error:
        raise ImportRefused(f"{error.filename or into}: {error.strerror or error}") from error


def _install(
    folder: ModelFolder,
    into: Path,
    wishes: Wishes,
    report: Callable[[str], None],
    beside: Path | None,
) -> Card:
    name = choose_name(folder, wishes)
    check_free(into, name, wishes, beside)
    with workshop(into) as shop:
        made = shop.new / name
        made.mkdir(parents=True)
        write_card(_make(folder, made, name, wishes, report), made)
        check_free(into, name, wishes, beside)  # another import may have been faster
        shop.put_in_place([name])
    return read_card(into / name, into)


def _make(
    folder: ModelFolder, made: Path, name: str, wishes: Wishes, report: Callable[[str], None]
) -> Card:
    """Write all files but the card into the empty folder `made`; returns what the card says."""
    tell((*folder.head.told, *folder.told), report)
    family = find_family(origin.known_names(folder, name, wishes))
    prompts = choose_prompts(folder.prompts, family, wishes.prompts, report)
    encoder = build_files(folder, made, wishes, report)
    matryoshka = choose_sizes(encoder.embedding_dim, family, wishes, report)
    show_tokens(encoder.tokenizer, report)
    reference = prove_it_computes(folder, encoder, report)
    prove_company(folder, encoder, made / GRAPH_FILE, report)
    (made / REFERENCE_FILE).write_bytes(save({"embeddings": reference}))
    parity = prove_parity(
        folder,
        encoder,
        prompts.of_card,
        report,
        force=wishes.force,
        briefly=prompts.by_name.values(),
    )
    parity = prove_by_witness(
        folder,
        encoder,
        prompts.by_name.values(),
        parity,
        report,
        own_graph=makes_own_graph(folder, wishes),
        force=wishes.force,
    )
    card = Card(
        name=name,
        description=origin.description(folder, wishes),
        license=origin.license_name(folder),
        owned_by=origin.publisher(folder, wishes),
        created=datetime.datetime.now(datetime.UTC).date(),
        architecture=folder.architecture,
        embedding_dim=encoder.embedding_dim,
        max_input_tokens=folder.max_input_tokens,
        pooling=folder.head.pooling,
        normalize=folder.head.normalize,
        dtype="float32",
        aliases=wishes.aliases,
        prompts=dict(prompts.by_name),
        default_prompt=prompts.default,
        matryoshka=matryoshka,
        parity=parity,
        reference=Reference(texts=REFERENCE_TEXTS, file=REFERENCE_FILE),
        files=pin_files(made),
        folder=made,
    )
    if wishes.origin is not None:
        card = card.changed(sources=(origin.hub_source(folder, card, wishes.origin),))
    return prove_on_cpu(prove_dtypes(folder, card, encoder, report), encoder, report)
