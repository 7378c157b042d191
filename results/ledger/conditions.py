"""Under what was a published number measured? Read off the cells of its row, and never more than the source says.

One reading per CSV file of ``reference/``: patterns for the row and the column whose named groups are conditions, and
what the table says of all its cells. What a reader would need and the source leaves open is ``NOT_STATED``, so that
nothing is ever taken for the same as it. What this project inferred (k of Figures 11 and 12, s of Figure 3) is not
stated either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.errors import InputError, unknown

Value = str | int | float
Conditions = dict[str, Value]

NOT_STATED = "not stated"

KEYS = {
    "system": "the method, by the source's name for it",
    "model": "the decoder",
    "encoder": "what makes chunk embeddings",
    "k": "tokens per chunk",
    "rate": "effective compression rate, k / (1 - p + k p)",
    "expand": "percent of chunks left as tokens",
    "policy": "who picks the chunks that are left as tokens",
    "passages": "retrieved passages given",
    "retriever": "what found them",
    "setting": "strong: the best passages; weak: some of the first 200 at random",
    "context": "tokens of context (the paper's s)",
    "output": "tokens predicted or generated (the paper's o)",
    "decoder_tokens": "tokens that the decoder reads (summarisation)",
    "dataset": "what is asked or predicted",
    "turns": "at least so many turns of conversation",
    "metric": "what the number is",
    "log": "base of the logarithm",
    "task": "what a training stage asks of the model",
    "stage": "of the training or of its curriculum",
    "step": "optimizer steps",
    "curriculum": "stages of the curriculum, or whether there was one",
    "chunks": "chunks reconstructed together",
    "width": "of the decoder (the paper's d)",
    "boundary": "cached: chunk embeddings are ready; not cached: making them is in the time",
    "baseline": "what a ratio or gain is over",
    "hardware": "the machine",
    "batch": "requests at once, or sequences per optimizer step",
    "part": "of the method, its training or its evaluation: what a setting belongs to",
}

LLAMA = "LLaMA-2-7B"
ROBERTA = "RoBERTa-large"
REFRAG: Conditions = {"system": "REFRAG", "model": LLAMA, "encoder": ROBERTA}

Pattern = tuple[str, Conditions]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What names one published number."""

    file: str
    table: str
    row: str
    column: str
    unit: str
    source: str


def conditions(cell: Cell) -> Conditions:
    """The conditions of ``cell``, in the order of ``KEYS``; empty where its source states none.

    Raises ``InputError`` for a file without a reading and for words that its reading does not know: a condition is
    not lost in silence.
    """
    if cell.file not in READINGS:
        raise unknown("file of published numbers", cell.file, READINGS)
    found = READINGS[cell.file](cell)
    return {key: found[key] for key in KEYS if key in found}


def matched(text: str, *patterns: Pattern) -> Conditions:
    """The named groups of the first pattern that is all of ``text``, and what that pattern adds.

    Raises ``InputError`` where none is.
    """
    for pattern, always in patterns:
        if found := re.fullmatch(pattern, text):
            return always | {key: _number(value) for key, value in found.groupdict().items() if value is not None}
    raise InputError(f"no conditions can be read from {text!r}")


def _number(text: str) -> Value:
    if re.fullmatch(r"\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"\d+\.\d+", text) else text


# The paper names LLaMA-2-7B and RoBERTa-large as its main models, and no checkpoint of REPLUG or LLaMA-32K.
SYSTEMS: tuple[Pattern, ...] = (
    (r"REFRAG_(?P<k>\d+)", REFRAG),
    (r"REFRAG_(?P<k>\d+)\+RL", REFRAG | {"policy": "RL"}),
    (r"REFRAG (?P<k>\d+)x compression", REFRAG),
    (r"REFRAG \(k not stated\)", REFRAG | {"k": NOT_STATED}),
    (r"REFRAG (?P<curriculum>with|w/o) curriculum", REFRAG | {"k": NOT_STATED}),
    (r"REFRAG (?P<stage>(with|w/o) reconstruction)", REFRAG | {"k": NOT_STATED}),
    (r"(?P<system>LLaMA-32K|REPLUG(_FT|_Chat)?)", {"model": NOT_STATED}),
    (r"(?P<system>CEPED?|LLaMA_FT|LLaMA_256|LLaMA-(Full|No) Context)", {"model": LLAMA}),
    (r"Llama", {"system": "LLaMA_FT", "model": LLAMA}),
)

LOG_PERPLEXITY: Conditions = {"metric": "log-perplexity", "log": NOT_STATED}
DRAGON: Conditions = {"retriever": "DRAGON+"}
# Exact match is RA-DIT's stricter one there (footnote 3).
UNITS: Mapping[str, Conditions] = {
    "EM %": {"metric": "strict EM"},
    "accuracy %": {"metric": "accuracy"},
    "metric not listed in Table 7 %": {"metric": NOT_STATED},
    "x": {"metric": "1/#tokens"},
    "out of memory": {},
}
LLAMA_FT: Conditions = {"baseline": "LLaMA_FT"}
MEAN_OF_TASKS: Conditions = {"model": LLAMA, "dataset": "mean of 16 tasks"}
A100: Conditions = {"model": LLAMA, "hardware": "1 x A100", "batch": 1}


def _log_perplexity(column: str, **always: Value) -> Callable[[Cell], Conditions]:
    """A table with a system per row and a log-perplexity per column."""

    def read(cell: Cell) -> Conditions:
        return LOG_PERPLEXITY | always | matched(cell.row, *SYSTEMS) | matched(cell.column, (column, {}))

    return read


def _of_questions(row: str, of_all: Conditions | None = None, **always: Value) -> Callable[[Cell], Conditions]:
    """A table of answers, a dataset per column; ``row`` finds ``name``, the system, unless ``of_all`` rows is one."""

    def read(cell: Cell) -> Conditions:
        found = matched(cell.row, (row, {}))
        system = of_all or matched(str(found.pop("name")), *SYSTEMS)
        dataset: Conditions = {} if cell.unit == "x" else {"dataset": cell.column}
        return DRAGON | always | system | found | dataset | UNITS[cell.unit]

    return read


def _multi_turn(row: str, column: str) -> Callable[[Cell], Conditions]:
    def read(cell: Cell) -> Conditions:
        found = matched(cell.row, (row, {}))
        system = matched(str(found.pop("name")), *SYSTEMS)
        return DRAGON | {"metric": NOT_STATED} | system | found | matched(cell.column, (column, {}))

    return read


def _summaries(cell: Cell) -> Conditions:
    found = matched(cell.row, (r"(?P<name>.+) decoder_tokens=(?P<decoder_tokens>\d+)", {}))
    system = matched(str(found.pop("name")), *SYSTEMS)
    return system | found | matched(cell.column, (r"(?P<dataset>Arxiv|Pubmed) (?P<metric>Rouge-.)", {}))


def _against_k8(cell: Cell) -> Conditions:
    system = matched(
        cell.row,
        (r"REFRAG_(?P<k>\d+) s=(?P<context>\d+)", REFRAG),
        (r"REFRAG_(?P<k>\d+)\+RL s=(?P<context>2048)", REFRAG | {"policy": "RL", "rate": 8.258}),
        (r"REFRAG_(?P<k>\d+)\+RL s=(?P<context>4096)", REFRAG | {"policy": "RL", "rate": 8.0157}),
    )
    return system | matched(
        cell.column,
        (r"(?P<metric>effective compression rate)", {}),
        (r"(?P<dataset>\w+) P(?P<output>\d+)", LOG_PERPLEXITY),
    )


def _other_decoders(cell: Cell) -> Conditions:
    system = matched(
        cell.row,
        (r"(?P<system>(Full|No) Context) s=(?P<context>\d+)", {}),
        (r"(?P<encoder>Roberta-\w+) s=(?P<context>\d+)", {"system": "REFRAG", "k": NOT_STATED}),
    )
    column = matched(cell.column, (r"(?P<model>LLaMA-3\.\d-\dB) P(?P<output>\d+)", {}))
    return LOG_PERPLEXITY | {"dataset": "Arxiv"} | system | column


def _speed(cell: Cell) -> Conditions:
    """Figures 2, 8 and 9. Their not-cached curve is one and the same; the text gives its k as 16 for Figure 2."""
    system = matched(
        cell.row,
        (r"REFRAG \(Cached\) k=(?P<k>\d+)", {"system": "REFRAG", "boundary": "cached"}),
        (r"REFRAG \(Not Cached\) k=(?P<k>16)", {"system": "REFRAG", "boundary": "not cached"}),
        (r"REFRAG \(Not Cached\) k=\d+", {"system": "REFRAG", "boundary": "not cached", "k": NOT_STATED}),
        (r"(?P<system>CEPE)", {"boundary": NOT_STATED}),
    )
    column = matched(
        cell.column,
        (r"(?P<metric>\w+) acceleration vs (?P<baseline>LLaMA) @ (?P<context>\d+) input tokens", {}),
    )
    output: Conditions = {"output": NOT_STATED} if column["metric"] == "Throughput" else {}
    return A100 | system | column | output


def _selection(cell: Cell) -> Conditions:
    column = matched(cell.column, (r"(?P<dataset>\w+) @ effective compression (?P<rate>[\d.]+)x", {}))
    return LOG_PERPLEXITY | REFRAG | {"policy": cell.row, "k": 16, "output": 2048, "context": NOT_STATED} | column


def _mean_of_tasks(cell: Cell) -> Conditions:
    column = matched(
        cell.column,
        (r"(?P<setting>strong|weak) retriever @ passages=(?P<passages>\d+)", {}),
        (r"(?P<setting>strong|weak) retriever @ input_len=(?P<decoder_tokens>[\d.]+)", {}),
    )
    return DRAGON | MEAN_OF_TASKS | matched(cell.row, *SYSTEMS) | column


def _training_loss(cell: Cell) -> Conditions:
    system = matched(
        cell.row,
        (r"x(?P<k>\d+)", {}),
        (r"(?P<model>LLaMA-2-\d+B) \+ (?P<encoder>RoBERTa-\w+)", {"k": NOT_STATED}),
    )
    column = matched(cell.column, (r"CPT loss @ step (?P<step>\d+)", {}))
    return {"system": "REFRAG", "metric": "training loss", "stage": "CPT"} | system | column


def _theory(cell: Cell) -> Conditions:
    row = matched(
        cell.row,
        (r"before", {"system": "LLaMA"}),
        (r"after", {"system": "REFRAG", "boundary": "cached"}),
        (r"acceleration/save", {"system": "REFRAG", "boundary": "cached", "baseline": "LLaMA"}),
        (r"(?P<context>short|long) s", {"system": "REFRAG", "boundary": "cached", "baseline": "LLaMA"}),
        (r"(?P<part>per layer|model)", {"system": "LLaMA"}),
        (r"(?P<part>selective compression|footnote 2)", {"system": "REFRAG"}),
        (r"k=(?P<k>\d+) d=(?P<width>\d+)", {"system": "REFRAG", "boundary": "cached", "baseline": "LLaMA"}),
    )
    return row | matched(
        cell.column, (r"(?P<metric>TTFT) acceleration @ s=(?P<context>\d+)", {}), (r"(?P<metric>.+)", {})
    )


def _curriculum(cell: Cell) -> Conditions:
    row = matched(cell.row, (r"(?P<chunks>\d+) x (?P<k>\d+)", {}), (r"all factors", {"chunks": "all", "k": 8}))
    return row | matched(
        cell.column,
        (r"Stage (?P<stage>\d)", {"metric": "count"}),
        (r"Stage (?P<stage>\d) (?P<metric>total|share)", {}),
        (r"Summation", {"stage": "all", "metric": "count"}),
    )


def _headline(cell: Cell) -> Conditions:
    if cell.row == ROBERTA:
        return {"encoder": ROBERTA, "metric": "parameters"}
    row = matched(
        cell.row,
        (r"REFRAG", {}),
        (r"REFRAG k=(?P<k>\d+)", {}),
        (r"REFRAG (?P<boundary>(not )?cached)", {}),
        (r"REFRAG k=(?P<k>\d+) (?P<boundary>(not )?cached) @(?P<context>\d+)", {}),
        (r"ratio REFRAG k=(?P<k>\d+) (?P<boundary>(not )?cached) / CEPE @(?P<context>\d+)", {}),
        (r"REFRAG \(text: k=32; Figure 2 shows k=16 @65536\)", {"k": "32 in the text, 16 in Figure 2"}),
        (r"REFRAG (?P<k>\d+)x", {}),
        (r"REFRAG (?P<k>\d+)x, (?P<passages>\d+) passages vs (?P<baseline>LLaMA_FT 1 passage)", {}),
        (r"REFRAG (?P<k>\d+)x at (?P<passages>\d+) passages vs LLaMA \(best <=10\)", {"baseline": "LLaMA, best <= 10"}),
    )
    column = matched(
        cell.column,
        (r"(?P<metric>TTFT) \(text calls it CEPE acceleration; figure shows ratio\)", A100 | {"baseline": "CEPE"}),
        (r"(?P<metric>TTFT) improvement over previous work \(CEPE\)", A100 | {"baseline": "CEPE"}),
        (r"(?P<metric>TTFT) acceleration vs (?P<baseline>LLaMA|CEPE)", A100),
        (r"(?P<metric>TTFT) acceleration( \(printed differently here\)| max)?", A100 | {"baseline": "LLaMA"}),
        (r"max throughput acceleration vs (?P<baseline>LLaMA)", A100 | {"metric": "Throughput", "output": NOT_STATED}),
        (r"(?P<metric>TTIT) acceleration, long context", A100 | {"baseline": "LLaMA", "context": "long"}),
        (r"(?P<metric>TTFT) speed-up at (?P<passages><=10) passages, (?P<setting>\w+) .+", A100 | DRAGON | LLAMA_FT),
        (r"improvement over (?P<baseline>CEPE) in (?P<metric>normalised log-perplexity)", {"model": LLAMA}),
        (r"mean gain( on 16 tasks)?, (?P<setting>strong|weak)", DRAGON | MEAN_OF_TASKS),
        (r"(?P<metric>context extension)", {}),
    )  # fmt: skip
    stated = re.search(r"\(abstract; k=(\d+), (\d+) per", cell.source)  # the abstract's own sentence is on p. 5
    elsewhere: Conditions = {"k": int(stated[1]), "context": int(stated[2])} if stated else {}
    return {"system": "REFRAG"} | column | row | elsewhere


def _seed(cell: Cell) -> Conditions:
    """The seed document states neither decoder, passages, retriever, context nor machine of any of its results."""
    system: tuple[Pattern, ...] = (
        (r"REFRAG \(k=(?P<k>\d+)\)", {"system": "REFRAG"}),
        (r"(?P<system>Standard RAG|CEPE)", {}),
    )
    metric: Pattern = (r"(?P<metric>.+)", {})
    match cell.table:
        case "Table 1":
            return matched(cell.row, *system) | matched(
                cell.column,
                (r"(?P<dataset>NQ|TQA|PopQA) \((?P<metric>EM|F1)\)", {}),
                (r"(?P<metric>Avg Speedup)", {"baseline": "Standard RAG"}),
            )
        case "Table 2":
            return matched(cell.row, *system) | matched(cell.column, metric)
        case "Table 6":
            return {"system": "REFRAG"} | matched(cell.row, (r"k=(?P<k>\d+)", {})) | matched(cell.column, metric)
        case "Table 7":
            expand = matched(cell.row, (r"expansion (?P<expand>\d+)%", {}))
            return {"system": "REFRAG"} | expand | matched(cell.column, metric)
        case "Table 8" | "Table 8 mixture snippet":
            return matched(cell.row, (r"Stage (?P<stage>\d)", {})) | matched(
                cell.column, (r"(?P<chunks>\d+)k", {"metric": "share"}), metric
            )
        case "Table 11":
            curriculum = matched(cell.row, (r"(?P<curriculum>No|\d-stage) curriculum", {}))
            return {"system": "REFRAG"} | curriculum | matched(cell.column, metric)
        case "Table 12":
            return {"system": "REFRAG", "stage": cell.row} | matched(cell.column, metric)
        case _:
            return matched(
                cell.row,
                (r"LR \((?P<stage>.+)\)", {}),
                (r"Headline (?P<metric>TTFT)", {}),
                (r"Alignment check: (?P<metric>.+)", {"part": "alignment check"}),
                (r".+", {}),
            )


def _cepe(cell: Cell) -> Conditions:
    match cell.row:
        case "encoder MLM pre-training" | "warm-up stage" | "standard stage":
            return {"system": "CEPE", "stage": cell.row}
        case "perplexity (third party)":
            column = matched(cell.column, (r"(?P<dataset>\w+) (?P<context>\d+K)", {}))
            return {"system": "CEPE", "metric": "perplexity"} | column
        case "open-domain QA":
            return {"metric": "EM"} | matched(
                cell.column,
                (r"(?P<system>CEPE) (?P<dataset>NQ), (?P<passages>\d+) passages", {}),
                (r"(?P<system>LLaMA-2-32K|LLaMA-2|CEPE) (?P<dataset>\w+).*", {"passages": NOT_STATED}),
            )
        case "headline 128K":
            return {"system": "YaRN-128K" if "YaRN" in cell.column else "CEPE", "context": "128K"}
        case "training cost":
            return {"system": "CEPE", "hardware": "8 x A100-80GB"}
        case part:
            return {"system": "CEPE", "part": part}


_PASSAGES = r"(?P<name>.+) \+ (?P<passages>\d+) passages?"
_ROW_OF_PASSAGES = r"(?P<passages>\d+) passages"

READINGS: Mapping[str, Callable[[Cell], Conditions]] = {
    "cepe.csv": _cepe,
    "derived_eval_sizes.csv": lambda cell: {"dataset": cell.row, "metric": "examples"},
    "discrepancies.csv": lambda _: {},
    "fig02_08_09_latency.csv": _speed,
    "fig03_selective_compression.csv": _selection,
    "fig04_rag_mean.csv": _mean_of_tasks,
    "fig10_11_12_loss.csv": _training_loss,
    "refrag_config.csv": lambda cell: {"system": "REFRAG", "part": cell.row},
    "seed_claims.csv": _seed,
    "table01_logppl_s2048.csv": _log_perplexity(r"(?P<dataset>\w+) P(?P<output>\d+) \(s=(?P<context>\d+)\)"),
    "table02_logppl_long_context.csv": _log_perplexity(r"(?P<dataset>\w+) s=(?P<context>\d+) o=(?P<output>\d+)"),
    "table03_rag_strong_retriever.csv": _of_questions(_PASSAGES, setting="strong"),
    "table04_multiturn.csv": _multi_turn(
        r"(?P<name>.+) turns>=(?P<turns>\d+)", r"(?P<dataset>\w+) \((?P<passages>\d+) passages\)"
    ),
    "table05_multiturn_passages.csv": _multi_turn(r"(?P<name>.+) (?P<passages>\d+) passages", r"(?P<dataset>\w+)"),
    "table06_09_theory.csv": _theory,
    "table07_metrics.csv": lambda cell: {"dataset": cell.row},
    "table08_curriculum.csv": _curriculum,
    "table11_curriculum_ablation.csv": _log_perplexity(
        r"P(?P<output>\d+)", dataset="Arxiv and Book, mean", task="reconstruction", context=NOT_STATED
    ),
    "table12_reconstruction_ablation.csv": _log_perplexity(
        r"P(?P<output>\d+)", dataset="Arxiv and Book, mean", task="next-paragraph prediction", context=NOT_STATED
    ),
    "table13_rl_vs_k8.csv": _against_k8,
    "table14_other_decoders.csv": _other_decoders,
    # Its caption says 16, but two of its rows are those of k = 8 in Table 3.
    "table15_passages_strong.csv": _of_questions(
        _ROW_OF_PASSAGES, REFRAG | {"k": "16 by the caption, 8 by its numbers"}, setting="strong"
    ),
    "table16_rag_5chunks.csv": _of_questions(r"(?P<name>.+)", passages=5, setting=NOT_STATED),
    "table17_rag_weak_retriever.csv": _of_questions(_PASSAGES, setting="weak"),
    "table18_passages_weak.csv": _of_questions(_ROW_OF_PASSAGES, REFRAG | {"k": 16}, setting="weak"),
    "table21_summarization.csv": _summaries,
    "text_headline_numbers.csv": _headline,
}
