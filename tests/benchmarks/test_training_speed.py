"""REFRAG v2's training, one step of joint reconstruction and one of CPT, against transformers' Trainer on the decoder.

Both train everything with AdamW for as many steps on the same decoder: ours by ``harness.train.loop``, batches drawn as
it goes; Trainer on ready rows of as many tokens in all. A token of context counts as one whether it stands as itself or
in a chunk, so the ratio says what compression gives a training, and what the encoder and our loop cost. Neither saves.

MFU is model FLOPs (``slurm.plan.utilisation``) over time and over the fastest matrix product of the same process
(``harness.roofline``): the gap to the FLOP bound is what is missing to 1. It is no share of the work saved: a way that
does less work per token can be faster at a lower MFU.
"""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from interleaved import interleave, report
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from harness.data.world.practice import Copying, Growing, Quizzing
from harness.data.world.tokenizer import build_tokenizer
from harness.roofline import measure_ceilings
from harness.train import checkpoint
from harness.train.loop import train
from harness.train.stage import AdamW, Stage
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.recipe import RefragRecipe
from slurm.plan.utilisation import Arithmetic

BATCH, CONTEXT, K, STEPS, LR = 4, 256, 16, 2, 1e-4
WIDTHS = {"cpu": (256, 4), "cuda": (2048, 16)}  # width, layers

pytest.importorskip("accelerate")


def decoder_for(device: str) -> LlamaForCausalLM:
    width, layers = WIDTHS[device.partition(":")[0]]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=974,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, dtype=torch.float32)


def tokens_of(batch: dict[str, torch.Tensor]) -> int:
    """With every chunk written out."""
    return int(batch["attention_mask"].sum() - batch["n_chunks"].sum() + (batch["chunk"] >= 0).sum())


def test_against_trainer(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(checkpoint, "save", lambda *_: None)
    precision: Any = "float32" if device == "cpu" else "bfloat16"
    tokenizer = build_tokenizer()
    growing = Growing(k=K, steps=1, max_chunks=CONTEXT // K, tokens=BATCH * CONTEXT, curriculum="none")
    recipes = [
        RefragRecipe(
            stage=Stage(name=name, steps=STEPS, optimizer=AdamW(lr=LR), precision=precision, checkpoint_every=1000),
            after=None,
            requires=(),
            model=RefragConfig(k=K),
            data=data,
            language_weight=weight,
        )
        for name, data, weight in (
            ("reconstruction", Copying(growing=growing), 0.0),
            ("cpt", Quizzing(growing=growing), 0.05),
        )
    ]
    model = Refrag(RefragConfig(k=K), decoder_for(device)).to(device)
    plain = decoder_for(device).to(device)
    flops, tokens = {"REFRAG v2": 0.0, "Trainer": 0.0}, 0
    for recipe in recipes:  # every call draws the same batches
        drawn, counted = recipe.batches(model, tokenizer), Arithmetic.of(model)
        assert counted is not None
        for _ in range(STEPS):
            batch = next(drawn)
            tokens += tokens_of(batch)
            counted.add(batch)
        flops["REFRAG v2"] += counted.flops()
    length = tokens // (len(recipes) * STEPS * BATCH)
    ids = torch.randint(974, (len(recipes) * STEPS * BATCH, length), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]
    counted = Arithmetic.of(plain)
    assert counted is not None
    counted.add({"attention_mask": torch.ones_like(ids)})
    flops["Trainer"] = counted.flops()

    losses: dict[str, list[float]] = {name: [] for name in flops}
    calls = iter(range(1000))

    def ours() -> int:
        for recipe in recipes:
            found = train(
                recipe.stage,
                model,
                recipe.batches(model, tokenizer),
                recipe.loss(),
                tmp_path / f"{next(calls)}",
                device=torch.device(device),
            )
            assert found.final_loss is not None
            losses["REFRAG v2"].append(found.final_loss)
        return tokens

    def theirs() -> int:
        settings = TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            per_device_train_batch_size=BATCH,
            max_steps=len(recipes) * STEPS,
            learning_rate=LR,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            max_grad_norm=1.0,
            adam_beta2=0.95,
            bf16=precision == "bfloat16",
            use_cpu=device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=plain, args=settings, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        losses["Trainer"].append(trainer.train().training_loss)
        return ids.numel()

    rates = interleave({"REFRAG v2": ours, "Trainer": theirs}, rounds=5)
    assert losses["Trainer"][-1] < losses["Trainer"][0] and min(losses["REFRAG v2"][-2:]) < losses["REFRAG v2"][0]
    assert tokens - ids.numel() < len(rows), "the same tokens, but for the rounding of a row's length"
    ceilings = measure_ceilings(torch.device(device), getattr(torch, precision))
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    title = (
        f"{STEPS} steps of reconstruction and {STEPS} of CPT against {2 * STEPS} of Trainer, batch {BATCH}, {CONTEXT} "
        f"tokens of context, k = {K}, {precision}, {device}; "
        + ", ".join(f"{name} {size:.2f} M" for name, size in sizes.items())
    )
    report(title, "tokens/s", rates, "REFRAG v2")
    print(f"  FLOP bound: matrix products at {ceilings.flops_per_s / 1e9:,.1f} GFLOP/s in {precision}")
    for name, done in (("REFRAG v2", tokens), ("Trainer", ids.numel())):
        rate, each = statistics.median(rates[name]), flops[name] / done
        bound = ceilings.flops_per_s / each
        print(f"  {name:10} {each / 1e6:6.2f} MFLOP/token, bound {bound:10,.0f} tokens/s, MFU {rate / bound:.2f}")
