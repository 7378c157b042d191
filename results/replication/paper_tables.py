"""The paper's tables with a line of ours below each of its own.

What is ours comes from a function from evidence to values by row and column (``results.replication.paper_measured``),
which ``MEASURED`` names for each table that is not computed; a cell without a value says what it would take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from harness.roofline_limits import (
    kv_bytes_theory,
    kv_ratio_theory,
    throughput_theory,
    ttft_ratio_theory,
    ttft_theory,
    ttit_ratio_theory,
    ttit_theory,
)
from harness.train.curriculum import MULTIPLIERS, paper_table8
from results.experiments import perplexity
from results.ledger.entries import Entry
from results.replication.evidence import Evidence
from results.replication.layouts import DIFFERS, OURS, PAPER, Cell, Layout, Own
from results.replication.paper_measured import (
    ALIGNED,
    ANSWERS,
    UNALIGNED,
    Measured,
    equal_rate,
    log_perplexities,
    rag_scores,
    without_curriculum,
    without_reconstruction,
)
from results.replication.published import Ledger, Side, lines, ours, printed, rounds_to
from results.replication.shapes import A100_BYTES_PER_S, A100_FLOPS_PER_S, LLAMA2_7B

SMALL = "`refrag-bench run perplexity --data DIR` for the small version (an hour of one core); for the paper's size "
CORPORA = "held-out Book and ArXiv of SlimPajama, PG19 and Proof-pile as folders for `refrag-bench run perplexity`"
TRAINED = (
    "a REFRAG v2 trained at the paper's scale (`refrag-bench plan` has the GPU-hours: thousands of H100-hours) and "
    f"{CORPORA}"
)
UNTRAINED = f"LLaMA-2-7B and its variants on a GPU, and {CORPORA}; no REFRAG training"
READERS = "instruction-tuned checkpoints at 7 B, DRAGON+ over 400 M passages, and the other suites of the table"
OTHER_TEXT = "a folder of PG19 or Proof-pile in SlimPajama's schema for `refrag-bench run perplexity --data`"
ANY_TEXT = ("PG19", "ProofPile")
# The theory's conditions; the paper gives neither o nor a card's rates beside its formulas.
OUTPUT, BATCH, LENGTHS, RATES = 128, 1, (512, 2048, 8192, 16384, 65536), (8, 16, 32)
THEORY = (
    f"Computed at d = {LLAMA2_7B.width:,}, l = {LLAMA2_7B.layers}, b = {BATCH}, n = {LLAMA2_7B.parameters:,}, o = "
    f"{OUTPUT}, f = {A100_FLOPS_PER_S / 1e12:g} TFLOP/s, m = {A100_BYTES_PER_S / 1e12:g} TB/s (LLaMA-2-7B on an A100 "
    "80 GB; the paper names neither o, f nor m)."
)


# --- Tables 1, 2, 3, 11, 12, 13: as printed, with what was measured below


Find = Callable[[Evidence, Sequence[str], Sequence[str]], Sequence[Measured]]
MEASURED: Mapping[str, Find] = {
    "Table 1": log_perplexities,
    "Table 2": log_perplexities,
    "Table 3": lambda evidence, *_: rag_scores(evidence),
    "Table 11": lambda evidence, *_: without_curriculum(evidence),
    "Table 12": lambda evidence, *_: without_reconstruction(evidence),
    "Table 13": equal_rate,
}


def as_printed(
    ledger: Ledger,
    evidence: Evidence,
    *,
    table: str,
    title: str,
    takes: Callable[[str, str], str],
    alone: Sequence[str] = (),
) -> Layout:
    """One of the paper's tables, row by row and column by column; ``alone`` are columns that only ours has."""
    rows, columns = ledger.rows(table), ledger.columns(table)
    found = MEASURED[table](evidence, rows, columns)
    unit = dict.fromkeys(ledger.paper(table, rows[0], column).unit for column in columns)

    def paper(row: str, column: str) -> Cell:
        return printed(row, column, None if column in alone else ledger.paper(table, row, column))

    def own(measured: Measured, row: str, column: str) -> Cell:
        return ours(row, column, measured.values.get((row, column)), takes(row, column))

    def sides(row: str) -> Iterator[Side]:
        yield Side(heading=PAPER, fill=paper)
        for measured in found:
            if measured.everywhere or any(row == of for of, _ in measured.values):
                yield Side(heading=measured.heading, fill=partial(own, measured))

    every = (*columns, *alone)
    return Layout(
        name=f"paper-{table.lower().replace(' ', '-')}",
        title=f"The paper's {table}: {title}",
        columns=every,
        lines=tuple(line for row in rows for line in lines([row], every, [*sides(row)])),
        notes=(
            f"Unit: {'; '.join(unit)}. arXiv:2509.01092v2, single runs, no intervals printed.",
            *(note for measured in found for note in measured.notes),
        ),
    )


def _takes_perplexity(row: str, column: str) -> str:
    """Of Tables 1, 2 and 13: the nearest thing that can be done, or what the paper's size asks."""
    if column == ANSWERS:
        return "`refrag-bench run expansion` for rows at s = 2048; the others 16 passages, which nobody has run"
    if column.startswith(ANY_TEXT):
        return OTHER_TEXT
    if row in perplexity.UNMEASURED:
        return perplexity.UNMEASURED[row]
    if "s=16384" in column:
        return "windows of eight times the trained context, which is not among `CONTEXTS` of slurm/sweeps/perplexity.py"
    if "+RL" in row:
        return (
            "`refrag-bench run text_ablation --data DIR` for the small version at s = 2048; for the paper's size "
            + TRAINED
        )
    return SMALL + (TRAINED if "REFRAG" in row else UNTRAINED)


def _takes_ablation(experiment: str, row: str, column: str) -> str:
    if column in (ALIGNED, UNALIGNED):
        if "REFRAG" in row and experiment == "order":
            return "`refrag-bench run order` (17 minutes of one core)"
        if "REFRAG" in row:
            return "`refrag-bench run curriculum` (12 minutes of one core)"
        return "that reader on the ablations' questions (four passages of two people), which no experiment asks"
    small = "`refrag-bench run text_ablation --data DIR` for the small version, under P2048; for the paper's size "
    return f"{small}{TRAINED}, here with and without that stage or schedule" if "REFRAG" in row else UNTRAINED


# --- Table 6 and Table 9: theory


def acceleration(ledger: Ledger, _: Evidence) -> Layout:
    """Table 6's ratios, evaluated here and by whoever made the ledger, beside what the paper measured."""
    columns = ("TTFT", "TTIT", "Throughput", "KV cache memory")
    conditions = {f"k = {k}, s = {s}": (k, s) for k in RATES for s in LENGTHS}
    figures = {8: "Figure 9", 16: "Figure 2", 32: "Figure 8"}

    def curve(row: str, column: str) -> Cell:
        k, s = conditions[row]
        if column == "KV cache memory":
            return printed(row, column, None)
        name = f"{column} acceleration vs LLaMA @ {s} input tokens"
        return printed(row, column, ledger.paper(figures[k], f"REFRAG (Cached) k={k}", name))

    def evaluated(row: str, column: str) -> Cell:
        if column != "TTFT":
            return Cell(row=row, column=column, source=PAPER, silent="formula only")
        return Cell(row=row, column=column, source=PAPER, entry=_evaluated(ledger, *conditions[row]))

    def own(row: str, column: str) -> Cell:
        k, s = conditions[row]
        value = ratio(column, k, s)
        entry = _evaluated(ledger, k, s) if column == "TTFT" else None
        marks = (f"{DIFFERS} derived",) if entry and not rounds_to(value, entry) else ()
        return ours(row, column, Own(text=f"{value:.2f}", how="computed", value=value), "", marks)

    sides = [
        Side(heading="paper, measured", fill=curve),
        Side(heading="paper's formula, evaluated in the ledger", fill=evaluated),
        Side(heading="paper's formula, computed here", fill=own),
    ]
    return Layout(
        name="paper-table-6",
        title="The paper's Table 6: acceleration in theory (p. 16), beside its measured curves",
        columns=columns,
        lines=lines(tuple(conditions), columns, sides),
        notes=(
            THEORY,
            "Measured by the paper: one A100, batch size 1, cached, its output length not stated (Figures 2, 8 and 9, "
            "digitised).",
            "TTFT's formula holds where arithmetic is the limit; short prompts are bound by weights and launches, so "
            "the measured ratios start at 1.",
        ),
    )


def _evaluated(ledger: Ledger, k: int, s: int) -> Entry:
    return ledger.derived("Table 6 evaluated (derived)", f"k={k} d=4096", f"TTFT acceleration @ s={s}")


def ratio(quantity: str, k: float, s: float) -> float:
    """A column of Table 6 at ``THEORY``'s conditions."""
    if quantity == "TTFT":
        return ttft_ratio_theory(LLAMA2_7B.width, s, k)
    if quantity == "KV cache memory":
        return kv_ratio_theory(s, OUTPUT, k)
    if quantity == "TTIT":
        return ttit_ratio_theory(
            d=LLAMA2_7B.width, layers=LLAMA2_7B.layers, batch=BATCH, n=LLAMA2_7B.parameters, s=s, o=OUTPUT, k=k
        )
    return absolute("Throughput", k, s) / absolute("Throughput", 1, s)


def absolute(quantity: str, k: float, s: float) -> float:
    """A row of Table 9 at ``THEORY``'s conditions: bytes, seconds, tokens per second."""
    d, layers, n = LLAMA2_7B.width, LLAMA2_7B.layers, LLAMA2_7B.parameters
    if quantity == "KV cache memory":
        return kv_bytes_theory(d=d, layers=layers, batch=BATCH, s=s, o=OUTPUT, k=k)
    if quantity == "TTFT":
        return ttft_theory(d=d, layers=layers, batch=BATCH, s=s, f=A100_FLOPS_PER_S, k=k)
    if quantity == "TTIT":
        return ttit_theory(d=d, layers=layers, batch=BATCH, n=n, s=s, o=OUTPUT, m=A100_BYTES_PER_S, k=k)
    return throughput_theory(
        d=d, layers=layers, batch=BATCH, n=n, s=s, o=OUTPUT, f=A100_FLOPS_PER_S, m=A100_BYTES_PER_S, k=k
    )


def formulas(ledger: Ledger, _: Evidence) -> Layout:
    """Table 9: the formulas, and what they give."""
    units = {"KV cache memory": (1e9, "GB"), "TTFT": (1e-3, "ms"), "TTIT": (1e-3, "ms"), "Throughput": (1.0, "tok/s")}
    k, s = 16, 16384

    def paper(row: str, column: str) -> Cell:
        return printed(row, column, ledger.paper("Table 9", row, column))

    def own(row: str, column: str) -> Cell:
        scale, unit = units[column]
        value = absolute(column, 1 if row == "before" else k, s) / scale
        return ours(row, column, Own(text=f"{value:.4g} {unit}", how="computed", value=value), "")

    sides = [Side(heading="paper (formula)", fill=paper), Side(heading=f"computed, k = {k}, s = {s:,}", fill=own)]
    return Layout(
        name="paper-table-9",
        title="The paper's Table 9: latency and memory in theory (p. 21)",
        columns=tuple(units),
        lines=lines(("before", "after"), tuple(units), sides),
        notes=(
            THEORY,
            "As printed: throughput divides all o tokens by TTFT and one TTIT, where o of them would be due; the chunk "
            "encoder is in none.",
        ),
    )


# --- Table 8


def schedule(ledger: Ledger, _: Evidence) -> Layout:
    """Table 8 as our curriculum generates it, all 81 cells, against the printed ones."""
    columns = (*(f"Stage {stage}" for stage in range(1, 10)), "Summation")
    counts = dict(zip((f"{n} x 8" for n in MULTIPLIERS), paper_table8(), strict=True))

    def paper(row: str, column: str) -> Cell:
        return printed(row, column, ledger.paper("Table 8", row, column))

    def own(row: str, column: str) -> Cell:
        value = sum(counts[row]) if column == "Summation" else counts[row][columns.index(column)]
        entry = ledger.paper("Table 8", row, column)
        marks = () if value == entry.value else (f"{DIFFERS} printed: {entry.printed}",)
        return ours(row, column, Own(text=str(value), how="computed", value=value), "", marks)

    same = sum(not cell.marks for row in counts for cell in (own(row, column) for column in columns[:-1]))
    return Layout(
        name="paper-table-8",
        title="The paper's Table 8: data points by stage and number of chunks (p. 20)",
        columns=columns,
        lines=lines(tuple(counts), columns, [Side(heading=PAPER, fill=paper), Side(heading=OURS, fill=own)]),
        notes=(
            f"Ours: generated by harness/train/curriculum.py; {same} of 81 cells are the printed ones. Summation: the "
            "sum of the cells, which the printed one is not everywhere.",
            "The unit is the paper's; 42,000 data points are far fewer than 20 B tokens hold, so the table is used as "
            "a mixture and as relative lengths of stages.",
        ),
    )


TABLES: Mapping[str, Callable[[Ledger, Evidence], Layout]] = {
    "paper-table-1": partial(
        as_printed, table="Table 1", title="log-perplexity at s = 2048 (p. 6)", takes=_takes_perplexity
    ),
    "paper-table-2": partial(
        as_printed, table="Table 2", title="log-perplexity at o = 2048 (p. 6)", takes=_takes_perplexity
    ),
    "paper-table-3": partial(
        as_printed, table="Table 3", title="RAG, strong retriever (p. 9)", takes=lambda *_: READERS
    ),
    "paper-table-6": acceleration,
    "paper-table-8": schedule,
    "paper-table-9": formulas,
    "paper-table-11": partial(
        as_printed,
        table="Table 11",
        title="reconstruction, log-perplexity (p. 26)",
        takes=partial(_takes_ablation, "curriculum"),
        alone=(ALIGNED,),
    ),
    "paper-table-12": partial(
        as_printed,
        table="Table 12",
        title="next paragraph, log-perplexity (p. 26)",
        takes=partial(_takes_ablation, "order"),
        alone=(ALIGNED, UNALIGNED),
    ),
    "paper-table-13": partial(
        as_printed,
        table="Table 13",
        title="RL against k = 8, log-perplexity (p. 26)",
        takes=_takes_perplexity,
        alone=(ANSWERS,),
    ),
}
