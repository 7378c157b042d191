"""What was measured here of the paper's tables? Values by their rows and columns, with the conditions that they are of.

None was measured under the paper's conditions. So what stands beside every line of ours (``heading``) says at what
lengths or on what questions, ``Own.at`` says it of each cell in the CSV, and ``notes`` are the rest. A context or an
output is put under the paper's column that is as many times as long as what the systems were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from results.experiments import perplexity
from results.experiments.perplexity import Perplexities
from results.replication.evidence import Evidence, figure
from results.replication.layouts import OURS, Own

Values = Mapping[tuple[str, str], Own]

TRAINED = 2048  # tokens of context, and of output, that the paper's systems were trained on (p. 5)
MIRROR = "mirror"  # the data root of real questions
ANSWERS, ALIGNED, UNALIGNED = (
    "ours alone: exact match (%), Same relation",
    "ours alone: exact match by seed (%), aligned encoder",
    "ours alone: exact match by seed (%), unaligned encoder",
)
RATE = "effective compression rate"
_COLUMNS = (
    re.compile(r"(?P<set>\w+) P(?P<output>\d+) \(s=(?P<context>\d+)\)"),  # Table 1
    re.compile(r"(?P<set>\w+) s=(?P<context>\d+) o=(?P<output>\d+)"),  # Table 2
    re.compile(r"(?P<set>\w+) P(?P<output>\d+)"),  # Table 13, whose rows have the context
)
_ROW = re.compile(r"(?P<system>.+) s=(?P<context>\d+)")
SETS = {"Arxiv": "arxiv", "Book": "book"}
SYSTEMS = {
    "LLaMA-Full Context": "Full context",
    "LLaMA-No Context": perplexity.WITHOUT,
    "LLaMA_256": "LLaMA_K",
    "REPLUG": "REPLUG",
    "CEPE": "CEPE",
    "REFRAG_8": "REFRAG_8",
    "REFRAG_16": "REFRAG_16",
    "REFRAG_32": "REFRAG_32",
}
ABLATION = (
    "Ours: REFRAG v2 (k = 8, decoder of 0.9 M parameters, trained from a hand-built start) after 100 steps of "
    "reconstruction and 200 of next-paragraph training (CPT), or 300 of CPT where there was no reconstruction; exact "
    "match on 500 questions about eight people in four passages of the synthetic world, chance 14.8, nothing expanded, "
    "one number a training seed."
)
ENCODERS = (
    "Aligned: the encoder starts as the decoder's own first layer; unaligned: from random weights. Paired differences "
    "with their intervals: {}.md."
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``heading`` stands beside each line of ours; rows without a value have such a line only if ``everywhere``."""

    values: Values
    heading: str = OURS
    notes: Sequence[str] = ()
    everywhere: bool = True


# --- Table 3


def rag_scores(evidence: Evidence) -> list[Measured]:
    """Exact match on questions of NQ's and TriviaQA's schema, and on real ones by a reader that never read English."""
    world = Measured(
        heading=f"{OURS}, synthetic world",
        values=_answers(
            evidence,
            {
                "LLaMA_FT + 1 passage": ("standard_rag", 1, {}),
                "REFRAG_8 + 8 passages": ("refrag_v2", 8, {"k": 8, "expand": 0.0}),
                "REFRAG_16 + 8 passages": ("refrag_v2", 8, {"k": 16, "expand": 0.0}),
                "REFRAG_32 + 8 passages": ("refrag_v2", 8, {"k": 32, "expand": 0.0}),
            },
        ),
        notes=(
            "Ours, synthetic world: decoders of 0.9 M parameters on its questions in the schemas of NQ and TriviaQA, "
            "not on theirs; exact match, brackets: 95 % interval. Not comparable with the paper's.",
        ),
    )
    real = Measured(
        heading=f"{OURS}, real questions",
        values=_answers(evidence, {"LLaMA_FT + 1 passage": ("standard_rag", 1, {})}, experiment="real", root=MIRROR),
        notes=(
            "Ours, real questions: the same decoder, which has read nothing but the synthetic world, on NQ's and "
            "TriviaQA's own questions with BM25 over the mirror's passages: that the whole path runs, no more.",
        ),
        everywhere=False,
    )
    return [world, *([real] if real.values else [])]


def _answers(
    evidence: Evidence, readers: Mapping[str, tuple[str, int, Mapping[str, Any]]], **where: str
) -> dict[tuple[str, str], Own]:
    where = {"experiment": "tiny"} | where
    found = {
        (row, column): evidence.score("em", suite=suite, system=system, passages=passages, **where, **config)
        for row, (system, passages, config) in readers.items()
        for column, suite in (("NQ", "nq"), ("TQA", "triviaqa"))
    }
    return {key: own for key, own in found.items() if own}


# --- Tables 1, 2 and 13: log-perplexity


def log_perplexities(evidence: Evidence, rows: Sequence[str], columns: Sequence[str]) -> list[Measured]:
    """Of the small trainings on real text, as far as ``rows`` and ``columns`` of the paper have a place for them."""
    return [
        _of_one(found, parameters, rows, columns)
        for name, parameters in perplexity.DECODERS.items()
        if (found := _windows(evidence, name))
    ] or [Measured(values={})]


def _of_one(found: Perplexities, parameters: str, rows: Sequence[str], columns: Sequence[str]) -> Measured:
    """Of one experiment. Its shortest context and its longest output are what it was trained on."""
    asked = {(row, column): _asked(row, column) for row in rows for column in columns}
    values = {key: own for key, place in asked.items() if place and (own := _nats(found, *place))}
    contexts = sorted({_scaled(place[2], found.contexts[0]) for key, place in asked.items() if place and key in values})
    outputs = sorted({_scaled(place[3], found.outputs[-1]) for key, place in asked.items() if place and key in values})
    return Measured(
        values=values,
        heading=f"{OURS}, {parameters} parameters: s = {_listed(contexts)}; o = {_listed(outputs)}",
        notes=(
            f"Ours is the small, real-language version: a decoder of {parameters} parameters trained on books and "
            "LaTeX, nats per token, brackets: 95 % bootstrap over windows. Decoder, text, tokens and lengths all "
            "differ from the paper's, so no number of ours can be set against the printed one of its column; what "
            f"can be read is the order of the systems within ours. {found.experiment}.md has the paired differences.",
            f"Ours stands in the column that is as many times as long as what was trained on: s = "
            f"{found.contexts[0]:,} and o = {found.outputs[-1]} here, {TRAINED:,} and {TRAINED:,} there. LLaMA_256: "
            f"the last s/8 tokens in both, here {found.contexts[0] // 8} of {found.contexts[0]:,}.",
            *perplexity.conditions(found),
        ),
    )


def _windows(evidence: Evidence, experiment: str) -> Perplexities | None:
    """The first folder that has them, as everywhere."""
    for records in evidence.records:
        if experiment in perplexity.experiments(records):
            return perplexity.build(records, [], experiment=experiment)
    return None


def _asked(row: str, column: str) -> tuple[str, str, int, int] | None:
    """(name of our row, set, the paper's context, the paper's output) of a cell; None where there is none of ours."""
    of_row = _ROW.fullmatch(row)
    system = SYSTEMS.get(of_row["system"] if of_row else row)
    match = next(filter(None, (pattern.fullmatch(column) for pattern in _COLUMNS)), None)
    if match is None or system is None or match["set"] not in SETS:
        return None
    context = match["context"] if "context" in match.groupdict() else of_row["context"] if of_row else None
    return (system, SETS[match["set"]], int(context), int(match["output"])) if context else None


def _nats(found: Perplexities, system: str, set_: str, context: int, output: int) -> Own | None:
    s, o = _scaled(context, found.contexts[0]), _scaled(output, found.outputs[-1])
    record = found.by(system, set_, s) if s in found.contexts else None
    score = record.metrics.get(f"log_perplexity_{o}") if record else None
    if record is None or score is None:
        return None
    return figure(score, record.path, digits=3, at=f"s = {s}, o = {o}")


def _scaled(paper: int, trained: int) -> int:
    """Our length for one of the paper's; 0, which nothing has, where it is no whole number."""
    return paper * trained // TRAINED if paper * trained % TRAINED == 0 else 0


def _listed(lengths: Sequence[int]) -> str:
    return " / ".join(f"{length:,}" for length in lengths)


# --- Table 13: at equal rate


def equal_rate(evidence: Evidence, rows: Sequence[str], columns: Sequence[str]) -> list[Measured]:
    """The rates, computed; log-perplexity of k = 8; and exact match of both sides at as many decoder positions."""
    found, *_ = log_perplexities(evidence, rows, columns)
    values = {**found.values, **_rates()}
    at: Mapping[str, Mapping[str, Any]] = {
        "REFRAG_8 s=2048": {"k": 8, "expand": 0.0},
        "REFRAG_16+RL s=2048": {"k": 16, "expand": 0.05},
    }
    for row, config in at.items():
        select = "policy" if config["expand"] else "none"
        record = evidence.find("expansion", "same_relation", "refrag_v2", 8, select=select, **config)
        score = evidence.score("em", "expansion", "same_relation", "refrag_v2", 8, select=select, **config)
        if record and score:
            rate, positions = (record.metrics[name].mean for name in ("effective_rate", "decoder_positions"))
            under = f"8 passages of 32 tokens, rate {rate:.2f}, {positions:.0f} decoder positions"
            values[row, ANSWERS] = replace(score, at=under)
    notes = (
        "Exact match, ours alone: same-relation questions of the synthetic world, decoder of 0.9 M parameters; "
        "REFRAG_8 expands nothing, REFRAG_16 the chunk that the policy chooses. "
        + "; ".join(f"{row.partition(' ')[0]}: {values[row, ANSWERS].at}" for row in at if (row, ANSWERS) in values)
        + ". Paired difference: expansion-positions.md; every share and selector: expansion-shares.md.",
    )
    values |= _chosen(evidence)
    answered = any(column == ANSWERS for _, column in values)
    return [replace(found, values=values, notes=(*found.notes, *(notes if answered else ())))]


def _chosen(evidence: Evidence) -> dict[tuple[str, str], Own]:
    """Log-perplexity on text at k = 16 with the chunks that a policy chose, where s is as long as was trained on."""
    found = {}
    for run in evidence.runs("text_policy", "REFRAG_16, 1/16 by the policy"):
        suite, name = run.spec["suite"], next(key for key, own in SETS.items() if own == run.spec["suite"]["set"])
        if (score := run.metrics.get(f"log_perplexity_{suite['output']}")) is None:
            continue
        at = f"s = {suite['context']}, o = {suite['output']}"
        found[f"REFRAG_16+RL s={TRAINED}", f"{name} P{TRAINED}"] = figure(score, run.path, digits=3, at=at)
    return found


def _rates() -> dict[tuple[str, str], Own]:
    """By p. 5: k / (1 - p + k p), with floor(L / 15) of L = s / 16 chunks expanded (inferred: it gives the printed)."""
    found = {(f"REFRAG_8 s={s}", RATE): _rate(8, 0.0) for s in (2048, 4096)}
    for s in (2048, 4096):
        n = s // 16
        found[f"REFRAG_16+RL s={s}", RATE] = _rate(16, n // 15 / n)
    return found


def _rate(k: int, p: float) -> Own:
    value = k / (1 - p + k * p)
    return Own(text=f"{value:.4f}".rstrip("0").rstrip("."), how="computed", value=value, at="L as in the row")


# --- Tables 11 and 12: the training ablations


def without_curriculum(evidence: Evidence) -> list[Measured]:
    """Table 11's question: the answers after both stages, with the paper's nine stages and with none."""
    ways = {
        ("REFRAG w/o curriculum", ALIGNED): "none",
        ("REFRAG with curriculum", ALIGNED): "9 stages",
    }
    lines = {"REFRAG w/o curriculum": "no curriculum", "REFRAG with curriculum": "the paper's curriculum"}
    return [_by_seed(evidence, "curriculum-pairs", ways), *_on_text(evidence, "text_curriculum", lines)]


def without_reconstruction(evidence: Evidence) -> list[Measured]:
    """Table 12's question: next-paragraph training alone, as many steps, against reconstruction before it."""
    ways = {
        (row, column): f"{encoder}, {how}"
        for column, encoder in ((ALIGNED, "aligned"), (UNALIGNED, "unaligned"))
        for row, how in (
            ("REFRAG w/o reconstruction", "CPT"),
            ("REFRAG with reconstruction", "reconstruction then CPT"),
        )
    }
    lines = {"REFRAG w/o reconstruction": "CPT alone", "REFRAG with reconstruction": "reconstruction, then CPT"}
    return [_by_seed(evidence, "order-pairs", ways), *_on_text(evidence, "text_order", lines)]


def _on_text(evidence: Evidence, experiment: str, lines: Mapping[str, str]) -> Iterator[Measured]:
    """Log-perplexity on real text of each row's line, the mean of books and LaTeX, at each size that was run."""
    for size, parameters in (("", "1.1 M"), ("-mini", "91 M")):
        found = {row: runs for row, line in lines.items() if (runs := evidence.runs(f"{experiment}{size}", line))}
        if not found:
            continue
        suite = next(iter(found.values()))[0].spec["suite"]
        of = f"log_perplexity_{suite['output']}"
        at = f"s = {suite['context']:,}, o = {suite['output']}"
        means = {row: sum(run.metrics[of].mean for run in runs) / len(runs) for row, runs in found.items()}
        yield Measured(
            heading=f"{OURS}, {parameters} parameters: {at}",
            values={
                (row, f"P{TRAINED}"): Own(
                    text=f"{mean:.3f}",
                    how="measured",
                    value=mean,
                    path=evidence.comparisons[f"{experiment}{size}"].path,
                    at=f"{at}; mean of two sets",
                )
                for row, mean in means.items()
            },
            notes=(
                f"Ours, {parameters} parameters: REFRAG_8 on books and LaTeX, nats per token, one seed, under the "
                "column of the whole output; the paired difference of each set with its interval is in "
                f"{experiment}{size}.md. Not comparable with the paper's numbers, only with each other.",
            ),
            everywhere=False,
        )


def _by_seed(evidence: Evidence, name: str, ways: Mapping[tuple[str, str], str]) -> Measured:
    found = {key: own for key, way in ways.items() if (own := evidence.by_seed(name, way))}
    other = "Not comparable with the paper's log-perplexity: the same question asked in small."
    return Measured(values=found, notes=(ABLATION, other, ENCODERS.format(name)) if found else ())
