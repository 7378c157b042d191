"""What does each expanded chunk buy, and does it matter who chooses it? The paper's Figure 3 and Table 13 in small.

    refrag-bench run expansion

Fills     results/tables/expansion*.*, results/figures/expansion.*
Cost      offline, CPU, from the accepted checkpoints: 72 cells of 500 questions, 46 minutes of one thread
          on a machine busy with other work
Expect    k = 8 and 16: no selector apart from another at any share. k = 32: the policy 96.8 and 98.6 at 25 and 50 %,
          chance 93.6 and 95.4. At equal positions k = 16 with the policy lies 1.8 points below k = 8 (the paper has
          it ahead), k = 32 with one chunk below k = 16 and k = 8 (results/LOG.md)

Shares 0, 5, 10, 20, 50 and 100 % by every selector, at 0 and 100 % once for all; one seed of each checkpoint. The share
is of all chunks of a question, whatever passage they are of, and ``expanded_count`` rounds it to whole chunks. Eight
passages of 32 tokens are 32, 16 or 8 chunks (4, 2 or 1 a passage), so what is really expanded is

    k = 8    2, 3, 6, 16 of 32 chunks    6.3, 9.4, 18.8, 50 %
    k = 16   1, 2, 3,  8 of 16           6.3, 12.5, 18.8, 50 %
    k = 32   -, 1, 2,  4 of  8           12.5, 25, 50 %; of 5 % nothing is left, and it is not run

Table 13 sets k = 16 with the policy beside k = 8 with nothing expanded, at as many decoder positions: of L tokens, with
p of the chunks expanded, L/2k + p (L/2k) (2k - 1) = L/k, so p = 1 / (2k - 1). Here that is

    k = 16 as k = 8      1/15 of 16 chunks, 1.07: one chunk, 31 positions of context against 32; what 5 % is too
    k = 32 as k = 16     1/31 of 8 chunks, 0.26: none or one, 8 or 39 against 16; both are compared, as the two bounds
    k = 32 as k = 8      3/31 of 8 chunks, 0.77: one chunk, 39 against 32; not in the paper, but nearer

The paper measured log-perplexity of books and articles with LLaMA-2-7B over 2,048 and 4,096 tokens (p. 6 and p. 26).
These are questions of the synthetic world over 256 tokens by a decoder of 0.9 M parameters whose chunks are read nearly
as well as tokens (k = 8): what can be said of selectors here is bounded by what there is to gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.data.world.mirror import WorldConfig
from harness.errors import InputError
from harness.model.chunking import expanded_count
from slurm.jobs.compare import CompareJob, Way
from slurm.jobs.data import WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.tables import TablesJob
from slurm.phases import Phase
from slurm.sweeps.tiny import ANSWER_TOKENS, MOST, NOTHING, RATES, refrag_training, train_phase

NAME = "expansion"
TOKENS = 32 * MOST  # of all passages: 32 each, as the same-relation set of the world has them
SHARES = (0.05, 0.1, 0.2, 0.5)
SELECTORS = ("random", "policy", "perplexity-desc", "perplexity-asc", "oracle", "first")
LEAST = 0.05  # the share of one chunk at k = 16
ONE_OF_8 = 0.1  # that of one chunk at k = 32


def expansion(
    *,
    data: Path | None,
    checkpoint: str | None,
    limit: int | None,
    device: str,
    runs: Path,
    out: Path,
    budget: str | None = None,
    from_scratch: bool = False,
) -> Iterator[Phase]:
    """Phases of the experiment; ``budget`` and ``from_scratch`` are tiny's. Raises ``InputError`` for a checkpoint."""
    if checkpoint is not None:
        raise InputError(f"experiment {NAME!r} compares checkpoints of three k; leave --checkpoint out")
    budget = budget or ("short" if from_scratch else "long")
    refrags = {k: refrag_training(k, runs, device, budget, from_scratch=from_scratch) for k in RATES}
    world = WorldJob(config=WorldConfig(), folder=runs / "data" / WorldConfig().name)
    if data is None:
        yield Phase(title="data", jobs=[world])
    yield train_phase(list(refrags.values()))

    def way(k: int, share: float, select: str) -> Way:
        """Named by what is really expanded."""
        options: dict[str, Any] = {"k": k, "expand": share, "select": select}
        cell = EvaluateJob(
            system="refrag_v2",
            suite="same_relation",
            checkpoint=str(refrags[k].checkpoint),
            passages=MOST,
            data=data or world.folder,
            limit=limit,
            max_new_tokens=ANSWER_TOKENS,
            device=device,
            options=options,
            experiment=NAME,
            runs=runs,
        )
        return Way(name=f"k={k}, {_said(k, share, select)}", cells=[cell])

    nothing = {k: way(k, NOTHING["expand"], NOTHING["select"]) for k in RATES}
    everything = {k: way(k, 1.0, "all") for k in RATES}
    some = {(k, p, select): way(k, p, select) for k in RATES for p in shares(k) for select in SELECTORS}
    ways = [*nothing.values(), *some.values(), *everything.values()]
    yield Phase(title="evaluate", jobs=[cell for each in ways for cell in each.cells])

    def compare(name: str, contrasts: Sequence[tuple[Way, Way]]) -> CompareJob:
        beside = ("decoder_positions",)
        return CompareJob(name=name, contrasts=contrasts, figures=("em",), beside=beside, runs=runs, out=out)

    one_of_16, one_of_8 = some[16, LEAST, "policy"], some[32, ONE_OF_8, "policy"]
    at_positions = [
        (one_of_16, nothing[8]),
        (nothing[32], nothing[16]),
        (one_of_8, nothing[16]),
        (one_of_8, nothing[8]),
    ]
    by_selector = [(everything[k], nothing[k]) for k in RATES]
    by_selector += [
        (some[k, p, a], some[k, p, b])
        for k in RATES
        for a, b in (("policy", "random"), ("policy", "perplexity-desc"), ("oracle", "random"))
        for p in shares(k)
    ]
    jobs = [compare(f"{NAME}-positions", at_positions), compare(f"{NAME}-pairs", by_selector)]
    yield Phase(title="compare", jobs=jobs)
    yield Phase(title="tables", jobs=[TablesJob(experiment=NAME, runs=runs, out=out)])


def shares(k: int) -> list[float]:
    """Those of ``SHARES`` that leave anything of the chunks of ``k`` tokens."""
    return [share for share in SHARES if expanded_count(share, TOKENS // k)]


def _said(k: int, share: float, select: str) -> str:
    """What is expanded, in words."""
    if select in ("none", "all"):
        return {"none": "nothing", "all": "everything"}[select]
    return f"{select}, {expanded_count(share, TOKENS // k)} of {TOKENS // k}"
