"""A tokenizer made here and a fake forward pass: these tests need neither torch nor a model."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from server.inference.loader import Encoder
from server.inference.tokenizer import Tokenizer
from tests.fakes import FAKE_DIM, FakeBackend

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = string.ascii_lowercase + string.digits + string.punctuation + "日本語"


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads "word" as one token, other English letter by letter, as BERT's models would."""
    tokens = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "word"]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    rust = RustTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    rust.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    rust.save(str(path))
    return path


@pytest.fixture(scope="session")
def encoder(tokenizer_file: Path) -> Encoder:
    """As long as the plain model's, in place of it."""
    return Encoder(Tokenizer(tokenizer_file, 256), (FakeBackend(),), FAKE_DIM)
