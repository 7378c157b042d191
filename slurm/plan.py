"""What a training at scale takes: parameters, memory per GPU, FLOPs, GPU-hours and cost, by arithmetic alone.

Nothing is measured here. Shapes are built on torch's meta device: exact counts, no memory, no download.

FLOPs. One multiply-add is 2. A matrix of N weights applied to one position takes

    2 N    forward
    2 N    backward, for the gradient of its input
    2 N    backward, for the gradient of its weights

so per position 6 N where it is trained, 4 N where it is frozen but a gradient passes through it to something trained
(the decoder of the reconstruction stage, on the way to the projector), and 2 N where no gradient comes. N counts the
weights of linear layers, the output head among them; looking up an embedding is no multiplication. Attention over S
positions multiplies Q by K and the weights by V, per layer and position 2 S A each, where A is heads x head size: 4
S A forward, and twice that backward whether or not anything is trained. Both are the count of PaLM (appendix B), which
model-FLOPs utilisation (MFU) is defined by: all S positions count under a causal mask too, and what activation
checkpointing recomputes does not. Vector operations (norms, activations, softmax, the optimizer) are left out.

Per example with a context of s tokens in L = s / k chunks, E of them expanded, and a target of o tokens:

    encoder     L windows of k + 2 positions, S = k + 2
    projector   L positions, no attention
    decoder     n = (L - E) + k E + o positions, S = n
    policy      L positions, S = L

Each part of a stage is used in one of the three ways. A policy stage runs the encoder, the projector and G times the
decoder forward, the policy once forward (the older copy that draws) and once with its gradient.

Memory. Mixed precision under full sharding (ZeRO, arXiv:1910.02054, 16 bytes per trained parameter): ``MEMORY`` has
the formulas. Activation bytes per layer and position follow what autograd keeps of the transformers modules in
bfloat16, with an attention kernel that keeps no S x S matrix; ``measure_decoder`` and ``measure_encoder`` derive them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from harness.errors import InputError, unknown
from harness.model.chunking import expanded_count
from refrag_v2 import paper_scale
from refrag_v2.paper_scale import PlannedStage, optimizer_steps

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn
    from transformers import LlamaForCausalLM

    from harness.model.encoders import Roberta
    from refrag_v2.model import RefragConfig
    from refrag_v2.policy import PolicyConfig

Use = Literal["forward", "through", "trained"]
WEIGHT_FLOPS: Mapping[Use, int] = {"forward": 2, "through": 4, "trained": 6}
ATTENTION_FLOPS: Mapping[Use, int] = {"forward": 4, "through": 12, "trained": 12}
FLOW = ("encoder", "projector", "decoder")  # the way of the data; gradients come back the other way
SPECIAL_TOKENS = 2  # <s> and </s>


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines. ``memory_bytes`` and ``peak_flops`` (bfloat16, dense, per second) are of one GPU."""

    nodes: int
    gpus_per_node: int
    gpu: str
    memory_bytes: float
    peak_flops: float

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything that a plan is made from. The shapes are names of ``harness.model``."""

    decoder: str
    decoder_shape: str
    encoder: str
    encoder_shape: str
    encoder_vocabulary: int
    model: RefragConfig
    policy: PolicyConfig
    cluster: Cluster
    stages: Mapping[str, PlannedStage]
    assumed: Mapping[str, str]


def paper(k: int) -> Scale:
    """The paper's: LLaMA-2-7B and RoBERTa-large on 8 nodes of 8 H100 (p. 19)."""
    return Scale(
        decoder=paper_scale.DECODER,
        decoder_shape="llama2-7b",
        encoder=paper_scale.ENCODER,
        encoder_shape="roberta-large",
        encoder_vocabulary=50265,
        model=paper_scale.model_config(k),
        policy=paper_scale.POLICY,
        cluster=Cluster(nodes=8, gpus_per_node=8, gpu="H100 80 GB", memory_bytes=80e9, peak_flops=989e12),
        stages=paper_scale.STAGES,
        assumed=paper_scale.ASSUMED,
    )


def ten_times_the_data(k: int) -> Scale:
    """The paper's on ten times as much text; instruction data and policy stay as they are."""
    scale = paper(k)
    return replace(scale, stages={name: _longer(stage, 10) for name, stage in scale.stages.items()})


def _longer(planned: PlannedStage, times: int) -> PlannedStage:
    if not planned.of_corpus:
        return planned
    examples = times * planned.examples
    stage = replace(planned.stage, steps=optimizer_steps(examples, planned.batch))
    return replace(planned, examples=examples, stage=stage)


def seventy_b(k: int) -> Scale:
    """The paper's with LLaMA-2-70B in place of its decoder, at the same rates and on the same machines."""
    return replace(paper(k), decoder="meta-llama/Llama-2-70b-hf", decoder_shape="llama2-70b")


SCALES: Mapping[str, Callable[[int], Scale]] = {
    "7b": paper,
    "7b-10x-data": ten_times_the_data,
    "70b": seventy_b,
}


# --- parameters


@dataclass(frozen=True, kw_only=True)
class Part:
    """The shape of one part; without ``layers`` it is no transformer.

    ``matrix`` is the weights of its linear layers, ``attention`` heads x head size. The last two are the bytes that
    autograd keeps of one layer per position in bfloat16, where the layer is trained and where a gradient only passes
    through it.
    """

    parameters: int
    matrix: int
    layers: int = 0
    layer_parameters: int = 0
    width: int = 0
    attention: int = 0
    vocabulary: int = 0
    kept_trained: int = 0
    kept_through: int = 0

    @property
    def root_parameters(self) -> int:
        """Those in no layer: embeddings, head, last norm."""
        return self.parameters - self.layers * self.layer_parameters


def measure(module: nn.Module, **shape: int) -> Part:
    """Count a module, which may lie on the meta device; ``shape`` gives the rest of ``Part``."""
    from torch import nn

    matrices = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    matrices += [m.in_proj_weight for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
    return Part(parameters=_size(module), matrix=sum(w.numel() for w in matrices), **shape)


def measure_decoder(decoder: LlamaForCausalLM) -> Part:
    """A Llama's ``Part``.

    What autograd keeps of a layer, with width h, a = heads x head size, g = key-value heads x head size, and f wide
    inside the feed-forward:

    norms, twice    4 h input in fp32; trained: 2 h before the gain, 2 h output (the linear layers' input)
    attention       2 a query, 2 g key, 2 g value, 2 a output, 4 per head (log-sum-exp in fp32)
    feed-forward    2 f gate, 2 f its SiLU, 2 f up; trained: 2 f product

    A frozen linear layer keeps nothing: its input is needed for its weights' gradient alone.
    """
    c = decoder.config
    h, f, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads
    a, g = heads * c.head_dim, c.num_key_value_heads * c.head_dim
    through = 8 * h + 4 * a + 4 * g + 6 * f + 4 * heads
    return measure(
        decoder,
        layers=c.num_hidden_layers,
        layer_parameters=_size(decoder.model.layers[0]),
        width=h,
        attention=a,
        vocabulary=c.vocab_size,
        kept_trained=through + 8 * h + 2 * f,
        kept_through=through,
    )


def measure_encoder(encoder: Roberta) -> Part:
    """A RoBERTa's ``Part``.

    What autograd keeps of a trained layer, with width h, and f wide inside the feed-forward:

    norms, twice    2 h input, 2 h output
    attention       2 h each of query, key, value and output, 4 per head (log-sum-exp in fp32)
    feed-forward    2 f before GELU, 2 f after it
    dropout, twice  h, a mask of one byte
    """
    c = encoder.model.config
    h, f = c.hidden_size, c.intermediate_size
    return measure(
        encoder,
        layers=c.num_hidden_layers,
        layer_parameters=_size(encoder.model.encoder.layer[0]),
        width=h,
        attention=h,
        kept_trained=18 * h + 4 * f + 4 * c.num_attention_heads,
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build_parts(scale: Scale) -> dict[str, Part]:
    """Decoder, encoder (without its pooler), projector and policy, built on the meta device and counted."""
    import torch
    from transformers import LlamaForCausalLM

    from harness.model.encoders import random_roberta
    from harness.model.load import shape_config
    from refrag_v2.model import Projector
    from refrag_v2.policy import Policy

    with torch.device("meta"):
        decoder = LlamaForCausalLM._from_config(shape_config(scale.decoder_shape), dtype=torch.bfloat16)
        encoder = random_roberta(scale.encoder_shape, scale.encoder_vocabulary)
        width = decoder.config.hidden_size
        projector = Projector(scale.model, encoder.width, width)
        policy = Policy(scale.policy, width)
    return {
        "decoder": measure_decoder(decoder),
        "encoder": measure_encoder(encoder),
        "projector": measure(projector),
        "policy": measure(policy, layers=scale.policy.layers, attention=scale.policy.width),
    }


# --- what a stage reads


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Positions of one example."""

    chunks: int
    window: int
    decoder: int

    @property
    def encoder(self) -> int:
        return self.chunks * self.window


def read(stage: PlannedStage, k: int, chunks: int | None = None) -> Reading:
    """One example of ``stage``: the longest, or one of the curriculum's with ``chunks`` chunks."""
    n = math.ceil(stage.context / k) if chunks is None else chunks
    expanded = expanded_count(stage.expand, n)
    target = n * k if stage.target is None else stage.target
    return Reading(chunks=n, window=k + SPECIAL_TOKENS, decoder=(n - expanded) + k * expanded + target)


def curriculum_shares(chunks: int) -> dict[int, float]:
    """Table 8's share of examples of each number of chunks up to ``chunks``, over all nine stages."""
    from harness.train.curriculum import build_curriculum

    curriculum = build_curriculum("paper", chunks)
    counts = [sum(column) for column in zip(*curriculum.mixtures, strict=True)]
    return {n: count / sum(counts) for n, count in zip(curriculum.multipliers, counts, strict=True)}


# --- FLOPs


def flops(part: Part, use: Use, positions: int, window: int) -> int:
    """FLOPs of ``part`` over ``positions`` that attend within windows of ``window`` (module docstring)."""
    attention = ATTENTION_FLOPS[use] * part.layers * part.attention * window
    return positions * (WEIGHT_FLOPS[use] * part.matrix + attention)


def use_of(stage: PlannedStage, part: str) -> Use:
    """How a stage uses one of ``FLOW``."""
    if stage.trains(part):
        return "trained"
    return "through" if any(stage.trains(before) for before in FLOW[: FLOW.index(part)]) else "forward"


def example_flops(stage: PlannedStage, parts: Mapping[str, Part], reading: Reading) -> dict[str, int]:
    """FLOPs of one example, by part."""
    L = reading.chunks
    counted = {
        "encoder": flops(parts["encoder"], use_of(stage, "encoder"), reading.encoder, reading.window),
        "projector": flops(parts["projector"], use_of(stage, "projector"), L, 0),
        "decoder": max(1, stage.rollouts)
        * flops(parts["decoder"], use_of(stage, "decoder"), reading.decoder, reading.decoder),
    }
    if stage.rollouts:
        counted["policy"] = flops(parts["policy"], "forward", L, L) + flops(parts["policy"], "trained", L, L)
    return counted


# --- memory

MEMORY: Mapping[str, str] = {
    "weights": "bf16, sharded: 2 B x parameters / GPUs",
    "gathered weights": "bf16, whole: 2 B x (parameters outside layers + 2 x largest layer)",
    "gradients": "bf16, sharded: 2 B x trained / GPUs",
    "gathered gradients": "bf16, whole: 2 B x (trained outside layers + 2 x largest trained layer)",
    "master weights": "fp32, sharded: 4 B x trained / GPUs",
    "AdamW moments": "fp32, sharded: 8 B x trained / GPUs",
    "logits and loss": "vocabulary x decoder positions x 12 B (log-softmax and two gradients in fp32), "
    "10 B where no gradient comes",
    "activations, all kept": "positions x layers x bytes per layer and position (below)",
    "activations, checkpointed": "positions x layers x 2 B x width, plus one layer's of the line above; where no "
    "gradient comes, in both lines, one layer's alone",
}
STATES = ("weights", "gathered weights", "gradients", "gathered gradients", "master weights", "AdamW moments")


def memory(scale: Scale, stage: PlannedStage, parts: Mapping[str, Part]) -> dict[str, float]:
    """Bytes per GPU by line of ``MEMORY``, at the stage's batch and its longest examples, and the two totals.

    All lines are added up, though not all peak at the same moment. Not counted: communication buffers, the allocator's
    fragmentation, and the optimizer's own scratch.
    """
    present = {name: part for name, part in parts.items() if name in FLOW or stage.rollouts}
    trained = [part for name, part in present.items() if stage.trains(name)]
    gpus = scale.cluster.gpus
    reading, rows = read(stage, scale.model.k), rows_per_gpu(scale, stage)

    def gathered(units: list[Part]) -> int:
        return 2 * (sum(p.root_parameters for p in units) + 2 * max(p.layer_parameters for p in units))

    n_trained = sum(part.parameters for part in trained)
    decoded = rows * reading.decoder * max(1, stage.rollouts)
    lines: dict[str, float] = {
        "weights": 2 * sum(part.parameters for part in present.values()) / gpus,
        "gathered weights": gathered(list(present.values())),
        "gradients": 2 * n_trained / gpus,
        "gathered gradients": gathered(trained),
        "master weights": 4 * n_trained / gpus,
        "AdamW moments": 8 * n_trained / gpus,
        "logits and loss": (10 if stage.rollouts else 12) * parts["decoder"].vocabulary * decoded,
    }
    kept = checkpointed = one_layer = 0
    for name, positions in (("decoder", decoded), ("encoder", rows * reading.encoder)):
        part, use = parts[name], use_of(stage, name)
        a_layer = positions * (part.kept_through if use == "through" else part.kept_trained)
        # Where no gradient comes nothing is kept: about one layer's tensors are there while it runs.
        one_layer = max(one_layer, a_layer)
        if use != "forward":
            kept += part.layers * a_layer
            checkpointed += part.layers * positions * 2 * part.width
    lines["activations, all kept"] = max(kept, one_layer)
    lines["activations, checkpointed"] = checkpointed + one_layer
    fixed = sum(lines[name] for name in (*STATES, "logits and loss"))
    lines["total, all kept"] = fixed + lines["activations, all kept"]
    lines["total, checkpointed"] = fixed + lines["activations, checkpointed"]
    return lines


def rows_per_gpu(scale: Scale, stage: PlannedStage) -> int:
    """Examples per GPU and pass."""
    return math.ceil(stage.batch / (scale.cluster.gpus * stage.stage.accumulation))


# --- the plan


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage. ``flops`` is at full length throughout; ``curriculum_flops`` has Table 8's lengths, where they vary.

    Positions are of one example; ``flops_by_part`` is of one example too.
    """

    tokens: int
    examples: int
    batch: int
    steps: int
    lr: float
    trained: tuple[str, ...]
    chunks: int
    encoder_positions: int
    decoder_positions: int
    flops_by_part: Mapping[str, int]
    flops: float
    gpu_hours: float
    days: float
    cost_usd: float
    curriculum_flops: float
    curriculum_gpu_hours: float
    curriculum_cost_usd: float
    stated: Mapping[str, str]
    assumed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Total:
    flops: float
    gpu_hours: float
    days: float
    cost_usd: float
    curriculum_gpu_hours: float
    curriculum_cost_usd: float


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """Another scale in one line. ``memory_bytes`` is of one GPU, checkpointed, in the stage that needs most."""

    decoder: str
    tokens: int
    total: Total
    memory_bytes: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of the seed document's table "Estimated Resources", word for word; ``gpu_hours`` is GPUs x time."""

    phase: str
    gpus: str
    time: str
    cost: str
    gpu_hours: int


SEED_CLAIMS = (
    Claim(phase="Phase 1", gpus="1× A100", time="1 day", cost="~$50", gpu_hours=24),
    Claim(phase="Phase 2", gpus="1× A100", time="1 week", cost="~$350", gpu_hours=168),
    Claim(phase="Phase 3", gpus="8× A100", time="1 week", cost="~$2,800", gpu_hours=8 * 168),
    Claim(phase="Phase 4", gpus="64× H100", time="2 weeks", cost="~$50,000", gpu_hours=64 * 336),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that ``refrag-bench plan`` prints; its field names are the keys of ``--json``."""

    scale: str
    k: int
    decoder: str
    encoder: str
    cluster: Cluster
    mfu: float
    price_usd: float
    parameters: Mapping[str, int]
    memory_bytes: Mapping[str, Mapping[str, float]]
    memory_formulas: Mapping[str, str]
    activation_bytes: Mapping[str, int]
    rows_per_gpu: Mapping[str, int]
    stages: Mapping[str, StageCost]
    total: Total
    beyond: Mapping[str, Beyond]
    assumed: Mapping[str, str]
    seed_claims: tuple[Claim, ...]


def make_plan(name: str, *, k: int, mfu: float, price_usd: float) -> Plan:
    """The plan of a scale. ``mfu`` is the share of the GPUs' peak that counts, ``price_usd`` of one GPU for one hour.

    Raises ``InputError`` for an unknown scale, a k that it lacks, an MFU outside (0, 1] or a price below 0.
    """
    if name not in SCALES:
        raise unknown("scale", name, SCALES)
    if not 0 < mfu <= 1:
        raise InputError(f"expected an MFU above 0 and at most 1, got {mfu}")
    if not 0 <= price_usd < math.inf:
        raise InputError(f"expected a price of at least 0 USD per GPU-hour, got {price_usd}")
    scale = SCALES[name](k)
    parts = build_parts(scale)
    stages = {key: stage_cost(scale, stage, parts, mfu, price_usd) for key, stage in scale.stages.items()}
    counts = {key: part.parameters for key, part in parts.items()}
    return Plan(
        scale=name,
        k=k,
        decoder=scale.decoder,
        encoder=scale.encoder,
        cluster=scale.cluster,
        mfu=mfu,
        price_usd=price_usd,
        parameters=counts | {"total": sum(counts.values())},
        memory_bytes={key: memory(scale, stage, parts) for key, stage in scale.stages.items()},
        memory_formulas=MEMORY,
        activation_bytes={
            "decoder, trained": parts["decoder"].kept_trained,
            "decoder, frozen": parts["decoder"].kept_through,
            "encoder, trained": parts["encoder"].kept_trained,
        },
        rows_per_gpu={key: rows_per_gpu(scale, stage) for key, stage in scale.stages.items()},
        stages=stages,
        total=_total(stages.values()),
        beyond={other: _beyond(SCALES[other](k), mfu, price_usd) for other in SCALES if other != name},
        assumed={**scale.assumed, **_assumed(scale, mfu, price_usd)},
        seed_claims=SEED_CLAIMS,
    )


def _beyond(scale: Scale, mfu: float, price_usd: float) -> Beyond:
    parts = build_parts(scale)
    costs = [stage_cost(scale, stage, parts, mfu, price_usd) for stage in scale.stages.values()]
    most = max(memory(scale, stage, parts)["total, checkpointed"] for stage in scale.stages.values())
    return Beyond(
        decoder=scale.decoder,
        tokens=sum(cost.tokens for cost in costs),
        total=_total(costs),
        memory_bytes=most,
        fits=most <= scale.cluster.memory_bytes,
    )


def stage_cost(scale: Scale, stage: PlannedStage, parts: Mapping[str, Part], mfu: float, price_usd: float) -> StageCost:
    """Tokens, steps, FLOPs, GPU-hours and cost of one stage."""
    k, cluster, optimizer = scale.model.k, scale.cluster, stage.stage.optimizer
    reading = read(stage, k)
    by_part = example_flops(stage, parts, reading)
    read_examples = stage.stage.steps * stage.batch
    total = read_examples * sum(by_part.values())
    shares = curriculum_shares(reading.chunks) if stage.curriculum else {reading.chunks: 1.0}
    varied = read_examples * sum(
        share * sum(example_flops(stage, parts, read(stage, k, chunks)).values()) for chunks, share in shares.items()
    )
    hours, varied_hours = gpu_hours(total, cluster, mfu), gpu_hours(varied, cluster, mfu)
    return StageCost(
        tokens=stage.tokens,
        examples=stage.examples,
        batch=stage.batch,
        steps=stage.stage.steps,
        lr=optimizer.lr,
        trained=tuple(part for part in (*FLOW, "policy") if (part in FLOW or stage.rollouts) and stage.trains(part)),
        chunks=reading.chunks,
        encoder_positions=reading.encoder,
        decoder_positions=reading.decoder,
        flops_by_part=by_part,
        flops=total,
        gpu_hours=hours,
        days=hours / cluster.gpus / 24,
        cost_usd=hours * price_usd,
        curriculum_flops=varied,
        curriculum_gpu_hours=varied_hours,
        curriculum_cost_usd=varied_hours * price_usd,
        stated=stage.stated,
        assumed=stage.assumed,
    )


def gpu_hours(flops: float, cluster: Cluster, mfu: float) -> float:
    """FLOPs at a share ``mfu`` of the peak of one GPU, in hours of one GPU."""
    return flops / (mfu * cluster.peak_flops) / 3600


def _total(stages: Collection[StageCost]) -> Total:
    return Total(**{f.name: sum(getattr(stage, f.name) for stage in stages) for f in fields(Total)})


def _assumed(scale: Scale, mfu: float, price_usd: float) -> dict[str, str]:
    """What holds for every stage."""
    return {
        "MFU": f"{mfu:g} of {scale.cluster.peak_flops / 1e12:g} TFLOP/s (bf16, dense); not measured. Recomputing "
        "activations is not counted as work: with checkpointing the GPUs do a third more than is counted, a half where "
        "the decoder is frozen",
        "price": f"{price_usd:.2f} USD per GPU-hour; a rented {scale.cluster.gpu} costs more or less than that",
        "lengths": "every example at its longest; the columns T8 draw the number of chunks by the paper's "
        "curriculum instead, up to s / k, with cpt's target at its full length (left open by the paper)",
        "precision": "bf16 weights and gradients, fp32 master copy and moments; bf16 and FSDP are stated (p. 19), "
        "the dtype of the optimizer's state is not",
        "memory": "parameters outside layers stay gathered, of the layers this one and the next; no communication "
        "buffers, no fragmentation; with dropout in the encoder only",
        "not counted": "evaluation, baselines, data preparation, checkpoints, failures, and every run but one",
    }
