"""What the seed document claims, what the paper says, and what was measured here: one table of all three.

One line per item of ``discrepancies.csv``, in its order, then the claims that no item judges. The measured figures are
the closest ones of the claims under that item (``results.ledger.verdicts``), and stand beside the conditions that
differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from results.grids import Grid
from results.ledger.physics import ASSUMED
from results.ledger.seed import NOT_JUDGED, read_discrepancies
from results.ledger.verdicts import Verdict, figure

HEAD = (
    "Item",
    "The seed claims",
    "The paper says",
    "Where",
    "Verdict",
    "Measured here",
    "Under other conditions",
    "Cannot be",
)
TITLE = "What the seed claims, what the paper says, what was measured here"
NONE = "-"
NOTES = (
    "The seed: the comparison document that this project started from. Verdict: of its claim against the paper "
    "(arXiv:2509.01092v2).",
    "Measured here: the closest figure of the same kind, its number of questions, rounds or tokens, and the system; "
    "EM, F1 and accuracy in percent, times in ms, ratios over standard RAG. Under other conditions: those in which it "
    "differs from the claim or which the seed does not state. Where any stands there, it neither supports nor refutes "
    "the claim. The decoder of the synthetic world has never read natural language: on real questions its scores are "
    "near zero, on the world's near 100.",
    f"Cannot be: below a floor of physics for {ASSUMED}, which the seed does not state.",
)


def claims_table(verdicts: Iterable[Verdict], folder: Path) -> Grid:
    """The table of the claims of the seed among ``verdicts``; its links are relative to ``folder``."""
    by_item: dict[str | None, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.against_paper is not None:
            by_item.setdefault(verdict.item, []).append(verdict)
    lines = [
        [item.item, item.seed, item.paper, item.where, item.verdict, *_measured(by_item.get(item.item, []), folder)]
        for item in read_discrepancies().values()
    ]
    for verdict in by_item.get(None, []):
        lines.append([verdict.entry.row, verdict.entry.printed, NONE, NONE, NOT_JUDGED, *_measured([verdict], folder)])
    return Grid(title=TITLE, head=HEAD, lines=lines, notes=NOTES)


def claims_files(verdicts: Iterable[Verdict], out: Path) -> dict[Path, bytes]:
    """``claims_table`` as ``out/tables/claims.md``, ``.csv`` and ``.tex``; nothing is written."""
    folder = out / "tables"
    grid = claims_table(verdicts, folder)
    texts = {"md": grid.markdown(), "csv": grid.csv(), "tex": grid.latex()}
    return {folder / f"claims.{kind}": text.encode() for kind, text in texts.items()}


def _measured(claims: Sequence[Verdict], folder: Path) -> list[str]:
    """The last three columns."""
    figures = dict.fromkeys(_linked(claim, folder) for claim in claims if claim.closest)
    conditions = dict.fromkeys(unlike.partition(":")[0] for claim in claims for unlike in claim.differing)
    asked = dict.fromkeys(claim.needs for claim in claims if claim.needs)
    flags = [f"{claim.entry.row} {claim.entry.column}: {flag}" for claim in claims for flag in claim.flags]
    return [
        " / ".join(figures) or "; ".join(map(str, asked)) or NONE,
        ", ".join(conditions) or NONE,
        "; ".join(flags) or NONE,
    ]


def _linked(claim: Verdict, folder: Path) -> str:
    """The closest figure, its number linked to where it was recorded."""
    assert claim.closest is not None
    number, _, rest = figure(claim).partition(" ")
    target = Path(os.path.relpath(claim.closest.path.resolve(), folder.resolve())).as_posix()
    return f"[{number}]({quote(target)}) {rest}"
