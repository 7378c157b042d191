"""REFRAG's training at the paper's scale, as data: what each stage reads, how often, and who says so.

    stage           data                 encoder reads        decoder reads                    trained
    reconstruction  4 x 20 B tokens      s = 2048 tokens      L chunks, the same s tokens      encoder, projector
    cpt             4 x 20 B tokens      s = 2048             L chunks, o = 2048 tokens        everything
    mixed           1 x 20 B tokens *    s = 2048 *           the same, 10 % of L as tokens    everything
    finetune        1.1 M examples *     8 x 256 tokens *     L chunks, 256 tokens *           everything *
    policy          0.5 M examples *     s = 2048 *           as in mixed, 8 times *           policy

L = s / k. What carries a star the paper (arXiv:2509.01092v2) does not print. Every setting of a stage stands either in
its ``stated``, with the page, or in its ``assumed``, with the reason. The policy comes last, as in ``stages``: it is
trained on the model that it will serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import InputError
from harness.train.stage import AdamW, Schedule, Stage
from refrag_v2.grpo import GrpoConfig
from refrag_v2.model import RefragConfig
from refrag_v2.policy import PolicyConfig
from refrag_v2.recipe import ENCODING

DECODER = "meta-llama/Llama-2-7b-hf"
ENCODER = "FacebookAI/roberta-large"
RATES = (8, 16, 32, 64)

CORPUS_TOKENS = 20_000_000_000
LENGTH, CONTEXT, OUTPUT = 4096, 2048, 2048  # T = s + o
BATCH = 256
EPOCH = CORPUS_TOKENS // LENGTH  # examples; the rest of the tokens fills no example
INSTRUCTIONS = 1_100_000
PASSAGES, PASSAGE_TOKENS, TAIL_TOKENS = 8, 256, 256
POLICY_STEPS = 2000
POLICY, GRPO = PolicyConfig(), GrpoConfig()

# What every stage says of itself, each under ``stated`` or ``assumed``.
SETTINGS = ("examples", "batch", "context", "target", "expand", "lr", "trained")

ASSUMED: Mapping[str, str] = {
    "optimizer": "betas (0.9, 0.95), weight decay 0, clipping at 1.0, final rate 0: none is stated",
    "pooling": "the encoder's first token; the paper leaves it open, and the mean costs the same",
    "norm": "chunk embeddings as the projector gives them: the paper names no normalisation",
    "encoder positions": "k + 2 per chunk: <s> and </s> around it, and k decoder tokens are k encoder tokens",
    "policy network": f"width {POLICY.width}, {POLICY.heads} heads; only its two layers are stated (p. 17)",
}


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage, and how much it reads.

    ``examples`` counts all epochs; ``length`` is the tokens of the data that one example takes up. ``context`` is
    what the encoder reads of it, in chunks of k tokens, and ``target`` what the decoder reads beside the chunks (None:
    the context again); ``expand`` is the share of chunks that the decoder reads as tokens. ``rollouts`` is the
    decoder's passes per example where their likelihoods train a policy, 0 where the decoder's own loss trains. A stage
    with ``curriculum`` draws contexts of fewer chunks too, by Table 8.
    """

    stage: Stage
    examples: int
    length: int
    context: int
    target: int | None
    stated: Mapping[str, str]
    assumed: Mapping[str, str]
    batch: int = BATCH
    expand: float = 0.0
    rollouts: int = 0
    curriculum: bool = False

    @property
    def of_corpus(self) -> bool:
        """Whether it passes over the long texts, and so grows with them."""
        return self.examples % EPOCH == 0

    @property
    def tokens(self) -> int:
        """Tokens of the data, over all epochs."""
        return self.examples * self.length

    def trains(self, part: str) -> bool:
        """Whether the stage moves ``part``: decoder, encoder, projector or policy."""
        name = f"refrag.{part}." if self.rollouts else f"{part}."  # the names that the training gives them
        return name.startswith(self.stage.trained)


def optimizer_steps(examples: int, batch: int) -> int:
    """How many steps of ``batch`` examples ``examples`` are, to the nearest."""
    return round(examples / batch)


def model_config(k: int) -> RefragConfig:
    """Encoder and projector. Raises ``InputError`` where the paper has no such k."""
    if k not in RATES:
        raise InputError(f"expected a k that the paper trained ({', '.join(map(str, RATES))}), got {k}")
    return RefragConfig(k=k, encoder=ENCODER, pooling="cls", norm=None)


def _stage(name: str, examples: int, lr: float, trained: tuple[str, ...] = ("",)) -> Stage:
    return Stage(
        name=name,
        steps=optimizer_steps(examples, BATCH),
        optimizer=AdamW(lr=lr),
        schedule=Schedule(warmup=0.04, decay="cosine"),
        precision="bfloat16",
        trained=trained,
        checkpoint_every=1000,
    )


STAGES: Mapping[str, PlannedStage] = {
    "reconstruction": PlannedStage(
        stage=_stage("reconstruction", 4 * EPOCH, 2e-4, trained=ENCODING),
        examples=4 * EPOCH,
        length=LENGTH,
        context=CONTEXT,
        target=None,
        curriculum=True,
        stated={
            "batch": "p. 19",
            "target": "x_1:s itself (p. 4)",
            "expand": "none (p. 4)",
            "lr": "p. 18",
            "trained": "p. 4",
        },
        assumed={
            "examples": "20 B tokens (p. 5) and 4 epochs for both tasks (p. 19), T = 4096: as many examples as cpt",
            "context": "s = 2048 of the 4096 tokens, as in cpt; the length of this task is not printed",
        },
    ),
    "cpt": PlannedStage(
        stage=_stage("cpt", 4 * EPOCH, 5e-5),
        examples=4 * EPOCH,
        length=LENGTH,
        context=CONTEXT,
        target=OUTPUT,
        curriculum=True,
        stated={
            "examples": "20 B tokens (p. 5), 4 epochs (p. 19)",
            "batch": "p. 19",
            "context": "p. 5; 4096 is named there too",
            "target": "p. 5",
            "expand": "none (p. 4)",
            "lr": "p. 18",
            "trained": "p. 18",
        },
        assumed={},
    ),
    "mixed": PlannedStage(
        stage=_stage("mixed", EPOCH, 5e-5),
        examples=EPOCH,
        length=LENGTH,
        context=CONTEXT,
        target=OUTPUT,
        expand=0.1,
        stated={"batch": "p. 19", "expand": "p. 19"},
        assumed={
            "examples": "one epoch: the task is cpt's, on a model that has learned it; cost is linear in this",
            "context": "as cpt",
            "target": "as cpt",
            "lr": "cpt's: the same task and the same parameters",
            "trained": "everything: appendix A.1 names encoder and decoder, and the projector lies between them",
        },
    ),
    "finetune": PlannedStage(
        stage=_stage("finetune", INSTRUCTIONS, 2e-5),
        examples=INSTRUCTIONS,
        length=PASSAGES * PASSAGE_TOKENS + TAIL_TOKENS,
        context=PASSAGES * PASSAGE_TOKENS,
        target=TAIL_TOKENS,
        stated={"batch": "p. 19", "lr": "p. 19"},
        assumed={
            "examples": "the 1.1 M points (p. 7) once: the number of epochs is not stated",
            "context": "8 passages of 256 tokens: the short evaluation's 8 (p. 8), each below 200 words",
            "target": "256 tokens of question and answer: most sets ask in one sentence and answer in a few words",
            "expand": "none: every passage compressed, as in the tables' REFRAG rows",
            "trained": "everything: what is trained here is not stated",
        },
    ),
    "policy": PlannedStage(
        stage=_stage("policy", POLICY_STEPS * BATCH, 1e-4, trained=("refrag.policy.",)),
        examples=POLICY_STEPS * BATCH,
        length=LENGTH,
        context=CONTEXT,
        target=OUTPUT,
        expand=GRPO.expand,
        rollouts=GRPO.groups,
        stated={"trained": "p. 17"},
        assumed={
            "examples": f"{POLICY_STEPS:,} steps of G = {GRPO.groups} samples, neither stated: a small network on a "
            "frozen model; cost is linear in both",
            "batch": "as all other stages",
            "context": "as cpt: the reward is the likelihood of x_s+1:s+o (p. 17)",
            "target": "as cpt",
            "expand": "as mixed",
            "lr": "a usual rate for a fresh network of this size",
        },
    ),
}
