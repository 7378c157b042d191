"""The plan against published counts, against counted FLOPs, against what autograd keeps, and as a command."""

import argparse
import dataclasses
import json
import random
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import shared_path
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from harness.cli import main as door
from harness.cli import plan as verb
from harness.errors import InputError
from harness.model.chunking import EncoderInputs
from harness.model.encoders import Roberta, random_roberta
from harness.model.load import random_decoder, shape_config
from harness.train.chunk_rows import condense, expand_at_random, lay_out
from harness.train.losses import token_losses
from harness.train.optim import freeze
from harness.train.rows import Block, Row
from refrag_v2.grpo import GrpoConfig, PolicyTraining, grpo
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.paper_scale import CORPUS_TOKENS, RATES, SETTINGS, STAGES, PlannedStage, optimizer_steps
from refrag_v2.policy import Policy, PolicyConfig
from slurm.plan import plan
from slurm.plan.flops import Use, example_flops, flops
from slurm.plan.parts import Part, build_parts, measure, measure_decoder, measure_encoder
from slurm.plan.reading import Reading, curriculum_shares, read
from slurm.plan.scales import paper

PAPER = {k: plan.make_plan("7b", k=k, mfu=0.4, price_usd=2.5) for k in RATES}


# --- parameters


def test_parameters_are_the_published_ones() -> None:
    counts = PAPER[16].parameters
    roberta_large, pooler = 355_359_744, 1024 * 1024 + 1024
    assert counts["decoder"] == 6_738_415_616
    assert counts["encoder"] == roberta_large - pooler
    assert counts["projector"] == (1024 * 4096 + 4096) + (4096 * 4096 + 4096) + 1  # and our gain
    assert counts["total"] == sum(count for part, count in counts.items() if part != "total")


def test_a_layer_of_llama2_7b() -> None:
    decoder = build_parts(paper(16))["decoder"]
    assert decoder.layer_parameters == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert decoder.root_parameters == 2 * 32000 * 4096 + 4096  # embedding, head, last norm


def test_matrices_of_the_policy() -> None:
    """The attention's fused input weights are no linear layer of their own, but multiply like one."""
    W, policy = 128, build_parts(paper(16))["policy"]
    per_layer = 4 * W**2 + 2 * 4 * W**2
    assert policy.matrix == 4096 * W + 2 * per_layer + W**2 + W


# --- the recipe


def test_steps_and_tokens() -> None:
    assert optimizer_steps(CORPUS_TOKENS // 4096, 256) == 19_073
    steps = {name: stage.stage.steps for name, stage in STAGES.items()}
    assert steps == {"reconstruction": 76_294, "cpt": 76_294, "mixed": 19_073, "finetune": 4_297, "policy": 2_000}
    assert STAGES["cpt"].tokens == pytest.approx(80e9, rel=1e-6)
    assert STAGES["mixed"].tokens == pytest.approx(20e9, rel=1e-6)


@pytest.mark.parametrize("name", STAGES)
def test_every_setting_is_either_stated_or_assumed(name: str) -> None:
    stage = STAGES[name]
    assert sorted([*stage.stated, *stage.assumed]) == sorted(SETTINGS)
    assert stage.stage.name == name
    assert all(re.search(r"p\. \d+", source) for source in stage.stated.values())


def test_learning_rates_and_trained_parts_are_the_papers() -> None:
    rates = {name: stage.lr for name, stage in PAPER[16].stages.items()}
    assert rates | {"mixed": 0, "policy": 0} == {
        "reconstruction": 2e-4,
        "cpt": 5e-5,
        "mixed": 0,
        "finetune": 2e-5,
        "policy": 0,
    }
    trained = {name: set(stage.trained) for name, stage in PAPER[16].stages.items()}
    assert trained["reconstruction"] == {"encoder", "projector"}
    assert trained["policy"] == {"policy"}
    assert trained["cpt"] == trained["mixed"] == trained["finetune"] == {"encoder", "projector", "decoder"}


@pytest.mark.parametrize(
    ("name", "k", "encoder", "decoder"),
    [
        ("cpt", 16, 128 * 18, 128 + 2048),
        ("reconstruction", 16, 128 * 18, 128 + 2048),
        ("reconstruction", 32, 64 * 34, 64 + 2048),
        ("mixed", 16, 128 * 18, 115 + 13 * 16 + 2048),  # 10 % of 128 chunks are 13
        ("finetune", 8, 256 * 10, 256 + 256),
    ],
)
def test_positions_read(name: str, k: int, encoder: int, decoder: int) -> None:
    stage = PAPER[k].stages[name]
    assert (stage.encoder_positions, stage.decoder_positions) == (encoder, decoder)


def test_a_shorter_example_of_the_curriculum() -> None:
    assert read(STAGES["reconstruction"], 16, 4).decoder == 4 + 64  # copies what it reads
    assert read(STAGES["cpt"], 16, 4).decoder == 4 + 2048


def test_curriculum_shares_are_table_8s_row_sums() -> None:
    shares = curriculum_shares(256)
    rows = [2000, 1979 + 22, 2000, 4000, 4001, 4001, 8002, 8002, 8002]  # of the printed cells, each within rounding
    assert list(shares) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert list(shares.values()) == pytest.approx([row / 42_008 for row in rows], abs=1e-4)


# --- FLOPs


def counted(run: Callable[[], object]) -> int:
    """FLOPs of ``run`` by torch's counter; the math back end, because the counter passes over the CPU's fused one."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("use", ["trained", "through", "forward"])
def test_flops_of_llama2_7b_are_the_counters(use: Use) -> None:
    """On the meta device: the real shape at its real length, to the last FLOP."""
    T = 2176
    with torch.device("meta"):
        decoder = LlamaForCausalLM._from_config(shape_config("llama2-7b"), dtype=torch.bfloat16)
        x_BTE = torch.empty(1, T, 4096, dtype=torch.bfloat16, requires_grad=use != "forward")
        mask = torch.ones(1, 1, T, T, dtype=torch.bool)
    decoder.requires_grad_(use == "trained")

    def run() -> None:
        logits = decoder(inputs_embeds=x_BTE, attention_mask=mask, use_cache=False).logits
        if use != "forward":
            logits.sum().backward()

    assert flops(measure_decoder(decoder), use, T, T) == counted(run)


def small_model(k: int) -> Refrag:
    torch.manual_seed(0)
    return Refrag(RefragConfig(k=k, encoder="random:roberta-tiny", pooling="mean"), random_decoder("tiny", seed=0))


def small_parts(model: Refrag) -> dict[str, Part]:
    parts = {
        "decoder": measure_decoder(model.decoder),
        "encoder": measure_encoder(model.encoder),
        "projector": measure(model.projector),
    }
    if model.policy is not None:
        shape = model.policy.config
        parts["policy"] = measure(model.policy, layers=shape.layers, attention=shape.width)
    return parts


def small_batch(model: Refrag, rows: int, context: int, target: int) -> dict[str, Tensor]:
    ids = torch.randint(20, 900, (rows, context + target), generator=torch.Generator().manual_seed(1)).tolist()
    given = [Row([], [Block([], row[:context])], row[context:], [True] * target) for row in ids]
    pad = type("Padding", (), {"pad_token_id": 0})()
    return lay_out(given, model.config.k, lambda texts: model.inputs(texts, pad), 0)


@pytest.mark.parametrize("name", ["reconstruction", "cpt", "mixed"])
def test_flops_of_a_step_are_the_counters(name: str) -> None:
    """Two examples through the real model, forward and backward, with the parts frozen that the stage freezes."""
    stage, k, context, target = STAGES[name], 8, 320, 96
    model = small_model(k)
    freeze(model, stage.stage)
    laid_out = small_batch(model, 2, context, target)
    batch = condense(laid_out, expand_at_random(laid_out["n_chunks"], (stage.expand,), random.Random(0)))
    read = EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"])
    run = counted(
        lambda: token_losses(model(batch["input_ids"], model.encode(read)), batch["labels"]).mean().backward()
    )

    reading = small_reading(stage, k, context, target)
    assert batch["input_ids"].shape[1] == reading.decoder
    ours = example_flops(stage, small_parts(model), reading)
    assert 2 * sum(ours.values()) == pytest.approx(run, rel=0.02)


def test_flops_of_a_policy_step_are_the_counters() -> None:
    """The real GRPO step: G passes of the frozen decoder, the encoder once, two of the policy and its gradient."""
    stage, k, context, target = STAGES["policy"], 8, 320, 96
    model = small_model(k)
    model.policy = Policy(PolicyConfig(width=32), model.decoder.config.hidden_size)
    training = PolicyTraining(model)
    freeze(training, stage.stage)
    batch = small_batch(model, 2, context, target)
    run = counted(lambda: grpo(training, batch, GrpoConfig()).backward())
    ours = example_flops(stage, small_parts(model), small_reading(stage, k, context, target))
    assert 2 * sum(ours.values()) == pytest.approx(run, rel=0.02)


def small_reading(stage: PlannedStage, k: int, context: int, target: int) -> Reading:
    """What the plan expects of an encoder that shares the decoder's tokens: it has no special ones."""
    small = dataclasses.replace(stage, context=context, target=target)
    return dataclasses.replace(read(small, k), window=k)


# --- memory


def bytes_kept(run: Callable[[], object], model: nn.Module) -> int:
    """Bytes of everything that autograd saves during ``run``, weights aside, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(count for address, count in storages.items() if address not in weights)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("trained", [True, False])
def test_a_decoder_layer_keeps_what_the_plan_says(trained: bool, kv_heads: int) -> None:
    """The difference between two layers and one, in bfloat16."""
    B, T = 2, 64
    kept = []
    for layers in (1, 2):
        config = LlamaConfig(
            hidden_size=256, intermediate_size=688, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=kv_heads, vocab_size=32,
        )  # fmt: skip
        model = LlamaForCausalLM(config).bfloat16().requires_grad_(trained)
        x_BTE = torch.randn(B, T, 256, dtype=torch.bfloat16, requires_grad=True)
        kept.append(bytes_kept(lambda m=model, x=x_BTE: m.model(inputs_embeds=x, use_cache=False), model))
    part = measure_decoder(model)
    expected = part.kept_trained if trained else part.kept_through
    assert (kept[1] - kept[0]) / (B * T) == pytest.approx(expected, rel=0.005)


def test_an_encoder_layer_keeps_what_the_plan_says() -> None:
    """Dropout off: its masks take a byte on a GPU, two on a CPU."""
    N, S, kept = 3, 18, []
    for layers in (1, 2):
        model = random_roberta("roberta-tiny", 40)
        model.model.encoder.layer = model.model.encoder.layer[:layers]
        encoder: Roberta = model.bfloat16().eval()
        ids = torch.randint(3, 40, (N, S))
        kept.append(bytes_kept(lambda e=encoder, i=ids: e(i, torch.ones_like(i)), encoder))
    masks = 2 * encoder.width
    assert (kept[1] - kept[0]) / (N * S) == pytest.approx(measure_encoder(encoder).kept_trained - masks, rel=0.01)


class Peak(TorchDispatchMode):
    """The most bytes of storages alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.live:
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata)
        self.bytes = max(self.bytes, sum(self.live.values()))
        return out


@pytest.mark.parametrize(("gradient", "expected"), [(True, 12), (False, 10)])
def test_the_loss_takes_twelve_bytes_per_logit(gradient: bool, expected: int) -> None:
    V, T = 4000, 128
    head = nn.Linear(8, V, bias=False).bfloat16()
    x_BTE, labels_BT = torch.randn(1, T, 8, dtype=torch.bfloat16), torch.randint(0, V, (1, T))
    with torch.set_grad_enabled(gradient), Peak() as peak:
        loss = token_losses(head(x_BTE), labels_BT).mean()
        if gradient:
            loss.backward()
    assert peak.bytes / (V * T) == pytest.approx(expected, rel=0.02)


def test_states_are_sixteen_bytes_per_trained_parameter_and_two_per_frozen() -> None:
    counts, sharded = PAPER[16].parameters, ("weights", "gradients", "master weights", "AdamW moments")
    model = counts["total"] - counts["policy"]
    states = {name: 64 * sum(lines[line] for line in sharded) for name, lines in PAPER[16].memory_bytes.items()}
    assert states["cpt"] == 16 * model
    assert states["reconstruction"] == 2 * model + 14 * (counts["encoder"] + counts["projector"])
    assert states["policy"] == 2 * counts["total"] + 14 * counts["policy"]


def test_memory_of_cpt_by_hand() -> None:
    lines = PAPER[16].memory_bytes["cpt"]
    decoded, encoded, layer = 4 * 2176, 4 * 128 * 18, 202_383_360
    decoder_bytes, encoder_bytes = 24 * 4096 + 8 * 11008 + 4 * 32, 18 * 1024 + 4 * 4096 + 4 * 16
    outside = PAPER[16].parameters["total"] - PAPER[16].parameters["policy"] - 32 * layer - 24 * 12_596_224
    assert lines["gathered weights"] == 2 * (outside + 2 * layer) == lines["gathered gradients"]
    assert lines["logits and loss"] == 12 * 32000 * decoded
    assert lines["activations, all kept"] == 32 * decoded * decoder_bytes + 24 * encoded * encoder_bytes
    inputs = 2 * (32 * decoded * 4096 + 24 * encoded * 1024)
    assert lines["activations, checkpointed"] == inputs + decoded * decoder_bytes
    parts = sum(count for line, count in lines.items() if not line.startswith(("total", "activations")))
    assert lines["total, all kept"] == parts + lines["activations, all kept"]
    assert lines["total, checkpointed"] == parts + lines["activations, checkpointed"]


def test_a_stage_without_gradients_keeps_no_layers() -> None:
    lines, stage = PAPER[16].memory_bytes["policy"], PAPER[16].stages["policy"]
    rows = 4 * STAGES["policy"].rollouts
    one_layer = rows * stage.decoder_positions * PAPER[16].activation_bytes["decoder, trained"]
    assert lines["activations, all kept"] == lines["activations, checkpointed"] == one_layer
    assert lines["logits and loss"] == 10 * 32000 * rows * stage.decoder_positions


# --- hours and cost


def test_hours_and_cost_follow_from_the_flops() -> None:
    made = PAPER[16]
    stage = made.stages["cpt"]
    assert stage.flops == 76_294 * 256 * sum(stage.flops_by_part.values())
    assert stage.gpu_hours == pytest.approx(stage.flops / (0.4 * 989e12) / 3600)
    assert stage.days == pytest.approx(stage.gpu_hours / 64 / 24)
    assert made.total.cost_usd == pytest.approx(2.5 * sum(stage.gpu_hours for stage in made.stages.values()))
    half = plan.make_plan("7b", k=16, mfu=0.2, price_usd=5)
    assert half.total.gpu_hours == pytest.approx(2 * made.total.gpu_hours)
    assert half.total.cost_usd == pytest.approx(4 * made.total.cost_usd)


@pytest.mark.parametrize("k", RATES)
def test_the_curriculum_shortens_two_stages(k: int) -> None:
    for name, stage in PAPER[k].stages.items():
        ratio = stage.curriculum_flops / stage.flops
        assert 0 < ratio < 1 if name in ("reconstruction", "cpt") else ratio == 1


# --- other scales


def test_ten_times_the_data_is_ten_times_the_steps_of_what_reads_it() -> None:
    made, seven = plan.make_plan("7b-10x-data", k=16, mfu=0.4, price_usd=2.5), PAPER[16]
    for name, stage in made.stages.items():
        times = 10 if name in ("reconstruction", "cpt", "mixed") else 1
        assert stage.tokens == times * seven.stages[name].tokens
        assert stage.steps == pytest.approx(times * seven.stages[name].steps, abs=5)
        assert stage.gpu_hours == pytest.approx(times * seven.stages[name].gpu_hours, rel=1e-3)
    assert made.memory_bytes == seven.memory_bytes


def test_parameters_of_llama2_70b_are_the_published_ones() -> None:
    made = plan.make_plan("70b", k=16, mfu=0.4, price_usd=2.5)
    assert made.parameters["decoder"] == 68_976_648_192
    assert {name: stage.steps for name, stage in made.stages.items()} == {
        name: stage.steps for name, stage in PAPER[16].stages.items()
    }


def test_the_plan_of_one_scale_has_the_others_in_one_line() -> None:
    for name, beyond in PAPER[16].beyond.items():
        whole = plan.make_plan(name, k=16, mfu=0.4, price_usd=2.5)
        assert beyond.total == whole.total
        assert beyond.tokens == sum(stage.tokens for stage in whole.stages.values())
        most = max(lines["total, checkpointed"] for lines in whole.memory_bytes.values())
        assert (beyond.memory_bytes, beyond.fits) == (most, most <= whole.cluster.memory_bytes)
        assert "7b" in whole.beyond
    assert list(PAPER[16].beyond) == ["7b-10x-data", "70b"]


# --- the command


def run_verb(*words: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scale", "7B"), "unknown scale '7B' (did you mean '7b'?); valid choices: 70b, 7b, 7b-10x-data"),
        (("--mfu", "0"), "expected an MFU above 0 and at most 1, got 0.0"),
        (("--mfu", "1.5"), "at most 1, got 1.5"),
        (("--mfu", "nan"), "at most 1, got nan"),
        (("--price", "-1"), "expected a price of at least 0 USD"),
        (("--price", "inf"), "expected a price of at least 0 USD"),
        (("--k", "7"), "expected a k that the paper trained (8, 16, 32, 64), got 7"),
        (("--k", "many"), "invalid int value: 'many'"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "VERBS", ("plan",))
    try:
        code = door.main(["plan", *words])
    except SystemExit as exit_:  # argparse's own errors
        code = exit_.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


def test_bad_input_raises_for_callers_too() -> None:
    with pytest.raises(InputError, match="valid choices: 70b, 7b, 7b-10x-data"):
        plan.make_plan("paper", k=16, mfu=0.4, price_usd=2.5)


def test_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("--json") == 0
    printed = json.loads(capsys.readouterr().out)
    documented = verb.EPILOG.split("keys of --json:")[1]
    named = re.sub(r"\([^)]*\)", "", documented).replace("\n", " ").split(",")
    assert [name.strip() for name in named] == list(printed)
    assert (printed["mfu"], printed["price_usd"]) == (verb.MFU, verb.PRICE_USD)
    assert printed["parameters"]["decoder"] == 6_738_415_616
    assert printed["stages"]["cpt"]["steps"] == 76_294
    assert list(printed["stages"]) == list(printed["memory_bytes"]) == list(STAGES)


def test_every_line_of_memory_has_its_formula() -> None:
    for lines in PAPER[16].memory_bytes.values():
        assert [line for line in lines if not line.startswith("total")] == list(PAPER[16].memory_formulas)


def test_the_text_fits_and_ends_with_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("--k", "8", "--price", "123.45", "--mfu", "0.04") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    last = text.strip().split("\n\n")[-1]
    assert last.startswith("Assumed")
    flowing = " ".join(last.split())
    for stage, planned in STAGES.items():
        assert all(f"{stage}, {name}: {reason}" in flowing for name, reason in planned.assumed.items())
    assert "123.45 USD per GPU-hour" in flowing


def test_the_seeds_claim_is_its_own_and_moves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_verb()
    before = capsys.readouterr().out.split("\n\n")
    (claim,) = (block for block in before if "$50,000" in block)
    assert claim.startswith("Claim of the seed document")
    assert "64× H100" in claim
    monkeypatch.setattr(plan, "SEED_CLAIMS", ())
    run_verb()
    after = capsys.readouterr().out.split("\n\n")
    assert [block for block in before if block != claim] == [b for b in after if not b.startswith("Claim of")]


def test_the_seeds_claims_are_word_for_word() -> None:
    seed = shared_path("SEED.md").read_text()
    for claim in plan.SEED_CLAIMS:
        assert f"| {claim.phase} | {claim.gpus} | {claim.time} | {claim.cost} |" in seed
    hours = {"day": 24, "week": 168, "weeks": 168}
    for claim in plan.SEED_CLAIMS:
        gpus, (count, unit) = int(claim.gpus.split("×")[0]), claim.time.split()
        assert claim.gpu_hours == gpus * int(count) * hours[unit]
