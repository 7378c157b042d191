"""The three things that a gate can say, and the exit code of each."""

from __future__ import annotations

from collections.abc import Iterable

PASS, REGRESSION, NOT_JUDGED = "pass", "regression", "not judged"
EXIT_CODES = {PASS: 0, REGRESSION: 1, NOT_JUDGED: 2}


def worst(verdicts: Iterable[str]) -> str:
    """Of several: a regression is one, whatever else could not be judged; nothing at all is not judged."""
    found = set(verdicts)
    return next((verdict for verdict in (REGRESSION, NOT_JUDGED, PASS) if verdict in found), NOT_JUDGED)
