"""How large and how long is training on real text? What the stages of all systems at one scale share.

``TEXT_SCALES`` is by the name of a budget, as `refrag-bench run perplexity --scale NAME` takes it. All systems of a
scale go on from one decoder and see the same windows in their last stage; full context is trained on as many decoder
tokens more as REFRAG and CEPE read after the decoder was made.

The rates of ``text-tiny`` were tried (results/LOG.md). Those of ``text-mini`` were not: they are text-tiny's, lowered
for a decoder six times as wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.data.text_practice import NextParagraph, NextToken
from harness.train.stage import Muon, Schedule, Stage

SCHEDULE = Schedule(warmup=0.04, decay="cosine", floor=0.05)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Optimizer steps: of the decoder; of full context after it; of CEPE's first stage and REFRAG's; of CPT, with which
    both go on; and of what REFRAG alone does then."""

    pretrain: int
    finetune: int
    warmup: int
    reconstruction: int
    cpt: int
    mixed: int
    policy_start: int
    policy: int


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rates. Pairs are Muon's and, for what is no matrix, AdamW's; of the others AdamW has 0.7."""

    pretrain: tuple[float, float]
    finetune: tuple[float, float]
    decoder: float  # REFRAG's decoder in CPT
    encoding: float  # encoder and projector
    cepe: float


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is measured afterwards: at which contexts, over the first of how many tokens each, how many windows at once.

    ``outputs`` end with the length of the trained ``paragraph``'s; contexts longer than its own nobody was trained on.
    """

    contexts: tuple[int, ...]
    outputs: tuple[int, ...]
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """The models and the windows. ``read_back`` is REFRAG's longest context in reconstruction, ``tokens`` those of a
    step of it. The policy is trained on ``choosing``. The encoders are layers of the decoder (``decoder:N``)."""

    shape: str
    vocabulary: int
    plain: NextToken
    paragraph: NextParagraph
    choosing: NextParagraph
    read_back: int
    tokens: int
    encoder: str
    cross_layers: int
    rates: Rates
    scoring: Scoring
    precision: Literal["float32", "bfloat16"]
    checkpoint_every: int


@dataclass(frozen=True, kw_only=True)
class TextScale:
    """A size and a budget; ``name`` is how recipes are called that know of no k."""

    size: Size
    steps: Steps
    suffix: str = ""

    @property
    def name(self) -> str:
        return self.size.shape + self.suffix

    def of_rate(self, k: int) -> str:
        """The name of REFRAG's recipes at k tokens per chunk."""
        return f"{self.size.shape}-k{k}{self.suffix}"

    def stage(
        self,
        name: str,
        steps: int,
        rates: tuple[float, float],
        *,
        seed: int = 0,
        trained: tuple[str, ...] = ("",),
        boosted: tuple[str, ...] = (),
        boost: float = 1.0,
    ) -> Stage:
        lr, adamw_lr = rates
        return Stage(
            name=name,
            steps=steps,
            optimizer=Muon(lr=lr, adamw_lr=adamw_lr),
            schedule=SCHEDULE,
            precision=self.size.precision,
            seed=seed,
            trained=trained,
            boosted=boosted,
            boost=boost,
            checkpoint_every=self.size.checkpoint_every,
        )


TINY = Size(
    shape="text-tiny",
    vocabulary=2048,
    plain=NextToken(),
    paragraph=NextParagraph(),
    choosing=NextParagraph(),
    read_back=128,
    tokens=2048,
    encoder="decoder:1",
    cross_layers=4,
    rates=Rates(pretrain=(3e-3, 2e-3), finetune=(1e-3, 7e-4), decoder=5e-4, encoding=2e-3, cepe=1e-3),
    scoring=Scoring(contexts=(256, 512, 1024), outputs=(32, 64, 128), batch_size=8),
    precision="float32",
    checkpoint_every=100,
)
MINI = Size(
    shape="text-mini",
    vocabulary=8192,
    plain=NextToken(length=1280, rows=24),
    paragraph=NextParagraph(context=1024, output=256, rows=64),
    choosing=NextParagraph(context=1024, output=256, rows=16),
    read_back=512,
    tokens=16384,
    encoder="decoder:2",
    cross_layers=12,
    rates=Rates(pretrain=(2e-3, 1e-3), finetune=(5e-4, 3e-4), decoder=3e-4, encoding=1.2e-3, cepe=5e-4),
    scoring=Scoring(contexts=(1024, 2048, 4096), outputs=(64, 128, 256), batch_size=16),
    precision="bfloat16",
    checkpoint_every=300,
)
TEXT_SCALES: Mapping[str, TextScale] = {
    "long": TextScale(
        size=TINY,
        steps=Steps(
            pretrain=2000,
            finetune=670,
            warmup=100,
            reconstruction=300,
            cpt=800,
            mixed=200,
            policy_start=100,
            policy=200,
        ),
    ),
    "quarter": TextScale(
        size=TINY,
        suffix="-quarter",
        steps=Steps(
            pretrain=500, finetune=168, warmup=25, reconstruction=75, cpt=200, mixed=50, policy_start=25, policy=50
        ),
    ),
    "short": TextScale(
        size=TINY,
        suffix="-short",
        steps=Steps(pretrain=2, finetune=2, warmup=2, reconstruction=2, cpt=2, mixed=2, policy_start=2, policy=2),
    ),
    "mini": TextScale(
        size=MINI,
        steps=Steps(
            pretrain=800, finetune=180, warmup=30, reconstruction=60, cpt=220, mixed=60, policy_start=30, policy=60
        ),
    ),
}
