"""The systems of the latency lab, all around one decoder of random weights, and the arithmetic that each cannot avoid.

Encoders have the shapes that go with the decoder's: RoBERTa-large and CEPE's own beside 7 B parameters, some 4 and 7 %
of the decoder beside a smaller one. Everything is built where it is to stay. Weights are shared: there is one decoder,
and one RoBERTa for REFRAG at every k.

A lane's work counts what its method does at least (``harness.roofline``): the policy's two small layers, norms,
softmaxes and copies are left out, except KV reuse's copy of stored keys and values into the prompt's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from harness import roofline
from harness.model.chunking import expanded_count
from harness.roofline import EncoderShape, LlamaShape
from harness.roofline_limits import NOTHING, Work
from results.latency.journals import AGAIN, REFERENCE
from slurm.latency.encoders import ENCODERS, check_shape

if TYPE_CHECKING:
    import torch
    from torch import nn

    from harness.model.encoders import Roberta
    from harness.model.load import Decoder
    from harness.protocol import System
    from suites.latency import Workload

RATES = (8, 16, 32)
EXPAND = 0.1
V1_K = 64


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The least work of one request: before the question is known, up to the first token, and per later token."""

    encode: Work
    prefill: Work
    decode: Work


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One system as it is timed. ``work`` takes a workload, and how many tokens of the answer are there already."""

    label: str
    name: str
    settings: Mapping[str, Any]
    system: System[Any]
    weights_bytes: int
    itemsize: int  # bytes of a number
    work: Callable[[Workload, int], Phases]


def build_lanes(shape: str, decoder: Decoder) -> list[Lane]:
    """All lanes around ``decoder``, which has the named ``shape``; the first is the reference, and runs twice.

    Raises ``InputError`` for a shape without encoders.
    """
    check_shape(shape)
    roberta, cepe_encoder = ENCODERS[shape]
    return [
        *_standard_rag(decoder),
        _transformers(decoder),
        *_refrag(decoder, roberta),
        _kv_reuse(decoder),
        *_cepe(decoder, cepe_encoder),
        _refrag_v1(decoder, roberta),
    ]


def _standard_rag(decoder: Decoder) -> list[Lane]:
    from baselines.standard_rag import StandardRAGConfig

    shape, size = LlamaShape.of(decoder.model.config), decoder.model.dtype.itemsize

    def work(load: Workload, decoded: int) -> Phases:
        read = load.length + load.question_tokens
        return Phases(
            encode=NOTHING,
            prefill=roofline.prefill(shape, new=read, batch=load.batch, itemsize=size),
            decode=roofline.decode_step(shape, past=read + decoded, batch=load.batch, itemsize=size),
        )

    system = StandardRAGConfig(max_positions=_ANY).build(decoder)
    return [
        Lane(
            label=label,
            name="standard_rag",
            settings={},
            system=system,
            weights_bytes=_bytes_of(decoder.model),
            itemsize=size,
            work=work,
        )
        for label in (REFERENCE, AGAIN)
    ]


def _transformers(decoder: Decoder) -> Lane:
    from baselines.transformers_generate import TransformersGenerate

    reference, _ = _standard_rag(decoder)
    system = TransformersGenerate("text", _ANY, decoder)
    return replace(reference, label="transformers.generate", name="transformers_generate", system=system)


def _kv_reuse(decoder: Decoder) -> Lane:
    from baselines.kv_reuse import KvReuseConfig

    shape, size = LlamaShape.of(decoder.model.config), decoder.model.dtype.itemsize

    def work(load: Workload, decoded: int) -> Phases:
        n_passages = load.batch * load.length // load.passage_tokens
        copied = 2 * roofline.kv_bytes(shape, load.length, load.batch, size)  # read where it is kept, written here
        question = dict(new=load.question_tokens, past=load.length, batch=load.batch, itemsize=size)
        return Phases(
            encode=roofline.prefill(shape, new=load.passage_tokens, batch=n_passages, itemsize=size),
            prefill=roofline.prefill(shape, **question) + Work(flops=0, bytes=copied),
            decode=roofline.decode_step(
                shape, past=load.length + load.question_tokens + decoded, batch=load.batch, itemsize=size
            ),
        )

    return Lane(
        label="KV reuse",
        name="kv_reuse",
        settings={},
        system=KvReuseConfig(max_positions=_ANY).build(decoder),
        weights_bytes=_bytes_of(decoder.model),
        itemsize=size,
        work=work,
    )


def _cepe(decoder: Decoder, encoder: str) -> list[Lane]:
    from baselines.cepe import CROSS_KV, CepeSystem, CepeSystemConfig
    from baselines.cepe_model import CepeConfig, build_cepe
    from harness.model.beside import match

    config = decoder.model.config
    layers = config.num_hidden_layers
    with decoder.model.device:
        model = build_cepe(CepeConfig(cross_layers=layers, encoder=f"random:{encoder}"), decoder.model)
    match(model, decoder.model)
    shape, size = LlamaShape.of(config), decoder.model.dtype.itemsize
    own = EncoderShape.of_llama(model.encoder.config, len(model.encoder.layers))

    def lane(cross_kv: str) -> Lane:
        cached = cross_kv == "cached"

        def work(load: Workload, decoded: int) -> Phases:
            def cross(new: int, kv: bool) -> Work:
                return roofline.cross_attention(
                    shape,
                    layers=layers,
                    encoder_width=model.encoder.width,
                    new=new,
                    read=load.length,
                    batch=load.batch,
                    itemsize=size,
                    kv=kv,
                )

            rows = load.batch * load.length // load.passage_tokens
            encoded = roofline.encode(own, rows=rows, positions=load.passage_tokens, itemsize=size)
            q = load.question_tokens
            return Phases(
                encode=encoded + cross(0, kv=True) if cached else encoded,
                prefill=roofline.prefill(shape, new=q, batch=load.batch, itemsize=size) + cross(q, kv=not cached),
                decode=roofline.decode_step(shape, past=q + decoded, batch=load.batch, itemsize=size)
                + cross(1, kv=not cached),
            )

        return Lane(
            label="CEPE" if cached else "CEPE (K/V recomputed)",
            name="cepe",
            settings={"cross_kv": cross_kv},
            system=CepeSystem(CepeSystemConfig(cross_kv=cross_kv, max_positions=_ANY), decoder, model.eval()),
            weights_bytes=_bytes_of(model),
            itemsize=size,
            work=work,
        )

    return [lane(cross_kv) for cross_kv in CROSS_KV]


def _refrag(decoder: Decoder, encoder: str) -> list[Lane]:
    from harness.model.beside import match
    from harness.model.encoders import random_roberta
    from refrag_v2.model import Refrag, RefragConfig
    from refrag_v2.policy import Policy, PolicyConfig
    from refrag_v2.system import RefragV2, RefragV2Config

    config = decoder.model.config
    with decoder.model.device:
        shared = random_roberta(encoder, config.vocab_size)
        policy = Policy(PolicyConfig(), config.hidden_size)

    def model(k: int) -> Refrag:
        with decoder.model.device:
            built = Refrag(
                RefragConfig(k=k, encoder=f"random:{encoder}", pooling="cls", norm=None), decoder.model, encoder=shared
            )
        built.policy = policy
        match(built, decoder.model)
        return built.eval()

    def lane(k: int, built: Refrag, expand: float, select: str) -> Lane:
        work = _compressed(decoder, EncoderShape.of_roberta(shared.model.config), k, expand)
        label = f"REFRAG k={k}" + (f" +{expand:.0%} {select}" if expand else "")
        system = RefragV2Config(k=k, expand=expand, select=select, max_positions=_ANY)
        return Lane(
            label=label,
            name="refrag_v2",
            settings={"k": k, "expand": expand, "select": select},
            system=RefragV2(system, decoder, built),
            weights_bytes=_bytes_of(built),
            itemsize=decoder.model.dtype.itemsize,
            work=work,
        )

    models = {k: model(k) for k in RATES}
    return [
        *(lane(k, built, 0.0, "none") for k, built in models.items()),
        *(lane(k, built, EXPAND, select) for k, built in models.items() for select in ("first", "policy")),
    ]


def _refrag_v1(decoder: Decoder, encoder: str) -> Lane:
    from harness.model.beside import match
    from refrag_v1.model import RefragV1, RefragV1Config
    from refrag_v1.system import RefragV1System, RefragV1SystemConfig

    with decoder.model.device:
        model = RefragV1(RefragV1Config(k=V1_K, encoder=f"random:{encoder}"), decoder.model)
    match(model, decoder.model)
    work = _compressed(decoder, EncoderShape.of_roberta(cast("Roberta", model.encoder).model.config), V1_K, 0.0)
    return Lane(
        label=f"REFRAG v1 k={V1_K}",
        name="refrag_v1",
        settings={"k": V1_K, "expand": 0.0},
        system=RefragV1System(RefragV1SystemConfig(k=V1_K, max_positions=_ANY), decoder, model.eval()),
        weights_bytes=_bytes_of(model),
        itemsize=decoder.model.dtype.itemsize,
        work=work,
    )


def _compressed(decoder: Decoder, encoder: EncoderShape, k: int, expand: float) -> Callable[[Workload, int], Phases]:
    """The work of a decoder that reads chunks of ``k``, a share of ``expand`` of them as tokens."""
    shape, size = LlamaShape.of(decoder.model.config), decoder.model.dtype.itemsize

    def work(load: Workload, decoded: int) -> Phases:
        own = load.length // k
        chunks = load.batch * own
        read = own + (k - 1) * expanded_count(expand, own) + load.question_tokens
        return Phases(
            encode=roofline.encode(encoder, rows=chunks, positions=k, itemsize=size)
            + roofline.project(pooled=encoder.width, width=shape.width, chunks=chunks, itemsize=size),
            prefill=roofline.prefill(shape, new=read, batch=load.batch, itemsize=size),
            decode=roofline.decode_step(shape, past=read + decoded, batch=load.batch, itemsize=size),
        )

    return work


_ANY = 1 << 30  # positions: random weights have no window


def _bytes_of(module: nn.Module) -> int:
    """Its weights, each counted once."""
    parameters: dict[int, torch.Tensor] = {id(p): p for p in module.parameters()}
    return sum(p.nbytes for p in parameters.values())
