"""FAISS and Qdrant are both exact: for the same vectors they find the same passages, those that numpy finds."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_encoder import WORDS, write_tiny_encoder

from harness.errors import InputError
from harness.protocol import Passage
from harness.retrieval import embed, open_index, retrievers
from harness.retrieval.corpus import Corpus
from harness.retrieval.index import ensure_index

K = 10


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Random unit vectors: 2,000 of a corpus, 50 of questions. No two inner products are equal."""
    rng = np.random.default_rng(0)
    corpus_ND, queries_QD = (rng.standard_normal((n, 32)).astype(np.float32) for n in (2000, 50))
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (corpus_ND, queries_QD))  # type: ignore[return-value]


def brute_force(corpus_ND: np.ndarray, queries_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores_QN = queries_QD.astype(np.float64) @ corpus_ND.T.astype(np.float64)
    rows_QK = np.argsort(-scores_QN, axis=1)[:, :K]
    return np.take_along_axis(scores_QN, rows_QK, axis=1), rows_QK


def test_faiss_finds_what_numpy_finds(vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from harness.retrieval.faiss_index import FaissVectors, write_flat

    write_flat(vectors[0], tmp_path)
    assert_same(FaissVectors(tmp_path).nearest(vectors[1], K), brute_force(*vectors))


def test_the_embedded_qdrant_finds_what_numpy_finds(vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge")
    from harness.retrieval.qdrant_index import QdrantShard, write_shard

    write_shard(vectors[0], tmp_path)
    assert_same(QdrantShard(tmp_path).nearest(vectors[1], K), brute_force(*vectors))


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_the_qdrant_client_finds_what_numpy_finds(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    from harness.retrieval.qdrant_index import QdrantServer, upload

    upload(vectors[0], client, "toy")
    assert_same(QdrantServer(client, "toy", 2000).nearest(vectors[1], K), brute_force(*vectors))
    with pytest.raises(InputError, match="expected 1999 passages in the Qdrant collection toy, found 2000"):
        QdrantServer(client, "toy", 1999)
    with pytest.raises(InputError, match="expected 5 passages in the Qdrant collection other, found 0"):
        QdrantServer(client, "other", 5)


def assert_same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, str]:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 9))) for _ in range(60)]
    corpus = Corpus.of(Passage(id=f"p{i}", title="", text=text) for i, text in enumerate(dict.fromkeys(texts)))
    return corpus, str(write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny"))


@pytest.mark.parametrize("retriever", ["faiss", "qdrant"])
def test_a_dense_retriever_ranks_by_cosine(toy: tuple[Corpus, str], tmp_path: Path, retriever: str) -> None:
    corpus, encoder = toy
    index = ensure_index(retrievers.index_config(retriever, encoder), corpus, tmp_path)
    questions = ["cats chase mice", "who dreams"]
    model = embed.encoder(encoder).build()
    cosine_QN = model.encode_questions(questions) @ model.encode([p.text for p in corpus.passages]).T
    for hits, cosine_N in zip(index.open().search(questions, 5), cosine_QN, strict=True):
        best = np.argsort(-cosine_N)[:5]
        assert [hit.passage for hit in hits] == [corpus.passages[row] for row in best]
        assert [hit.score for hit in hits] == pytest.approx(cosine_N[best].tolist(), abs=1e-5)
    assert len(index.open().search(questions[:1], 1000)[0]) == len(corpus.passages)


def test_equal_vectors_are_in_corpus_order(toy: tuple[Corpus, str], tmp_path: Path) -> None:
    same = Corpus.of(Passage(id=str(i), title="", text="cats sleep") for i in range(20))
    for retriever in ("faiss", "qdrant"):
        hits = ensure_index(retrievers.index_config(retriever, toy[1]), same, tmp_path).open().search(["cats"], 20)[0]
        assert [hit.passage.id for hit in hits] == [str(i) for i in range(20)]


def test_ties_that_straddle_the_last_rank_are_cut_in_corpus_order(toy: tuple[Corpus, str], tmp_path: Path) -> None:
    texts = [passage.text for passage in toy[0].passages[:20]]
    repeated = Corpus.of(Passage(id=str(i), title="", text=text) for i, text in enumerate(texts * 10))
    questions = ["cats chase mice", "who dreams", "the dog sleeps"]
    found = []
    for retriever in ("faiss", "qdrant"):
        index = ensure_index(retrievers.index_config(retriever, toy[1]), repeated, tmp_path).open()
        found.append([[int(hit.passage.id) for hit in hits] for hits in index.search(questions, 5)])
    assert found[0] == found[1]
    for rows in found[0]:
        assert rows == [rows[0] % 20 + 20 * i for i in range(5)], "the first 5 of the best passage's 10 copies"


def test_an_open_index_can_be_opened_again(toy: tuple[Corpus, str], tmp_path: Path) -> None:
    """With its write-ahead log on, the embedded engine locks the folder: two jobs could not read one index."""
    for retriever in retrievers.RETRIEVERS:
        index = ensure_index(retrievers.index_config(retriever, toy[1]), toy[0], tmp_path)
        first, second = index.open(), open_index(index.folder)
        assert first.search(["cats"], 3) == second.search(["cats"], 3)


def test_faiss_and_qdrant_share_the_vectors_of_a_corpus(
    toy: tuple[Corpus, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, encoder = toy
    ensure_index(retrievers.index_config("faiss", encoder), corpus, tmp_path)
    monkeypatch.setattr(embed.EncoderConfig, "build", lambda self: pytest.fail("encoded again"))
    ensure_index(retrievers.index_config("qdrant", encoder), corpus, tmp_path)


def test_indexing_again_does_nothing(toy: tuple[Corpus, str], tmp_path: Path) -> None:
    corpus, encoder = toy
    for retriever in retrievers.RETRIEVERS:
        config = retrievers.index_config(retriever, encoder)
        first = ensure_index(config, corpus, tmp_path)
        stamp = (first.folder / "manifest.json").stat().st_mtime_ns
        again = ensure_index(config, corpus, tmp_path)
        assert (first.new, again.new, again.folder) == (True, False, first.folder)
        assert (first.folder / "manifest.json").stat().st_mtime_ns == stamp


def test_an_index_that_was_cut_off_is_no_index(
    toy: tuple[Corpus, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.retrieval import index

    monkeypatch.setattr(index, "write_corpus", lambda corpus, path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ensure_index(retrievers.index_config("bm25"), toy[0], tmp_path)
    assert not list((tmp_path / "indexes").iterdir())
    monkeypatch.undo()
    assert ensure_index(retrievers.index_config("bm25"), toy[0], tmp_path).new


def test_a_folder_that_is_not_the_index_it_says_is_refused(toy: tuple[Corpus, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an index folder with manifest.json at .*refrag-bench index"):
        open_index(tmp_path)
    folder = ensure_index(retrievers.index_config("bm25"), toy[0], tmp_path).folder
    passages = (folder / "passages.jsonl").read_text()
    (folder / "passages.jsonl").write_text(passages.replace("cat", "cow"))
    with pytest.raises(InputError, match="was made of another corpus; delete it and index again"):
        open_index(folder)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [Path.unlink, cut])
@pytest.mark.parametrize("retriever", retrievers.RETRIEVERS)
def test_a_damaged_index_is_said(
    toy: tuple[Corpus, str], tmp_path: Path, retriever: str, damage: Callable[[Path], None]
) -> None:
    """The embedded engine by itself answers from what is left of its files, or panics."""
    config = retrievers.index_config(retriever, toy[1])
    folder = ensure_index(config, toy[0], tmp_path).folder
    ensure_index(config, toy[0], tmp_path).open().search(["cats"], 3)
    for path in [p for p in folder.rglob("*") if p.is_file() and p.name not in ("manifest.json", "passages.jsonl")]:
        whole = path.read_bytes()
        damage(path)
        for reopen in (lambda: open_index(folder), lambda: ensure_index(config, toy[0], tmp_path).open()):
            with pytest.raises(InputError, match=rf"is damaged; delete it and index again \(.*{path.name}"):
                reopen()
        path.write_bytes(whole)
    open_index(folder)


@pytest.mark.parametrize("content", [b'{"choice": ', b"{}", b"[]", b'"\xff"', {"retriever": "bm25", "k1": "2"}, {}])
def test_a_damaged_manifest_is_said(toy: tuple[Corpus, str], tmp_path: Path, content: bytes | dict[str, str]) -> None:
    folder = ensure_index(retrievers.index_config("bm25"), toy[0], tmp_path).folder
    manifest = folder / "manifest.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(manifest.read_text()) | {"choice": content}).encode()
    manifest.write_bytes(content)
    with pytest.raises(InputError, match="is damaged; delete it and index again"):
        open_index(folder)
    manifest.unlink()
    with pytest.raises(InputError, match=r"is damaged; delete it and index again \(no manifest.json\)"):
        ensure_index(retrievers.index_config("bm25"), toy[0], tmp_path)


def test_the_retrievers_knows_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown retriever 'fais' \(did you mean 'faiss'\?\)"):
        retrievers.index_config("fais")
    with pytest.raises(InputError, match="a Qdrant URL goes with the retriever qdrant, got it with 'bm25'"):
        retrievers.index_config("bm25", qdrant_url="http://localhost:6333")


@pytest.mark.parametrize("raised", [ImportError("no module"), RuntimeError("libcublas.so.12 not found")])
def test_faiss_that_does_not_import_says_what_to_install(
    toy: tuple[Corpus, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "faiss":
                raise raised

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(InputError, match=r"refrag-bench\[cpu\]' or, never both, 'refrag-bench\[gpu\]'"):
        ensure_index(retrievers.index_config("faiss", toy[1]), toy[0], tmp_path)


@pytest.mark.parametrize("url", ["http://[::1", "http://a:port", "ftp://x", "http://localhost:99999"])
def test_a_malformed_url_is_said(url: str) -> None:
    pytest.importorskip("qdrant_client")
    from harness.retrieval.qdrant_index import connect

    with pytest.raises(InputError, match="expected a URL like http://localhost:6333"):
        connect(url)


def test_no_server_at_the_url_is_said(toy: tuple[Corpus, str], tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    config = retrievers.index_config("qdrant", toy[1], "http://127.0.0.1:9")
    with pytest.raises(InputError, match="expected a Qdrant server at http://127.0.0.1:9; none answers there"):
        ensure_index(config, toy[0], tmp_path)
