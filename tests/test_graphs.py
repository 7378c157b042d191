"""Recorded passes against eager ones: the same bits for every system, and recorded only where that pays.

Where there is no GPU, ``frozen`` stands in for CUDA graphs: what it replays has addresses and numbers of the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_decode import LLAMA3, PAD, ragged_rows, random_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines.kv_reuse import assemble, read_apart
from harness.model import graphs
from harness.model.decode import Prompts, greedy, left_pad
from harness.model.graphs import POSITIONS, SHAPES, Part
from harness.model.llama import KVCache, Llama
from harness.model.load import Decoder, random_decoder
from slurm.latency.lanes import build_lanes
from suites.latency import Ids, Workload

CPU = torch.device("cpu")
UNPADDED = [[9, 10, 11, 12, 13], [20, 21, 22, 23, 24]]


class Tape(TorchDispatchMode):
    """Writes down every operation with its tensors, and does the same again into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for kept, again in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if kept.data_ptr() != again.data_ptr():
                    kept.copy_(again)


def frozen(parts: Sequence[Part]) -> list[Part]:
    """What a CUDA graph is: the operations of one call, with the addresses and numbers that they had then."""
    tapes = [Tape() for _ in parts]
    for tape, part in zip(tapes, parts, strict=True):
        with tape:
            part()
    return [tape.replay for tape in tapes]


def steps(
    llama: Llama, rows: list[list[int]], n: int, cache: KVCache | None = None, between: Any = None
) -> list[Tensor]:
    """Logits of the prompt's next token and of ``n`` further ones, which are the same whatever the logits say."""
    ids, mask = left_pad(rows, PAD, CPU)
    reader = Prompts(llama, llama.embed(ids), mask, n + 1, cache=cache, between=between)
    return [reader.first(), *(reader.then(torch.arange(len(rows)) * 3 + step + 8) for step in range(n))]


def same(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len({tuple(row.flatten().tolist()) for row in expected}) == len(expected), "equal steps prove nothing"


# The same bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [ragged_rows(3, batch=4, longest=30), UNPADDED, [[9]]], ids=["padded", "not", "one"])
@pytest.mark.parametrize(("kv_heads", "changes"), [(1, {}), (2, LLAMA3), (4, {"tie_word_embeddings": True})])
@torch.inference_mode()
def test_a_replayed_pass_has_the_bits_of_an_eager_one(
    kv_heads: int, changes: dict[str, Any], rows: list[list[int]], dtype: torch.dtype
) -> None:
    model = random_model(kv_heads, seed=0, **changes).to(dtype)
    eager, recorded = Llama(model), Llama(model, frozen)
    same(steps(recorded, rows, 12), steps(eager, rows, 12))
    shapes = len({(len(rows), max(map(len, rows))), (len(rows), 1)})
    assert recorded.passes == {"recorded": shapes, "prefill replayed": 1, "decode replayed": 12}
    assert eager.passes == {"prefill eager": 1, "decode eager": 12}


@torch.inference_mode()
def test_what_is_recorded_belongs_to_no_prompt() -> None:
    """One recording serves caches of any length, in turn and in between each other."""
    model = random_model(2, seed=1)
    eager, recorded = Llama(model), Llama(model, frozen)
    prompts = [ragged_rows(seed, batch=3, longest=10 + 15 * seed) for seed in range(3)]
    for rows in [*prompts, *prompts]:
        same(steps(recorded, rows, 6), steps(eager, rows, 6))
    assert recorded.passes["recorded"] == 1 + len({max(map(len, rows)) for rows in prompts})

    def reader(llama: Llama, rows: list[list[int]]) -> Prompts:
        ids, mask = left_pad(rows, PAD, CPU)
        return Prompts(llama, llama.embed(ids), mask, 9)

    columns = [list(greedy(reader(eager, rows), max_new_tokens=9, stop_ids=[], pad_id=PAD)) for rows in prompts]
    turns = [greedy(reader(recorded, rows), max_new_tokens=9, stop_ids=[], pad_id=PAD) for rows in prompts]
    for step in range(9):
        for own, turn in zip(columns, turns, strict=True):
            assert torch.equal(next(turn), own[step])


@torch.inference_mode()
def test_what_a_pass_returned_and_what_it_was_given_stay_as_they_are() -> None:
    llama = Llama(random_model(2, seed=2), frozen)
    ids, mask = left_pad(UNPADDED, PAD, CPU)
    inputs = llama.embed(ids).clone()
    cache, before = llama.new_cache(2, 8), inputs.clone()
    first = llama.prefill(inputs, mask, cache)
    kept = first.clone()
    second = llama.decode_one_token(torch.tensor([3, 4]), cache)
    llama.decode_one_token(torch.tensor([5, 6]), cache)
    llama.prefill(inputs, mask, llama.new_cache(2, 8))
    assert torch.equal(first, kept) and not torch.equal(first, second)
    assert torch.equal(inputs, before)


@torch.inference_mode()
def test_what_a_method_inserts_is_another_for_every_prompt() -> None:
    """Some layers get back the very states that they gave (CEPE's lower ones), others new ones."""
    model = random_model(4, seed=3)
    eager, recorded = Llama(model), Llama(model, frozen)
    found = []
    for scale in (0.5, -0.25):

        def between(index: int, x_BTE: Tensor, scale: float = scale) -> Tensor:
            return x_BTE if index == 1 else x_BTE + scale * x_BTE.roll(1, -1)

        found.append(steps(eager, UNPADDED, 5, between=between))
        same(steps(recorded, UNPADDED, 5, between=between), found[-1])
    assert recorded.passes["recorded"] == 2
    assert not torch.equal(found[0][0], found[1][0])


@torch.inference_mode()
def test_before_the_prompt_may_stand_what_was_read_long_ago() -> None:
    model = random_model(2, seed=4)
    eager, recorded = Llama(model), Llama(model, frozen)
    blocks = [[[9, 10, 11], [12, 13]], [[14, 15, 16, 17]]]  # of two rows; the second is padded
    asked = [[30, 31], [32, 33, 34]]
    found = []
    for llama in (eager, recorded):
        rows = [read_apart(llama, row, PAD) for row in blocks]
        found.append(steps(llama, asked, 6, cache=assemble(llama, rows, room=3 + 6)))
    same(found[1], found[0])
    assert recorded.passes["decode replayed"] == 6 and not recorded.passes["prefill eager"]


@pytest.mark.parametrize("batch", [1, 2])
def test_every_system_of_the_lab_answers_the_same(batch: int) -> None:
    model = random_decoder("tiny", seed=0)
    tokenizer: Any = Ids(model.config.vocab_size)
    lanes = build_lanes("tiny", Decoder(model=model, tokenizer=tokenizer, checkpoint="", source=""))
    load = Workload(length=256, batch=batch, passage_tokens=128, question_tokens=16)
    seen = set()
    for lane in lanes:
        request = load.request(tokenizer, 0)
        if not hasattr(lane.system, "llama"):
            continue  # transformers' own forward

        def answer(system: Any = lane.system, request: Any = request) -> Tensor:
            context = system.encode(request.passages)
            return torch.stack(list(system.generate(request.questions, context, max_new_tokens=5)))

        expected = answer()
        lane.system.llama = recorded = Llama(model, frozen)
        assert torch.equal(answer(), expected), lane.label
        assert recorded.passes["decode replayed"] == 4 and not recorded.passes["decode eager"], lane.label
        seen.add(lane.name)
    assert seen >= {"standard_rag", "kv_reuse", "cepe", "refrag_v1", "refrag_v2"}


@torch.no_grad()
def test_a_pass_that_was_recorded_in_inference_mode_is_replayed_outside_of_it() -> None:
    model = random_model(2, seed=5)
    llama = Llama(model, list)
    with torch.inference_mode():
        inside = steps(llama, UNPADDED, 4)
    same(steps(llama, UNPADDED, 4), inside)
    assert llama.passes["recorded"] == 2


# What is recorded


class Recorder:
    """Records as ``frozen`` does, unless it is to fail; counts how often it was asked."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.asked = error, 0

    def __call__(self, parts: Sequence[Part]) -> Sequence[Part]:
        self.asked += 1
        if self.error:
            raise self.error
        return frozen(parts)


@torch.inference_mode()
def test_long_prompts_stay_eager() -> None:
    llama = Llama(random_model(2, seed=6), Recorder())
    for batch, T in ((1, POSITIONS), (1, POSITIONS + 1), (2, POSITIONS // 2), (2, POSITIONS // 2 + 1)):
        llama.passes.clear()
        llama.prefill(
            llama.embed(torch.full((batch, T), 9)), torch.ones((batch, T), dtype=torch.bool), llama.new_cache(batch, T)
        )
        assert llama.passes["prefill replayed"] == (batch * T <= POSITIONS), (batch, T)


@torch.inference_mode()
def test_ever_other_shapes_are_recorded_so_many_times_only() -> None:
    record = Recorder()
    llama = Llama(random_model(2, seed=7), record)
    for T in range(1, SHAPES + 4):
        steps(llama, [[9] * T], 1)
    assert record.asked == llama.passes["recorded"] == SHAPES
    assert llama.passes["prefill eager"] == 3
    assert llama.passes["decode eager"] == 0, "the step was among the first"


@torch.inference_mode()
def test_scoring_stays_eager() -> None:
    llama = Llama(random_model(2, seed=8), Recorder())
    ids, mask = left_pad(UNPADDED, PAD, CPU)
    llama.prefill_along(llama.embed(ids), mask, llama.new_cache(2, 5), 3)
    assert llama.passes == {"prefill eager": 1}


def test_with_gradients_a_pass_stays_eager() -> None:
    """Nothing can be written to a given address then."""
    llama = Llama(random_model(2, seed=9), Recorder())
    assert steps(llama, UNPADDED, 2)[-1].requires_grad
    assert llama.passes == {"prefill eager": 1, "decode eager": 2}


@torch.inference_mode()
def test_rotary_embeddings_that_change_with_the_length_stay_eager() -> None:
    rope = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    llama = Llama(random_model(2, seed=10, **rope), Recorder())
    steps(llama, UNPADDED, 2)
    assert llama.passes == {"prefill eager": 1, "decode eager": 2}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), "refused: out of memory"),
        (RuntimeError("operation not permitted\nwhen stream is capturing"), "refused: operation not permitted"),
    ],
    ids=["memory", "capture"],
)
@torch.inference_mode()
def test_what_cannot_be_recorded_is_run_eagerly_and_said(error: RuntimeError, said: str) -> None:
    model, record = random_model(2, seed=11), Recorder(error)
    llama = Llama(model, record)
    expected = steps(Llama(model), UNPADDED, 3)
    for _ in range(2):
        same(steps(llama, UNPADDED, 3), expected)
    assert record.asked == 2, "each shape is tried once"
    assert llama.passes == {said: 2, "prefill eager": 2, "decode eager": 6}


@torch.inference_mode()
def test_any_other_error_is_raised() -> None:
    llama = Llama(random_model(2, seed=12), Recorder(TypeError("unexpected argument")))
    with pytest.raises(TypeError, match="unexpected"):
        steps(llama, UNPADDED, 1)


@torch.inference_mode()
def test_few_calls_are_left_between_the_parts() -> None:
    """What the host does per layer of a decode step is what the graphs are for; views are calls too."""

    def calls(record: Callable[[Sequence[Part]], Sequence[Part]] | None, layers: int) -> int:
        llama = Llama(random_model(4, seed=13, num_hidden_layers=layers), record)
        cache = llama.new_cache(1, 9)
        steps(llama, [[9, 10]], 2, cache=cache)  # recorded here
        with Tape() as tape:
            llama.decode_one_token(torch.tensor([9]), cache)
        return len(tape.calls)

    def nothing(parts: Sequence[Part]) -> list[Part]:
        return [lambda: None for _ in parts]

    assert calls(None, 4) - calls(None, 3) > 30
    assert calls(nothing, 4) - calls(nothing, 3) < 15


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU; this machine has none")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_cuda_graphs_answer_as_eager_passes_do(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    model = random_model(2, seed=14).to(device, dtype)
    eager, recorded = Llama(model), Llama(model)
    eager.graphs = graphs.Graphs(None, eager.passes)
    for rows in (ragged_rows(3, batch=4, longest=30), UNPADDED, UNPADDED):
        ids, mask = left_pad(rows, PAD, device)
        got, expected = (
            list(greedy(Prompts(llama, llama.embed(ids), mask, 12), max_new_tokens=12, stop_ids=[], pad_id=PAD))
            for llama in (recorded, eager)
        )
        assert torch.equal(torch.stack(got), torch.stack(expected))
    assert recorded.passes["decode replayed"] == 33 and recorded.passes["decode eager"] == 0, recorded.passes
    assert not any(name.startswith(graphs.REFUSED) for name in recorded.passes), recorded.passes
