"""What has this project measured, and under what conditions? In the words of ``results.ledger.conditions``.

One figure per metric of a record, per row and boundary of a latency journal, and per alignment check. The figures of a
journal are medians of its samples: the bootstrap behind an interval takes 17 s over all rows, so it is drawn for the
one figure that a published number of the same conditions is compared with (``limits``).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from results.latency import journals
from results.ledger.conditions import LLAMA, Conditions
from results.records import Record, read_each, read_record

RECORDS = Path(__file__).parents[1] / "records"

METHODS = {
    "refrag_v2": "REFRAG",
    "standard_rag": "Standard RAG",
    "no_context": "No context",
    "llama_k": "LLaMA_K",
    "replug": "REPLUG",
    "cepe": "CEPE",
}
CLOSED_BOOK = "no_context"  # Without passages no system is one of retrieval.
DATASETS = {"nq": "NQ", "triviaqa": "TriviaQA", "popqa": "PopQA"}
LOG_PERPLEXITY = "log-perplexity"
SCORES = {"em": "EM", "f1": "F1"}
SHAPES = {"llama2-7b": LLAMA}
BOUNDARIES = {journals.PREFILL: "cached", journals.ENCODE: "not cached"}
WORLD_MODEL = "decoder of the synthetic world"
WORLD_ONLY = "The decoder was trained on the synthetic world alone."


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measured figure. ``quantity`` is what may be compared at all: method, figure and its unit, questions asked.

    ``value`` has the unit of the published numbers (percent, not fractions). ``limits`` gives its 95 % interval, and
    None where it has none.
    """

    quantity: tuple[str, str, str]
    conditions: Conditions
    value: float
    n: int
    path: Path
    limits: Callable[[], tuple[float, float] | None]


def read_measured(folder: Path) -> list[Measured]:
    """Every figure of the records, latency journals and alignment checks below ``folder``, in the order of paths.

    Raises ``InputError`` where there is no such folder or nothing in it, and one naming every damaged file.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder} to read records from")
    if not holds_measurements(folder):
        raise InputError(
            f"nothing measured below {folder}: no {', '.join(pattern.removeprefix('**/') for pattern in READ)}"
        )
    files = [(read, path) for pattern, read in READ.items() for path in sorted(folder.glob(pattern))]
    return [figure for figures in read_each(files, lambda file: list(file[0](file[1]))) for figure in figures]


def holds_measurements(folder: Path) -> bool:
    """Whether there is anything below ``folder`` that ``read_measured`` reads."""
    return any(next(folder.glob(pattern), None) for pattern in READ)


def of_record(record: Record) -> Iterator[Measured]:
    """Exact match and F1 of a question-answering suite, log-perplexity of text; nothing of other suites and systems."""
    if record.system not in METHODS:
        return
    if record.suite == "perplexity":
        yield from _of_text(record)
    if record.suite in DATASETS:
        yield from _of_questions(record)


def _of_text(record: Record) -> Iterator[Measured]:
    suite, config = record.spec["suite"], record.spec["system"]["config"]
    for output in suite["outputs"]:
        if (found := record.metrics.get(f"log_perplexity_{output}")) is None:
            continue  # every window raised an error
        yield Measured(
            quantity=(record.system, LOG_PERPLEXITY, ""),
            conditions={
                "system": _system(record.system, config),
                "model": _model(record),
                **_chunks(config),
                "context": suite["context"],
                "output": output,
                "dataset": f"{suite['set']} of {suite['dataset']}",
                "metric": LOG_PERPLEXITY,
                "log": "natural",
            },
            value=found.mean,
            n=found.n,
            path=record.path,
            limits=lambda found=found: (found.low, found.high),  # type: ignore[misc]
        )


def _of_questions(record: Record) -> Iterator[Measured]:
    dataset, config = DATASETS[record.suite], record.spec["system"]["config"]
    method = record.system if record.passages else CLOSED_BOOK
    for name, metric in SCORES.items():
        if name not in record.metrics:
            continue
        score = record.metrics[name]
        yield Measured(
            quantity=(method, f"{metric}, %", dataset),
            conditions={
                "system": _system(method, config),
                "model": _model(record),
                **_chunks(config),
                "passages": record.passages,
                **_retrieval(record),
                "dataset": f"synthetic world as {dataset}" if record.root.startswith("world") else dataset,
                "metric": metric,
            },
            value=100 * score.mean,
            n=score.n,
            path=record.path,
            limits=lambda score=score: (100 * score.low, 100 * score.high),  # type: ignore[misc]
        )


def _system(name: str, settings: dict[str, Any]) -> str:
    return METHODS[name] + (" (K/V recomputed)" if settings.get("cross_kv") == "recomputed" else "")


def _model(record: Record) -> str:
    if WORLD_ONLY in record.notes:
        return WORLD_MODEL
    return f"checkpoint {record.spec['system'].get('checkpoint')}"


def _retrieval(record: Record) -> Conditions:
    retrieval = record.spec.get("retrieval")
    return {"retriever": retrieval["retriever"], "setting": retrieval["setting"]} if retrieval else {}


def _chunks(config: dict[str, Any]) -> Conditions:
    """k, and where chunks are expanded how many percent and by whose choice."""
    found: Conditions = {"k": config["k"]} if "k" in config else {}
    if config.get("expand"):
        found |= {"expand": round(100 * config["expand"], 3), "policy": config["select"]}
    return found


def of_journal(path: Path) -> Iterator[Measured]:
    """TTFT, TTIT and throughput, also as ratios over standard RAG, and memory, of every row without an error."""
    journal = journals.read(path)
    header = journal.header
    for row in journal.rows:
        reference = journal.row(journals.REFERENCE, row["length"], row["batch"])
        if row["error"] or reference["error"] or row["system"] not in METHODS or row["label"] == journals.AGAIN:
            continue
        for boundary, name in BOUNDARIES.items():
            under: Conditions = {
                "system": _system(row["system"], row["settings"]),
                "model": SHAPES.get(header["shape"], f"{header['shape']}, random weights, {header['dtype']}"),
                **_chunks(row["settings"]),
                "context": row["length"],
                "boundary": name,
                "hardware": _machine(header),
                "batch": row["batch"],
            }
            compared = journals.sides(reference, row, boundary)
            for figure, (theirs, own) in compared.items():
                more = {"output": header["new_tokens"]} if figure == "Throughput" else {}
                yield from _timed(path, row, f"{figure}, x", theirs, own, under | more | {"baseline": "LLaMA"})
            whole, first, later = (compared[figure][1] for figure in ("Throughput", "TTFT", "TTIT"))
            yield from _plain(path, row, "TTFT, ms", [1e3 * second for second in first], under)
            yield from _plain(path, row, "TTIT, ms", [1e3 * second for second in later], under)
            if (peak := row["memory"]["peak_bytes"]) is not None:
                yield from _plain(path, row, "Memory, GB", [peak / 1e9], under)
            tokens = row["batch"] * header["new_tokens"]
            rates, until = [tokens / second for second in whole], {"output": header["new_tokens"]}
            yield from _plain(path, row, "Throughput, tok/s", rates, under | until)


def _timed(
    path: Path, row: dict[str, Any], figure: str, theirs: Sequence[float], own: Sequence[float], under: Conditions
) -> Iterator[Measured]:
    n = min(len(theirs), len(own))
    if not n:
        return

    def limits() -> tuple[float, float] | None:
        found = journals.ratio(theirs, own)
        return (found.low, found.high) if found else None

    yield Measured(
        quantity=(row["system"], figure, ""),
        conditions=under | {"metric": figure.partition(",")[0]},
        value=statistics.median(theirs[:n]) / statistics.median(own[:n]),
        n=n,
        path=path,
        limits=limits,
    )


def _plain(path: Path, row: dict[str, Any], figure: str, own: Sequence[float], under: Conditions) -> Iterator[Measured]:
    """A median without an interval: no published number that it could be compared with is the paper's."""
    if own:
        yield Measured(
            quantity=(row["system"], figure, ""),
            conditions=under | {"metric": figure.partition(",")[0]},
            value=statistics.median(own),
            n=len(own),
            path=path,
            limits=lambda: None,
        )


def _machine(header: dict[str, Any]) -> str:
    device = str(header.get("provenance", {}).get("device") or header["device"])
    if header["device"] == "cpu":
        return f"{header['threads']} CPU threads"
    return "1 x A100" if "A100" in device else f"1 x {device}"


def of_alignment(path: Path) -> Iterator[Measured]:
    """Perplexity and accuracy of reading one chunk back, as ``refrag-bench align`` wrote them; of known systems."""
    try:
        document = json.loads(path.read_bytes())
        system = document["folder"].partition("/")[0]
        (one,) = (part for part in document["measured"] if part["chunks"] == 1)
        k, read = document["k"], one["read"]["all"]
        figures = {"reconstruction perplexity, ppl": read["perplexity"], "token accuracy, %": 100 * read["accuracy"]}
        tokens = read["tokens"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an alignment check ({error})") from error
    if system not in METHODS:
        return
    for figure, value in figures.items():
        yield Measured(
            quantity=(system, figure, ""),
            conditions={
                "system": METHODS[system],
                "model": WORLD_MODEL,
                "k": k,
                "chunks": 1,
                "dataset": "the synthetic world",
                "metric": figure.partition(",")[0],
            },
            value=value,
            n=tokens,
            path=path,
            limits=lambda: None,
        )


# By the pattern of its files.
READ: Mapping[str, Callable[[Path], Iterator[Measured]]] = {
    "**/record.json": lambda path: of_record(read_record(path)),
    "**/latency.jsonl": of_journal,
    "alignment/*.json": of_alignment,
}
