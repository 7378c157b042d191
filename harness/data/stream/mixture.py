"""How much of each set? Shares of the tokens, as the command line says them. All windows have equally many tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.errors import InputError

BY_TOKENS = "-by-tokens"


def parse_mixture(asked: str | None, sets: Sequence[str]) -> dict[str, float] | None:
    """``50/50-by-tokens`` as the share of each of ``sets``, in their order; None where none is asked for.

    Raises ``InputError`` for anything else, and where there are not as many shares as sets.
    """
    if asked is None:
        return None
    try:
        weights = [float(part) for part in asked.removesuffix(BY_TOKENS).split("/")]
    except ValueError:
        weights = []
    if not asked.endswith(BY_TOKENS) or not weights or not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"expected a mixture such as 50/50{BY_TOKENS}, got {asked!r}")
    if len(weights) != len(sets):
        raise InputError(f"mixture {asked}: expected a share for each of --sets, {len(sets)}, got {len(weights)}")
    return {name: weight / sum(weights) for name, weight in zip(sets, weights, strict=True)}


def windows_of(sizes: Mapping[str, int], mixture: Mapping[str, float] | None) -> dict[str, int]:
    """How many windows of each set make one epoch: all of them, or as many as keep to ``mixture`` with none twice."""
    if mixture is None:
        return dict(sizes)
    most = min(sizes[name] / share for name, share in mixture.items())
    # A share of 1/3 of 3/(1/3) must be 3: the division may fall short of a whole number by the last bit.
    return {name: min(sizes[name], int(share * most * (1 + 1e-12))) for name, share in mixture.items()}
