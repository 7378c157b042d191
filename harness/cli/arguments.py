"""Kinds of values that several verbs take."""

from __future__ import annotations

import argparse

SCALE = (
    "how long trainings are. tiny, expansion: long (of the accepted checkpoints), short; selection: also half; "
    "ablations, main_table: full, smoke; perplexity, text_ablation: long, quarter, short, mini (a GPU); paper: "
    "k8, k16, k32, k64, smoke"
)


def counts(text: str) -> tuple[int, ...]:
    """``1,2,4`` as numbers. Raises ``argparse.ArgumentTypeError`` for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from error


def count(text: str) -> int:
    """A number of things of which there has to be one. Raises ``argparse.ArgumentTypeError`` for anything else."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return number
