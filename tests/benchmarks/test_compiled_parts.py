"""Would ``torch.compile`` pay on a CPU? The parts between attentions compiled, against the eager pass, in turn.

One thread, float32, the latency lab's CPU shape, seconds of CPU time. Compiling needs a C++ compiler; what it takes is
not counted but printed, in seconds on the wall, less where inductor finds an earlier run's.
"""

import time
from collections.abc import Sequence

import pytest
import torch

from harness.model.graphs import Part
from harness.model.llama import Llama
from harness.model.load import random_decoder
from results.latency.journals import ratio

ROUNDS = 9
DECODED = 4  # steps of a round


@pytest.mark.parametrize("positions", [1, 32, 512])
def test_the_parts_of_a_pass(positions: int) -> None:
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # each layer's part is a function of its own
    model = random_decoder("llama-100m", seed=0)
    past = 512 if positions == 1 else 0

    def compiled(parts: Sequence[Part]) -> list[Part]:
        return [torch.compile(part, dynamic=False, fullgraph=True) for part in parts]

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, past or positions), generator=generator)
    mask, token = torch.ones_like(ids, dtype=torch.bool), ids[:, 0]

    caches, answered = {}, {}

    def seconds(name: str) -> float:
        """Of one prefill, or of some decode steps; the thread's own, so that what else runs here is in neither."""
        llama = ways[name]
        if name not in caches:
            caches[name] = llama.new_cache(1, ids.shape[1] + DECODED)
            llama.prefill_along(llama.embed(ids), mask, caches[name], 2)  # never recorded
        caches[name].length = past
        start = time.process_time()
        if past:
            for _ in range(DECODED):
                answered[name] = llama.decode_one_token(token, caches[name])
        else:
            answered[name] = llama.prefill(llama.embed(ids), mask, caches[name])
        return time.process_time() - start

    with torch.inference_mode():
        ways = {"eager": Llama(model), "again": Llama(model), "compiled": Llama(model, compiled)}
        start = time.perf_counter()
        for name in [*ways, *ways]:
            seconds(name)
        warm_up_s = time.perf_counter() - start
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS):
            for name in list(ways)[turn % 3 :] + list(ways)[: turn % 3]:
                taken[name].append(seconds(name))
    assert ways["compiled"].passes["recorded"] == 1
    torch.testing.assert_close(answered["compiled"], answered["eager"], atol=1e-4, rtol=1e-4)
    what = f"decode after {past}" if past else f"prefill of {positions}"
    print(f"\n{what}: compiling and warm-up took {warm_up_s:.0f} s")
    for name in ("again", "compiled"):
        found = ratio(taken["eager"], taken[name])
        assert found
        print(f"  eager over {name:10} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]")
