"""Our decode loop against ``transformers.generate``: same weights, same batch, one process."""

from pathlib import Path

import pytest
import torch
from interleaved import interleave, report

from harness.model.decode import Prompts, greedy, left_pad
from harness.model.llama import Llama
from harness.model.load import load_decoder


@pytest.mark.parametrize("prompt_tokens", [32, 288])
def test_batch_of_eight(checkpoint: Path, device: str, prompt_tokens: int) -> None:
    decoder = load_decoder(str(checkpoint), device=device)
    model, llama = decoder.model, Llama(decoder.model)
    new_tokens, batch = 64, 8
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(300, 900, (prompt_tokens - i,), generator=generator).tolist() for i in range(batch)]
    ids, mask = left_pad(rows, 0, torch.device(device))

    def ours() -> torch.Tensor:
        columns = greedy(
            Prompts(llama, llama.embed(ids), mask, new_tokens), max_new_tokens=new_tokens, stop_ids=[], pad_id=0
        )
        return torch.stack(list(columns), dim=1)

    def theirs() -> torch.Tensor:
        model.generation_config.eos_token_id = None
        out = model.generate(
            ids, attention_mask=mask.long(), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        return out[:, ids.shape[1] :]

    assert torch.equal(ours(), theirs())
    ways = {"ours": lambda: ours().numel(), "transformers.generate": lambda: theirs().numel()}
    title = f"decode, batch {batch}, {prompt_tokens} prompt tokens, {new_tokens} new, {torch.get_num_threads()} threads"
    report(title, "tokens/s", interleave(ways, rounds=9), "ours")
