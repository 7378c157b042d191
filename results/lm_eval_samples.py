"""Finished runs as the files that lm-eval (0.4.13) writes: results_DATE.json and samples_SUITE_DATE.jsonl.

For tools that read those. A sample's fields, their order and its hashes are lm-eval's (``lm_eval/evaluator.py``,
``loggers/evaluation_tracker.py``); every score of the journal is a metric, "none" is the name of its filter, and
``arguments`` hold the question and how it was decoded. The journal has no passages, so the document has none, and the
prompt's hash is that of the question.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import write_atomically
from harness.record import RunRecord, read_rows
from results.records import read_each

FILTER = "none"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written of one run, and how many of its examples were not: they hold an error and no answer."""

    samples: Path
    results: Path
    n: int
    errors: int


def run_folders(places: Sequence[Path]) -> list[Path]:
    """The folders of finished runs at or below ``places``.

    Raises ``InputError`` for a place that has none, and one naming every damaged record.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise InputError(f"expected a folder of runs, got {place}: there is no such folder")
        records = sorted(place.rglob("record.json"))
        if not records:
            raise InputError(f"no finished run (record.json) at or below {place}")
        found += [record.parent for record in records]
    folders = list(dict.fromkeys(found))
    read_each(folders, RunRecord.read)
    return folders


def export(folder: Path, out: Path) -> Exported:
    """The run in ``folder`` as files below ``out``, in a folder named after its system and run.

    Raises ``InputError`` for a run that has no journal beside its record, or none of answers.
    """
    record = RunRecord.read(folder)
    journal = folder / "predictions.jsonl"
    if not journal.exists():
        raise InputError(
            f"{folder} has no predictions.jsonl: an accepted record without its journal cannot be exported"
        )
    rows = read_rows(journal, record.run_id)
    answered = [(number, row) for number, row in enumerate(rows) if "error" not in row]
    try:
        samples = [sample(number, row, record.spec["decode"]) for number, row in answered]
    except KeyError as error:
        raise InputError(
            f"{journal} holds no answers to questions (no {error}); runs of QA suites can be exported"
        ) from error
    task, system = str(record.spec["suite"]["name"]), str(record.spec["system"]["name"])
    date = str(record.provenance["created"]).replace(":", "-")
    target = out / system / record.run_id
    target.mkdir(parents=True, exist_ok=True)
    exported = Exported(
        samples=target / f"samples_{task}_{date}.jsonl",
        results=target / f"results_{date}.json",
        n=len(samples),
        errors=len(rows) - len(samples),
    )
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in samples]
    write_atomically(exported.samples, "".join(lines))
    document = results(record, task, samples, errors=exported.errors)
    write_atomically(exported.results, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return exported


def sample(number: int, row: Mapping[str, Any], decode: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a journal as a line of samples. Raises ``KeyError`` where it is no answer."""
    document = {"id": row["id"], "question": row["question"], "answer": row["answers"]}
    target, scores = str(row["answers"]), row["scores"]
    return {
        "doc_id": number,
        "doc": document,
        "target": target,
        "arguments": {
            "gen_args_0": {
                "arg_0": row["question"],
                "arg_1": {"until": [], "max_gen_toks": decode["max_new_tokens"], "do_sample": False},
            }
        },
        "resps": [[row["prediction"]]],
        "filtered_resps": [row["prediction"]],
        "filter": FILTER,
        "metrics": list(scores),
        "doc_hash": _hash(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(row["question"]),
        "target_hash": _hash(target),
        **scores,
    }


def results(record: RunRecord, task: str, samples: Sequence[Mapping[str, Any]], *, errors: int) -> dict[str, Any]:
    """The means and their standard errors under lm-eval's names, with the run's spec beside."""
    means: dict[str, Any] = {"alias": task}
    names = list(dict.fromkeys(name for one in samples for name in one["metrics"]))
    for name in names:
        values = [one[name] for one in samples if name in one]
        means[f"{name},{FILTER}"] = sum(values) / len(values)
        means[f"{name}_stderr,{FILTER}"] = _standard_error(values)
    hashes = "".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples)
    n = len(samples)
    return {
        "results": {task: means},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task, "output_type": "generate_until", "metadata": record.spec["suite"]}},
        "versions": {task: record.spec["metric_version"]},
        "n-shot": {task: record.spec["system"]["config"].get("shots", 0)},
        "higher_is_better": {task: dict.fromkeys(names, True)},
        "n-samples": {task: {"original": record.n_examples, "effective": n}},
        "config": {
            "model": record.spec["system"]["name"],
            "model_args": record.spec["system"],
            "batch_size": record.spec["decode"]["batch_size"],
            "device": record.spec["decode"]["device"],
            "limit": record.spec["suite"]["limit"],
            "run_id": record.run_id,
            "spec": record.spec,
            "notes": record.notes,
            "errors": errors,
            "provenance": record.provenance,
        },
        "task_hashes": {task: _hash(hashes)},
    }


def _standard_error(values: Sequence[float]) -> float | str:
    """Of a mean, with n - 1 in the variance; "N/A" of a single value. Source: lm-eval, api/metrics.py."""
    n = len(values)
    if n < 2:
        return "N/A"
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
