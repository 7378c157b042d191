"""What experiments on real text share: which text, and which size and budget of training."""

from __future__ import annotations

from pathlib import Path

from harness.data.text import TextConfig
from harness.errors import InputError, unknown
from harness.train.text_scales import TEXT_SCALES, TINY, TextScale
from slurm.jobs.text import TextJob


def asked(
    name: str, *, data: Path | None, checkpoint: str | None, budget: str, runs: Path
) -> tuple[TextScale, TextJob]:
    """The scale of ``budget``, and the job that prepares ``data`` for it.

    Raises ``InputError`` without ``data``, for a ``checkpoint`` (its tokens would not be the text's), and for an
    unknown ``budget``.
    """
    if budget not in TEXT_SCALES:
        raise unknown("budget", budget, TEXT_SCALES)
    if data is None:
        raise InputError(f"experiment {name!r} needs a text: give a folder or a Hub id with --data")
    if checkpoint is not None:
        raise InputError(f"experiment {name!r} trains its own decoder, on the text's own tokens; leave it out")
    scale = TEXT_SCALES[budget]
    return scale, TextJob(data=str(data), runs=runs, config=TextConfig(vocabulary=scale.size.vocabulary))


def called(name: str, scale: TextScale, budget: str) -> str:
    """What tables of an experiment are called: all budgets of the tiny size fill one, other sizes have their own."""
    return name if scale.size is TINY else f"{name}-{budget}"
