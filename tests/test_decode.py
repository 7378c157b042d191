"""Our forward and our loop against transformers', on the same weights."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.model.decode import Prompts, greedy, left_pad
from harness.model.llama import Llama

STOP = 7
PAD = 0


def random_model(kv_heads: int, seed: int, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=12,
        max_position_embeddings=256,
        pad_token_id=PAD,
        eos_token_id=STOP,
        bos_token_id=1,
        initializer_range=0.3,  # large enough that the argmax is not always the same token
    )
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def ragged_rows(seed: int, batch: int, longest: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (batch,), generator=generator).tolist()
    return [torch.randint(8, 97, (n,), generator=generator).tolist() for n in lengths]


def ours(model: LlamaForCausalLM, rows: list[list[int]], n: int, stop: list[int]) -> torch.Tensor:
    llama = Llama(model)
    ids, mask = left_pad(rows, PAD, torch.device("cpu"))
    columns = greedy(Prompts(llama, llama.embed(ids), mask, n), max_new_tokens=n, stop_ids=stop, pad_id=PAD)
    return torch.stack(list(columns), dim=1)


def theirs(model: LlamaForCausalLM, rows: list[list[int]], n: int, stop: list[int]) -> torch.Tensor:
    ids, mask = left_pad(rows, PAD, torch.device("cpu"))
    generated = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=n, do_sample=False, eos_token_id=stop or None, pad_token_id=PAD
    )
    return generated[:, ids.shape[1] :]


LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, LLAMA3], ids=["plain", "tied", "llama3-rope"])
def test_equals_transformers_generate_token_for_token(kv_heads: int, seed: int, changes: dict[str, object]) -> None:
    model = random_model(kv_heads, seed, **changes)
    rows = ragged_rows(seed, batch=5, longest=40)
    expected = theirs(model, rows, 24, [STOP])
    got = ours(model, rows, 24, [STOP])
    assert len(set(expected.flatten().tolist())) > 5, "a model that repeats one token proves nothing"
    assert torch.equal(got, expected)


def test_stops_when_every_row_has_stopped() -> None:
    model = random_model(2, seed=1)
    rows = ragged_rows(1, batch=3, longest=10)
    free = theirs(model, rows, 12, [])
    stop = sorted(set(free[:, 3].tolist()))  # every row meets one of these at the fourth column at the latest
    got = ours(model, rows, 12, stop)
    assert got.shape[1] <= 4
    assert torch.equal(got, theirs(model, rows, 12, stop))


def test_a_row_does_not_feel_its_neighbours() -> None:
    model = random_model(2, seed=2)
    rows = ragged_rows(2, batch=6, longest=50)
    together = ours(model, rows, 16, [])
    alone = torch.cat([ours(model, [row], 16, []) for row in rows])
    assert torch.equal(together, alone)


def test_prefill_logits_equal_the_full_forward() -> None:
    model = random_model(2, seed=3)
    rows = ragged_rows(3, batch=4, longest=30)
    ids, mask = left_pad(rows, PAD, torch.device("cpu"))
    llama = Llama(model)
    cache = llama.new_cache(4, ids.shape[1])
    with torch.inference_mode():
        got = llama.prefill(llama.embed(ids), mask, cache)
        expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_sharing_weights_leaves_the_model_as_it_was() -> None:
    model = random_model(2, seed=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Llama(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_caller_is_not_left_in_inference_mode() -> None:
    model = random_model(2, seed=5)
    llama = Llama(model)
    ids, mask = left_pad([[9, 10]], PAD, torch.device("cpu"))
    for _ in greedy(Prompts(llama, llama.embed(ids), mask, 3), max_new_tokens=3, stop_ids=[], pad_id=PAD):
        assert not torch.is_inference_mode_enabled()
