"""What the parts of a run take: encoding, splice, prefill, a decode step, retrieval, scoring, a journal, a table.

pytest-benchmark's own loop, table and files: ``make bench`` holds them against the last run that was accepted for this
kind of machine (results/records/benchmarks). The device is part of a benchmark's name, so CPU and CUDA are never
compared. One thread; what each part returns is asserted, its time never.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tiny_refrag import write_tiny_refrag
from torch import Tensor

from harness.data.sources import DataRoot, load_questions
from harness.metrics import score_answer
from harness.model.load import load_decoder
from harness.model.splice import splice
from harness.protocol import Example
from harness.record import Journal
from harness.retrieval.corpus import read_corpus
from harness.retrieval.index import ensure_index
from harness.retrieval.retrievers import index_config
from refrag_v2.system import RefragV2, RefragV2Config
from results.experiments.draw import draw

PROJECT = Path(__file__).resolve().parents[2]
BATCH, PASSAGES, NEW, QUESTIONS = 8, 8, 8, 50


def synchronised() -> float:
    """Seconds; work that was given to a CUDA device is done by then."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


pytestmark = pytest.mark.benchmark(timer=synchronised, warmup=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "on" in metafunc.fixturenames:
        metafunc.parametrize("on", [str(metafunc.config.getoption("--device"))])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Prepared:
    """A random tiny REFRAG v2 (k = 8), and a batch of questions over their passages up to the decoder's input."""

    system: RefragV2
    questions: list[str]
    passages: list[Any]
    rows: list[list[int]]
    chunks_ME: Tensor
    inputs_BTE: Tensor
    mask_BT: Tensor


@pytest.fixture(scope="module")
def asked(world: Path) -> list[Example]:
    return load_questions("nq", DataRoot.open(world), limit=QUESTIONS)[0]


@pytest.fixture(scope="module")
def prepared(asked: list[Example], world: Path, device: str, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = write_tiny_refrag(tmp_path_factory.mktemp("refrag") / "final")
    system = RefragV2Config(k=8, template="tagged").build(load_decoder(str(folder), device=device))
    corpus = DataRoot.open(world).file("corpus")
    assert corpus
    texts = read_corpus(corpus).passages
    passages = [texts[i * PASSAGES : (i + 1) * PASSAGES] for i in range(BATCH)]
    questions = [example.question for example in asked[:BATCH]]
    context = system.encode(passages)
    rows = [choice.codes for choice in system.choose(questions, context, NEW)]
    with torch.inference_mode():
        inputs_BTE, mask_BT = splice(rows, context.embeddings_ME, system.llama.embed, system.pad_id)
    return Prepared(system, questions, passages, rows, context.embeddings_ME, inputs_BTE, mask_BT)


def test_chunk_encoding(benchmark: BenchmarkFixture, prepared: Prepared, on: str) -> None:
    chunks = benchmark(prepared.system.encode, prepared.passages)
    assert torch.equal(chunks.embeddings_ME, prepared.chunks_ME)


@torch.inference_mode()
def test_splice(benchmark: BenchmarkFixture, prepared: Prepared, on: str) -> None:
    system = prepared.system
    inputs_BTE, _ = benchmark(splice, prepared.rows, prepared.chunks_ME, system.llama.embed, system.pad_id)
    assert torch.equal(inputs_BTE, prepared.inputs_BTE)


@torch.inference_mode()
def test_prefill(benchmark: BenchmarkFixture, prepared: Prepared, on: str) -> None:
    llama = prepared.system.llama
    T = prepared.inputs_BTE.shape[1]
    cache = llama.new_cache(BATCH, T + NEW)

    def prefill() -> Tensor:
        cache.length = 0
        return llama.prefill(prepared.inputs_BTE, prepared.mask_BT, cache)

    first = prefill().clone()
    assert torch.equal(benchmark(prefill), first)


@torch.inference_mode()
def test_decode_step(benchmark: BenchmarkFixture, prepared: Prepared, on: str) -> None:
    llama = prepared.system.llama
    T = prepared.inputs_BTE.shape[1]
    cache = llama.new_cache(BATCH, T + NEW)
    token_B = llama.prefill(prepared.inputs_BTE, prepared.mask_BT, cache).argmax(-1)

    def step() -> Tensor:
        cache.length = T
        return llama.decode_one_token(token_B, cache)

    first = step().clone()
    assert torch.equal(benchmark(step), first)


def test_retrieval(benchmark: BenchmarkFixture, asked: list[Example], world: Path, tmp_path: Path) -> None:
    corpus = DataRoot.open(world).file("corpus")
    assert corpus
    index = ensure_index(index_config("bm25"), read_corpus(corpus), tmp_path).open()
    found = benchmark(index.search, [example.question for example in asked], PASSAGES)
    assert [len(hits) for hits in found] == [PASSAGES] * QUESTIONS


def test_metrics(benchmark: BenchmarkFixture, asked: list[Example]) -> None:
    def score() -> list[float]:
        return [score_answer(f"The {example.answers[0]}.", example.answers)["em"] for example in asked]

    assert benchmark(score) == [1.0] * QUESTIONS


def test_journal(benchmark: BenchmarkFixture, asked: list[Example], tmp_path: Path) -> None:
    scores = score_answer("no", ["yes"])
    rows = [{"id": e.id, "question": e.question, "prediction": "no", "scores": scores} for e in asked]
    numbers = itertools.count()

    def write() -> int:
        with Journal(tmp_path / f"{next(numbers)}.jsonl", "run") as journal:
            for start in range(0, QUESTIONS, BATCH):
                journal.append(rows[start : start + BATCH])
            return len(journal.rows)

    assert benchmark(write) == QUESTIONS


def test_table_drawing(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """The main experiment's table, from the accepted records: reading them, all forms, the figure."""
    records = PROJECT / "results" / "records"
    (table,), files = benchmark(draw, [records], tmp_path, experiments=["tiny"])
    assert table.experiment == "tiny" and tmp_path / "tables" / "tiny.md" in files
