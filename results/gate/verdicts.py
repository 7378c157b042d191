"""The three things that a gate can say, and the exit code of each; of a part of it a fourth, that it is new."""

from __future__ import annotations

from collections.abc import Iterable

PASS, REGRESSION, NOT_JUDGED = "pass", "regression", "not judged"
NEW = "new"  # only the candidate has it: nothing to compare with, and nothing that counts
EXIT_CODES = {PASS: 0, REGRESSION: 1, NOT_JUDGED: 2}


def worst(verdicts: Iterable[str]) -> str:
    """Of several: a regression is one, whatever else could not be judged; nothing at all is not judged, NEW nothing."""
    found = set(verdicts)
    return next((verdict for verdict in (REGRESSION, NOT_JUDGED, PASS) if verdict in found), NOT_JUDGED)
