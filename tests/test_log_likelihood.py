"""Scoring a given continuation: the likelihoods are those of the model over the same tokens, and of generating them.

The reference of every method is a plain forward in transformers (or of the method's own model, proven elsewhere) over
one row at a time, without padding and without a cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.cepe_checkpoint import save_cepe
from baselines.cepe_model import Cepe, CepeConfig, build_cepe
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.llama import Llama
from harness.model.load import load_decoder, random_decoder
from harness.protocol import LogLikelihood, Passage, TokenBlock
from refrag_v2.checkpoint import save_refrag
from refrag_v2.model import Refrag, RefragConfig
from slurm.jobs.system import open_system

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
K, PASSAGE = 4, 8
TRAINING = {"data": "world", "init": "random", "recipe": {"template": "bare"}}
CLOSE: dict[str, float] = dict(rtol=0, atol=2e-5)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "full context": ("standard_rag", {}),
    "no context": ("no_context", {}),
    "LLaMA_K": ("llama_k", {"k": 4}),
    "REPLUG": ("replug", {}),
    "CEPE": ("cepe", {}),
    "CEPE, recomputed": ("cepe", {"cross_kv": "recomputed"}),
    "REFRAG": ("refrag_v2", {}),
    "REFRAG, expanded": ("refrag_v2", {"expand": 1.0, "select": "all"}),
    "REFRAG, a third": ("refrag_v2", {"expand": 0.34, "select": "random"}),
}
EACH = pytest.mark.parametrize("method", METHODS)


def far_from_uniform(model: torch.nn.Module) -> None:
    """At their random start all inputs look alike, and a wrong token would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with a decoder, and REFRAG's and CEPE's parts beside it: every method reads with the same decoder."""
    folder = tmp_path_factory.mktemp("scored") / "final"
    torch.manual_seed(1)
    decoder = random_decoder("tiny", seed=5)
    far_from_uniform(decoder)
    config = CepeConfig(cross_layers=2, encoder="decoder:1")
    cepe = build_cepe(config, decoder)
    refrag = Refrag(RefragConfig(k=K), decoder)
    save_refrag(refrag, TOKENIZER, TRAINING, folder)
    beside = save_cepe(config, cepe, TOKENIZER, TRAINING, folder.with_name("cepe"))
    for name in ("cepe.json", "cepe.safetensors"):
        (folder / name).write_bytes((beside / name).read_bytes())
    return folder


def opened(checkpoint: Path, method: str) -> Any:
    name, options = METHODS[method]
    return open_system(name, str(checkpoint), options, dtype="float32", device="cpu").system


def ids(seed: int, n: int) -> list[int]:
    return random.Random(seed).choices(range(300, 900), k=n)


def passages(context: Sequence[int]) -> list[TokenBlock]:
    return [([], list(context[i : i + PASSAGE])) for i in range(0, len(context), PASSAGE)]


def scored(system: Any, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
    context = system.encode_tokens([passages(row) for row in contexts])
    found: list[Tensor] = system.log_probabilities([""] * len(contexts), continuations, context)
    return found


def by_transformers(checkpoint: Path, prompt: Sequence[int], continuation: Sequence[int]) -> Tensor:
    model = load_decoder(str(checkpoint)).model
    whole = torch.tensor([[TOKENIZER.bos_token_id, *prompt, *continuation]])
    with torch.no_grad():
        log_p = model(input_ids=whole).logits.log_softmax(-1)[0, len(prompt) : -1]
    return log_p.gather(1, torch.tensor(continuation)[:, None])[:, 0]


CONTEXT, CONTINUATION = ids(0, 24), ids(1, 7)


def test_full_context_is_the_decoders_logits_over_context_and_continuation(checkpoint: Path) -> None:
    (ours,) = scored(opened(checkpoint, "full context"), [CONTEXT], [CONTINUATION])
    torch.testing.assert_close(ours, by_transformers(checkpoint, CONTEXT, CONTINUATION), **CLOSE)


def test_what_each_baseline_leaves_of_the_context_is_what_it_scores_under(checkpoint: Path) -> None:
    (none,) = scored(opened(checkpoint, "no context"), [CONTEXT], [CONTINUATION])
    torch.testing.assert_close(none, by_transformers(checkpoint, [], CONTINUATION), **CLOSE)
    (last,) = scored(opened(checkpoint, "LLaMA_K"), [CONTEXT], [CONTINUATION])
    torch.testing.assert_close(last, by_transformers(checkpoint, CONTEXT[-6:], CONTINUATION), **CLOSE)
    (mixed,) = scored(opened(checkpoint, "REPLUG"), [CONTEXT], [CONTINUATION])
    each = torch.stack([by_transformers(checkpoint, text, CONTINUATION) for _, text in passages(CONTEXT)])
    torch.testing.assert_close(mixed, each.logsumexp(0) - math.log(3), **CLOSE)


def test_everything_expanded_refrag_is_full_context(checkpoint: Path) -> None:
    (ours,) = scored(opened(checkpoint, "REFRAG, expanded"), [CONTEXT], [CONTINUATION])
    (full,) = scored(opened(checkpoint, "full context"), [CONTEXT], [CONTINUATION])
    torch.testing.assert_close(ours, full, **CLOSE)


def test_refrag_is_its_models_forward_over_chunks_and_tokens(checkpoint: Path) -> None:
    system = opened(checkpoint, "REFRAG")
    model: Refrag = system.model
    with torch.no_grad():
        chunks = model.encode(model.inputs([text for _, text in passages(CONTEXT)], TOKENIZER))
        codes = [TOKENIZER.bos_token_id, *(-1 - i for i in range(6)), *CONTINUATION]
        log_p = model(torch.tensor([codes]), chunks).log_softmax(-1)[0, 6:-1]
    (ours,) = scored(system, [CONTEXT], [CONTINUATION])
    torch.testing.assert_close(ours, log_p.gather(1, torch.tensor(CONTINUATION)[:, None])[:, 0], **CLOSE)


@pytest.mark.parametrize("method", ["CEPE", "CEPE, recomputed"])
def test_cepe_is_its_models_forward_beside_the_passages(checkpoint: Path, method: str) -> None:
    system = opened(checkpoint, method)
    model: Cepe = system.model
    row = torch.tensor([[TOKENIZER.bos_token_id, *CONTINUATION]])
    encoder = torch.tensor([[text for _, text in passages(CONTEXT)]])
    with torch.no_grad():
        everything = torch.ones_like(row), torch.arange(row.shape[1])[None]
        logits = model(row, *everything, encoder, torch.ones_like(encoder)).logits
    expected = logits.log_softmax(-1)[0, :-1].gather(1, torch.tensor(CONTINUATION)[:, None])[:, 0]
    (ours,) = scored(system, [CONTEXT], [CONTINUATION])
    torch.testing.assert_close(ours, expected, **CLOSE)


@EACH
@torch.inference_mode()
def test_what_is_generated_has_the_probability_that_it_was_generated_with(checkpoint: Path, method: str) -> None:
    system = opened(checkpoint, method)
    context = system.encode_tokens([passages(CONTEXT), passages(ids(2, 13))])
    reader = system.reader(["", ""], context, 5)
    log_p, tokens = [], []
    logits = reader.first()
    for _ in range(5):
        step = logits.log_softmax(-1)
        tokens.append(step.argmax(-1))
        log_p.append(step.max(-1).values)
        logits = reader.then(tokens[-1])
    answers = torch.stack(tokens, dim=1).tolist()
    columns = list(system.generate(["", ""], context, max_new_tokens=5))
    assert torch.stack(columns, dim=1).tolist() == answers, "no row ends early, or the comparison is void"
    ours = torch.stack(system.log_probabilities(["", ""], answers, context))
    torch.testing.assert_close(ours, torch.stack(log_p, dim=1), **CLOSE)


@EACH
def test_a_row_scores_the_same_alone_and_beside_others_of_any_length(checkpoint: Path, method: str) -> None:
    system = opened(checkpoint, method)
    contexts = [CONTEXT, ids(3, 3), [], ids(4, 16)]
    continuations = [CONTINUATION, ids(5, 2), ids(6, 9), ids(7, 1)]
    together = scored(system, contexts, continuations)
    for context, continuation, ours in zip(contexts, continuations, together, strict=True):
        (alone,) = scored(system, [context], [continuation])
        assert len(ours) == len(continuation)
        torch.testing.assert_close(ours, alone, **CLOSE)


@EACH
def test_passages_as_text_and_as_their_tokens_are_one_context(checkpoint: Path, method: str) -> None:
    system = opened(checkpoint, method)
    assert isinstance(system, LogLikelihood)
    row = [Passage(id="", title="", text=text) for text in ("The rival of is", "was the birthplace")]
    as_text, as_tokens = system.encode([row]), system.encode_tokens(system.prompting.passages([row]))
    (one,), (other,) = (system.log_probabilities(["what"], [CONTINUATION], c) for c in (as_text, as_tokens))
    assert torch.equal(one, other)


def test_the_probabilities_of_all_tokens_sum_to_one(checkpoint: Path) -> None:
    """Over the whole vocabulary, whatever the context: what is scored is a distribution."""
    system = opened(checkpoint, "REPLUG")
    every = [[token] for token in range(len(TOKENIZER))]
    total = torch.cat(scored(system, [CONTEXT] * len(every), every)).double().exp().sum()
    assert abs(float(total) - 1) < 1e-4


def test_an_empty_continuation_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="at least one token in every continuation"):
        scored(opened(checkpoint, "full context"), [CONTEXT, CONTEXT], [CONTINUATION, []])


def test_the_last_positions_logits_are_those_of_prefill(checkpoint: Path) -> None:
    llama = Llama(load_decoder(str(checkpoint)).model)
    inputs = llama.embed(torch.tensor([CONTEXT]))
    mask = torch.ones((1, len(CONTEXT)), dtype=torch.bool)
    with torch.no_grad():
        along = llama.prefill_along(inputs, mask, llama.new_cache(1, 24), 3)
        last = llama.prefill(inputs, mask, llama.new_cache(1, 24))
    assert along.shape == (1, 3, 974)
    torch.testing.assert_close(along[:, -1], last, **CLOSE)
