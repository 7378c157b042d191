"""What is each system made of, beside what the seed says of the paper, and what the paper says?

The seed's sections "Architecture Comparison", "Training Pipeline Comparison", "Hyperparameter Comparison" and "Quick
Reference: File Locations" with our systems as columns. What is ours was read and counted from code by
``slurm.jobs.configurations``, which writes ``configurations.json``; what is published comes from the ledger. No number
is typed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import InputError
from results.ledger.entries import Entry
from results.replication.layouts import DIFFERS, OURS, PAPER, SEED, Cell, Layout, Line, Own
from results.replication.published import Ledger

FILE, SCHEMA = "configurations.json", 1
COLUMNS = {
    "rag": "Standard RAG",
    "cepe": "CEPE",
    "v1": "REFRAG v1",
    "v2": "REFRAG v2",
    "rag-7b": "Standard RAG, 7 B",
    "cepe-7b": "CEPE, as released",
    "v1-seed": "REFRAG v1, seed's size",
    "v2-paper": "REFRAG v2, paper's size",
}
TINY = ("rag", "cepe", "v1", "v2")
PLANNED = "v2-paper"
CLAIM, PRINTED, VERDICT = "Seed, of the paper", "Paper", "Seed against paper"
NOT_CLAIMED, NOT_PRINTED, NOT_COMPARED = "not claimed", "not printed", "-"
NOTHING = "-"
_COMPARED = re.compile(r"; seed: (.*); paper: (.*)$")
_NO_TEXT = ("-", "same", "as given")
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([KMB])\b")
Find = Callable[[Ledger], Entry]
Facts = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Topic, aspect, column: the fact."""


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """One row: its fact, the title that it is shown under, and where seed, paper and their comparison stand.

    ``compare`` says whether the paper's entry and our facts are the same kind of thing, ``counted`` that the facts are
    numbers of parameters, which a number in the seed's claim can be held against.
    """

    fact: str
    title: str
    seed: Find | None = None
    paper: Find | None = None
    verdict: str | None = None
    compare: bool = False
    counted: bool = False


def _claim(row: str) -> Find:
    return lambda ledger: ledger.claim("Other paper claims", row, "value")


def _hyper(row: str) -> Find:
    return lambda ledger: ledger.claim("Hyperparameters (Paper column)", row, "value")


def _config(row: str, column: str) -> Find:
    return lambda ledger: ledger.paper("config", row, column)


def _verdict(item: str) -> Find:
    return lambda ledger: ledger.verdict(item)


_PROJECTOR = _config("architecture", "projection layer")
COMPONENTS = (
    Aspect(fact="retriever", title="Retriever", paper=_config("RAG", "retriever")),
    Aspect(
        fact="encoder",
        title="Encoder",
        seed=_claim("Encoder"),
        paper=_config("architecture", "encoder (main)"),
        verdict="encoder",
    ),
    Aspect(
        fact="decoder",
        title="Decoder",
        seed=_claim("Decoder"),
        paper=_config("architecture", "decoder (main)"),
        verdict="decoder",
    ),
    Aspect(
        fact="projector",
        title="Projector",
        seed=_claim("Projector"),
        paper=_PROJECTOR,
        verdict="projector activation",
    ),
    Aspect(fact="pooling", title="Pooling of encoder states"),
    Aspect(
        fact="policy",
        title="Policy network",
        seed=_claim("Policy Net"),
        paper=_config("architecture", "policy network"),
        verdict="policy",
    ),
    Aspect(fact="cross-attention", title="Cross-attention"),
)
CHUNKING = (
    Aspect(
        fact="passage",
        title="Passage, at most (tokens)",
        seed=_claim("DB chunk size"),
        paper=_config("RAG", "passage length"),
        verdict="DB chunk size",
    ),
    Aspect(fact="k", title="Chunk, k (tokens)"),
    Aspect(
        fact="k available",
        title="k trained (tokens)",
        seed=_claim("k tested"),
        paper=_config("architecture", "chunk size = compression rate k"),
        verdict="k tested",
    ),
    Aspect(fact="two levels", title="Two levels of chunks"),
    Aspect(
        fact="rate",
        title="Compression, nothing expanded",
        seed=_claim("Compression rate"),
        paper=_config("architecture", "chunk size = compression rate k"),
    ),
    Aspect(fact="rate at p = 0.1", title="Compression, a tenth expanded"),
)
SIZES = (
    Aspect(
        fact="encoder",
        title="Encoder",
        seed=_claim("Encoder"),
        paper=_config("architecture", "encoder size (RoBERTa-large)"),
        verdict="encoder",
        counted=True,
    ),
    Aspect(fact="projector", title="Projector", seed=_claim("Projector"), verdict="Projector size", counted=True),
    Aspect(fact="cross-attention", title="Cross-attention"),
    Aspect(fact="decoder", title="Decoder", seed=_claim("Decoder"), verdict="decoder", counted=True),
    Aspect(fact="policy", title="Policy network", seed=_claim("Policy Net"), verdict="policy size", counted=True),
    Aspect(fact="total", title="Total", seed=_claim("Total"), counted=True),
)
PIPELINE: Mapping[str, Aspect] = {
    aspect.fact: aspect
    for aspect in (
        Aspect(
            fact="reconstruction: trained",
            title="",
            paper=_config("training", "reconstruction: frozen"),
            verdict="decoder frozen in reconstruction",
        ),
        Aspect(fact="reconstruction: objective", title="", verdict="Reconstruction target"),
        Aspect(
            fact="reconstruction: curriculum",
            title="",
            paper=_config("training", "stages in curriculum"),
            verdict="9 stages, multipliers 1..256",
        ),
        Aspect(
            fact="next paragraph: trained",
            title="",
            paper=_config("training", "next-paragraph: trained"),
        ),
        Aspect(
            fact="next paragraph: curriculum",
            title="",
            paper=_config("training", "stages in curriculum"),
            verdict="9 stages, multipliers 1..256",
        ),
        Aspect(fact="next paragraph: must come after", title="", verdict="order reconstruction then CPT"),
        Aspect(
            fact="mixed input: chunks left as tokens",
            title="",
            paper=_config("training", "mixed-input stage p"),
            compare=True,
        ),
        Aspect(fact="mixed input: stage", title="", verdict="Training order, policy stage"),
        Aspect(fact="policy: trained", title="", paper=_config("policy", "action")),
        Aspect(fact="policy: algorithm", title="", paper=_config("policy", "objective"), verdict="policy"),
        Aspect(fact="policy: must come after", title="", verdict="Training order, policy stage"),
    )
}
HYPERPARAMETERS = (
    Aspect(
        fact="LR, reconstruction",
        title="Peak LR, reconstruction",
        seed=_hyper("LR (Reconstruction)"),
        paper=_config("training", "peak LR reconstruction"),
        verdict="LR reconstruction",
        compare=True,
    ),
    Aspect(
        fact="LR, next paragraph",
        title="Peak LR, next paragraph (CPT)",
        seed=_hyper("LR (CPT)"),
        paper=_config("training", "peak LR next-paragraph prediction"),
        verdict="LR CPT",
        compare=True,
    ),
    Aspect(fact="LR, mixed input", title="Peak LR, mixed input"),
    Aspect(
        fact="LR, fine-tuning",
        title="Peak LR, fine-tuning",
        seed=_hyper("LR (Fine-tune)"),
        paper=_config("training", "peak LR instruction tuning"),
        verdict="LR fine-tune",
        compare=True,
    ),
    Aspect(fact="LR, policy", title="Peak LR, policy", seed=_hyper("LR (Policy)"), verdict="LR policy"),
    Aspect(
        fact="batch",
        title="Batch (examples)",
        seed=_hyper("Batch Size"),
        paper=_config("training", "batch size"),
        verdict="batch size",
        compare=True,
    ),
    Aspect(
        fact="warm-up",
        title="Warm-up, linear (% of steps)",
        seed=_hyper("Warmup"),
        paper=_config("training", "warm-up"),
        verdict="warm-up",
        compare=True,
    ),
    Aspect(
        fact="schedule",
        title="Schedule",
        seed=_hyper("LR Schedule"),
        paper=_config("training", "scheduler"),
        verdict="schedule",
        compare=True,
    ),
    Aspect(fact="clipping", title="Gradient clipping", seed=_hyper("Gradient Clipping"), verdict="gradient clipping"),
    Aspect(fact="weight decay", title="Weight decay", seed=_hyper("Weight Decay"), verdict="weight decay"),
    Aspect(
        fact="optimizer",
        title="Optimizer",
        seed=_hyper("Optimizer"),
        paper=_config("training", "optimizer"),
        verdict="optimizer",
        compare=True,
    ),
    Aspect(
        fact="precision",
        title="Precision",
        seed=_hyper("Precision"),
        paper=_config("training", "precision"),
        verdict="precision",
        compare=True,
    ),
)
# The seed's "Quick Reference: File Locations", word for word: its own repository's, for RAG, v1 and v2.
SEED_FILES = {
    "main file": ("src/rag.py", "src/refrag.py", "src/refrag_v2.py"),
    "index": ("index", "index", "index"),
    "train reconstruction": ("N/A", "cpt_recon", "train_reconstruction"),
    "train CPT": ("N/A", "cpt_next", "train_cpt"),
    "train policy": ("N/A", "train_policy", "train_policy"),
    "generate": ("generate", "generate", "generate"),
    "evaluate": ("evaluate", "N/A", "evaluate"),
}
WORLD = (
    "Columns without a size: the tiny scale, decoders of 0.9 M parameters (v1 at k = 64, v2 at k = 16). Ours is read "
    "and counted from code and configuration; nothing of it is measured, and nothing published stands in it."
)


def find(folders: Iterable[Path]) -> Path | None:
    """The first ``configurations.json`` that lies directly in one of ``folders``."""
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def read(path: Path) -> Facts:
    """What the job wrote there. Raises ``InputError`` where it is of another schema."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found, facts = document["schema"], document["facts"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no configurations: {error}") from error
    if found != SCHEMA:
        raise InputError(f"{path} has schema {found!r}; expected {SCHEMA}")
    read: Facts = facts
    return read


def components(ledger: Ledger, facts: Facts) -> Layout:
    return _table(ledger, facts, "components", "Components", COMPONENTS)


def chunking(ledger: Ledger, facts: Facts) -> Layout:
    return _table(ledger, facts, "chunking", "Chunking strategy", CHUNKING, "Passage, paper: words, not tokens.")


def sizes(ledger: Ledger, facts: Facts) -> Layout:
    note = (
        "The encoder is counted without its pooler. Projector: two linear layers with biases, and one learned gain; at "
        "the tiny scale its width grows with k (see Pooling)."
    )
    return _table(ledger, facts, "sizes", "Model sizes, counted (parameters)", SIZES, note)


def pipeline(ledger: Ledger, facts: Facts) -> Layout:
    """Every row that was gathered, with the comparison where ``PIPELINE`` has one."""
    rows = [replace(PIPELINE.get(fact, Aspect(fact=fact, title="")), title=fact) for fact in facts["pipeline"]]
    return _table(ledger, facts, "pipeline", "Training pipeline, stage by stage", rows)


def hyperparameters(ledger: Ledger, facts: Facts) -> Layout:
    note = (
        "Batch to precision: of the next-paragraph stage; standard RAG's of its fine-tuning. The paper's size is a "
        "plan (`refrag-bench plan`): what the paper does not print is assumed there, with the reason."
    )
    return _table(ledger, facts, "hyperparameters", "Hyperparameters", HYPERPARAMETERS, note)


def _table(ledger: Ledger, facts: Facts, topic: str, title: str, aspects: Sequence[Aspect], *notes: str) -> Layout:
    found = facts[topic]
    used = [column for column in COLUMNS if any(column in found[aspect.fact] for aspect in aspects)]
    lines = tuple(_line(ledger, aspect, found[aspect.fact], used) for aspect in aspects)
    return Layout(
        name=f"configurations-{topic}",
        title=title,
        columns=(*(COLUMNS[column] for column in used), CLAIM, PRINTED, VERDICT),
        lines=lines,
        notes=(WORLD, *notes),
    )


def _line(ledger: Ledger, aspect: Aspect, facts: Mapping[str, Any], used: Sequence[str]) -> Line:
    row = aspect.title
    claim = aspect.seed(ledger) if aspect.seed else None
    paper = aspect.paper(ledger) if aspect.paper else None
    verdict = ledger.verdict(aspect.verdict) if aspect.verdict else None
    if verdict:
        said, answered = _both(verdict)
        claim, paper = claim or said, paper or answered
    cells = [_ours(aspect, facts, column, paper) for column in used]
    if claim:
        cells.append(Cell(row=row, column=CLAIM, source=SEED, entry=claim, marks=_miscounted(aspect, claim, facts)))
    else:
        cells.append(Cell(row=row, column=CLAIM, source=SEED, silent=NOT_CLAIMED))
    if paper:
        cells.append(Cell(row=row, column=PRINTED, source=PAPER, entry=paper))
    else:
        cells.append(Cell(row=row, column=PRINTED, source=PAPER, silent=NOT_PRINTED))
    if verdict:
        marks = (f"{DIFFERS} seed and paper",) if verdict.value == "contradicts" else ()
        cells.append(Cell(row=row, column=VERDICT, source=PAPER, entry=verdict, marks=marks))
    else:
        cells.append(Cell(row=row, column=VERDICT, source=PAPER, silent=NOT_COMPARED))
    return Line(row=row, source="", cells=tuple(cells))


def _ours(aspect: Aspect, facts: Mapping[str, Any], column: str, paper: Entry | None) -> Cell:
    title = COLUMNS[column]
    if column not in facts:
        return Cell(row=aspect.title, column=title, source=OURS, silent=NOTHING)
    marks = _marks(aspect, facts, column, paper)
    return Cell(row=aspect.title, column=title, source=OURS, own=_own(facts[column]), marks=marks)


def _both(verdict: Entry) -> tuple[Entry | None, Entry | None]:
    """The two texts that a verdict compares, where they say more than that they agree."""
    found = _COMPARED.search(verdict.source)
    texts = found.groups() if found else ("-", "-")
    seed, paper = (None if text in _NO_TEXT else replace(verdict, value=text, printed=text) for text in texts)
    return seed and replace(seed, source="seed", source_class="seed-claim", page=""), paper


def _miscounted(aspect: Aspect, claim: Entry, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the seed gives a number of parameters that is not the counted one, to a tenth."""
    found = _COUNT.search(claim.printed)
    counted = facts.get(PLANNED)
    if not aspect.counted or found is None or counted is None:
        return ()
    said = float(found[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[found[2]]
    return (f"{DIFFERS} counted here: {counted:,}",) if abs(said / counted - 1) > 0.1 else ()


def _own(fact: Any) -> Own:
    if isinstance(fact, int):
        return Own(text=f"{fact:,}", how="computed", value=fact)
    if isinstance(fact, float):
        return Own(text=f"{fact:g}", how="computed", value=fact)
    return Own(text=fact, how="computed")


def _marks(aspect: Aspect, facts: Mapping[str, Any], column: str, paper: Entry | None) -> tuple[str, ...]:
    """Ours against the paper's, where both are the same kind of thing."""
    if not aspect.compare or paper is None or facts[column] == paper.value:
        return ()
    return (f"{DIFFERS} paper: {paper.printed}",)


def files(_: Ledger, facts: Facts) -> Layout:
    """Where things are here, and where the seed's were. The seed has no column for CEPE, and the paper has none."""
    seed_columns = ("Seed: RAG", "Seed: REFRAG v1", "Seed: REFRAG v2")
    lines = []
    for aspect, cells in facts["files"].items():
        own = [
            Cell(row=aspect, column=COLUMNS[column], source=OURS, own=Own(text=cells[column], how="computed"))
            if column in cells
            else Cell(row=aspect, column=COLUMNS[column], source=OURS, silent=NOTHING)
            for column in TINY
        ]
        said = SEED_FILES.get(aspect, (NOT_CLAIMED,) * len(seed_columns))
        theirs = [
            Cell(row=aspect, column=column, source=SEED, silent=word)
            if word == NOT_CLAIMED
            else Cell(row=aspect, column=column, source=SEED, entry=_word(aspect, column, word))
            for column, word in zip(seed_columns, said, strict=True)
        ]
        lines.append(Line(row=aspect, source="", cells=(*own, *theirs)))
    return Layout(
        name="configurations-files",
        title="File locations and commands",
        columns=(*(COLUMNS[column] for column in TINY), *seed_columns),
        lines=tuple(lines),
        notes=(
            "Commands are `refrag-bench ...` here. The seed's are those of its own repository, which this project does "
            f"not contain; what REFRAG v2's numbers are at the paper's size: {facts['files']['numbers'][PLANNED]}.",
        ),
    )


def _word(row: str, column: str, word: str) -> Entry:
    """A word of the seed's that is no number, so that the ledger has no row for it."""
    return Entry(
        table="Quick Reference: File Locations",
        row=row,
        column=column,
        value=word,
        printed=word,
        unit="",
        source="seed",
        source_class="seed-claim",
        page="",
        file="",
        conditions={},
    )


TABLES: Mapping[str, Callable[[Ledger, Facts], Layout]] = {
    "configurations-components": components,
    "configurations-chunking": chunking,
    "configurations-sizes": sizes,
    "configurations-pipeline": pipeline,
    "configurations-hyperparameters": hyperparameters,
    "configurations-files": files,
}
