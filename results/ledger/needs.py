"""What would it take to measure a published number here, besides its conditions? By the file that it stands in.

Settings, formulas, definitions and remarks of a source are no measurements: there is nothing to measure. What training
at the paper's scale takes is what ``refrag-bench plan`` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from results.ledger.conditions import NOT_STATED
from results.ledger.entries import Entry

SUITES = {"NQ": "nq", "TQA": "triviaqa", "TriviaQA": "triviaqa", "PopQA": "popqa"}
SCALE = "training at the paper's scale"


def needs(entry: Entry) -> str | None:
    """What is missing, as one phrase; None where ``entry`` is no measurement."""
    return _NEEDS[entry.file](entry)


def _questions(entry: Entry) -> str | None:
    if entry.unit == "x":
        return None  # 1 / #tokens follows from k and the number of passages
    dataset = str(entry.conditions["dataset"])
    if dataset == "mean of 16 tasks":
        suite = "suites for all 16 tasks (nq and triviaqa are there)"
    elif dataset in SUITES:
        suite = f"suite {SUITES[dataset]} with its real questions"
    else:
        suite = f"a suite for {dataset} (not there)"
    return f"needs {suite}, DRAGON+ over 400M passages, {SCALE}"


def _answers_without_a_suite(entry: Entry) -> str:
    return f"needs a suite for {entry.conditions['dataset']} (not there), {SCALE}"


def _log_perplexity(entry: Entry) -> str | None:
    if entry.conditions["metric"] != "log-perplexity":
        return None
    return f"needs `refrag-bench run perplexity` on text of {entry.conditions['dataset']}, {SCALE}"


def _loss(entry: Entry) -> str:
    return f"needs {SCALE}, CPT to step {entry.conditions['step']}"


def _latency(entry: Entry) -> str:
    context = entry.conditions.get("context", NOT_STATED)
    lengths = context if isinstance(context, int) else "512,...,65536"
    return f"needs `refrag-bench latency --shape llama2-7b --device cuda --lengths {lengths}` on an A100"


def _headline(entry: Entry) -> str | None:
    metric = entry.conditions.get("metric")
    if metric in ("TTFT", "TTIT", "Throughput"):
        return _latency(entry)
    if entry.conditions.get("dataset") == "mean of 16 tasks":
        return _questions(entry)
    if metric == "normalised log-perplexity":
        return f"needs `refrag-bench run perplexity` on text of Arxiv, Book, PG19 and ProofPile, {SCALE}"
    return None


def _seed(entry: Entry) -> str | None:
    """The seed states no conditions, so what it takes is a guess at its meaning, and no verdict can be "reproduced"."""
    asked = "; the seed states no conditions to measure it under"
    metric = str(entry.conditions.get("metric", ""))
    if entry.table in ("Table 8", "Table 8 mixture snippet") or metric in ("", "Compression") or entry.value == "N/A":
        return None
    if metric in ("EM", "F1"):
        return f"needs suite {SUITES[str(entry.conditions['dataset'])]} with its real questions and {SCALE}{asked}"
    if metric in ("TTFT", "TTIT", "Throughput", "Memory", "Avg Speedup", "TTFT Speedup"):
        return f"needs `refrag-bench latency --shape llama2-7b --device cuda`{asked}"
    if metric in ("Accuracy", "Accuracy Drop", "Final Accuracy"):
        return f"needs to know which suite and metric it is, and {SCALE}{asked}"
    if "econstruction" in metric or metric == "token prediction accuracy":
        return f"needs `refrag-bench align` after {SCALE}{asked}"
    return f"needs `refrag-bench run perplexity` and {SCALE}{asked}" if "PPL" in metric else None


def _cepe(entry: Entry) -> str | None:
    metric = entry.conditions.get("metric")
    if metric == "perplexity":
        return f"needs `refrag-bench run perplexity` on text of {entry.conditions['dataset']} with the released CEPE"
    if metric == "EM":
        suite = SUITES[str(entry.conditions["dataset"])]
        return f"needs suite {suite} with its real questions and the released weights"
    if entry.row in ("headline 128K", "headline abstract") and entry.column not in (
        "context",
        "training document length",
    ):
        return "needs the latency lab at 128K tokens with the released CEPE"
    if entry.row == "ICL (9 tasks)":
        return "needs a suite of in-context learning (not there) with the released CEPE"
    return None


def _nothing(_: Entry) -> None:
    return None


_NEEDS: Mapping[str, Callable[[Entry], str | None]] = {
    "cepe.csv": _cepe,
    "derived_eval_sizes.csv": _nothing,
    "discrepancies.csv": _nothing,
    "fig02_08_09_latency.csv": _latency,
    "fig03_selective_compression.csv": _log_perplexity,
    "fig04_rag_mean.csv": _questions,
    "fig10_11_12_loss.csv": _loss,
    "refrag_config.csv": _nothing,
    "seed_claims.csv": _seed,
    "table01_logppl_s2048.csv": _log_perplexity,
    "table02_logppl_long_context.csv": _log_perplexity,
    "table03_rag_strong_retriever.csv": _questions,
    "table04_multiturn.csv": _answers_without_a_suite,
    "table05_multiturn_passages.csv": _answers_without_a_suite,
    "table06_09_theory.csv": _nothing,
    "table07_metrics.csv": _nothing,
    "table08_curriculum.csv": _nothing,
    "table11_curriculum_ablation.csv": _log_perplexity,
    "table12_reconstruction_ablation.csv": _log_perplexity,
    "table13_rl_vs_k8.csv": _log_perplexity,
    "table14_other_decoders.csv": _log_perplexity,
    "table15_passages_strong.csv": _questions,
    "table16_rag_5chunks.csv": _questions,
    "table17_rag_weak_retriever.csv": _questions,
    "table18_passages_weak.csv": _questions,
    "table21_summarization.csv": _answers_without_a_suite,
    "text_headline_numbers.csv": _headline,
}
