"""What does the paper say to each claim of the seed document? Its claims beside the lines of ``discrepancies.csv``.

That file compares the two texts item by item; a claim of ``seed_claims.csv`` belongs to one item, by the rules below.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError
from results.ledger.entries import REFERENCE, Entry

PAPER_VERDICTS = {
    "contradicts": "contradicts the paper",
    "agrees": "agrees with the paper",
    "not found in paper": "not in the paper",
}
NOT_JUDGED = "not judged against the paper"

# (table, row, column, item); the first rule that is all of each decides.
_RULES = (
    ("Table 1", ".+", r"NQ \(EM\)", "NQ EM RAG/CEPE/REFRAG16/REFRAG32"),
    ("Table 1", ".+", r"TQA \(EM\)", "TQA EM"),
    ("Table 1", ".+", r"PopQA \(F1\)", "PopQA F1"),
    ("Table 1", "Standard RAG", "Avg Speedup", "Table 1 subject"),  # 1 by definition: the baseline
    ("Table 1", "CEPE", "Avg Speedup", "Avg speed-up CEPE"),
    ("Table 1", r"REFRAG \(k=16\)", "Avg Speedup", "Avg speed-up REFRAG k=16"),
    ("Table 1", r"REFRAG \(k=32\)", "Avg Speedup", "Avg speed-up REFRAG k=32"),
    ("Table 2", ".+", "TTFT", "TTFT ms"),
    ("Table 2", ".+", "TTIT", "TTIT ms"),
    ("Table 2", ".+", "Throughput", "Throughput tok/s"),
    ("Table 2", ".+", "Memory", "Memory GB"),
    ("Table 6", ".+", "Compression", "k tested"),
    ("Table 6", ".+", "TTFT Speedup", "k=8/16/32/64 TTFT speed-up"),
    ("Table 6", "k=64", "Accuracy Drop", "k=64"),
    ("Table 6", ".+", "Accuracy Drop", "k accuracy drop"),
    ("Table 7", ".+", ".+", "Expansion 0/5/10/20/50 %"),
    ("Table 8", ".+", ".+", "Table 8 schedule"),
    ("Table 8 mixture snippet", "Stage 1", ".+", "Stage 1 mixture"),
    ("Table 8 mixture snippet", "Stage 2", ".+", "Stage 2 mixture"),
    ("Table 11", ".+", "Reconstruction PPL", "Table 11"),
    ("Table 11", ".+", ".+", "Table 11 CPT PPL and accuracy columns"),
    ("Table 12", ".+", "Final Accuracy", "Table 12 accuracy 22.1 / 41.8"),
    ("Table 12", ".+", ".+", "Table 12"),
    *(
        (re.escape(table), re.escape(row), "value", item)
        for table, items in {
            "Hyperparameters (Paper column)": {
                "LR (Reconstruction)": "LR reconstruction",
                "LR (CPT)": "LR CPT",
                "LR (Fine-tune)": "LR fine-tune",
                "LR (Policy)": "LR policy",
                "Batch Size": "batch size",
                "Warmup": "warm-up",
                "LR Schedule": "schedule",
                "Gradient Clipping": "gradient clipping",
                "Weight Decay": "weight decay",
                "Optimizer": "optimizer",
                "Precision": "precision",
            },
            "Other paper claims": {
                "Encoder": "encoder",
                "Decoder": "decoder",
                "Projector": "Projector size",
                "Policy Net": "policy size",
                "DB chunk size": "DB chunk size",
                "k tested": "k tested",
                "Compression rate": "k tested",
                "Training data": "data",
                "Training data per v2 gap table": "data",
                "Epochs": "epochs",
                "GPUs": "hardware",
                "GPU memory": "GPU memory",
                "Throughput": "throughput",
                "Headline TTFT": "Headline TTFT",
                "Alignment check: reconstruction perplexity": "alignment check",
                "Alignment check: token prediction accuracy": "alignment check",
            },
        }.items()
        for row, item in items.items()
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """One item of the comparison: the text of the seed, that of the paper, where it stands, and how they agree."""

    item: str
    seed: str
    paper: str
    verdict: str
    where: str


def read_discrepancies(path: Path = REFERENCE / "discrepancies.csv") -> dict[str, Discrepancy]:
    """The items by name, in the file's order. Raises ``InputError`` on a verdict that is none of the three."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["verdict"] not in PAPER_VERDICTS:
            raise InputError(f"{path}: {row['verdict']!r} is no verdict; valid choices: {', '.join(PAPER_VERDICTS)}")
    return {row["item"]: Discrepancy(**row | {"verdict": PAPER_VERDICTS[row["verdict"]]}) for row in rows}


def item_of(claim: Entry) -> str | None:
    """The item of the comparison that judges ``claim`` of the seed; None where none does."""
    cell = (claim.table, claim.row, claim.column)
    for *patterns, item in _RULES:
        if all(re.fullmatch(pattern, text) for pattern, text in zip(patterns, cell, strict=True)):
            return item
    return None
