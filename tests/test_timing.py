"""The clock sees what comes out, in order, and counts tokens only."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness import timing

CPU = torch.device("cpu")


def test_a_batch_is_encoded_once_and_every_column_is_kept() -> None:
    calls: list[str] = []

    def encode() -> str:
        calls.append("encode")
        return "context"

    def generate(context: str) -> Iterator[torch.Tensor]:
        calls.append(f"generate from {context}")
        yield torch.tensor([5, 6])
        yield torch.tensor([7, 0])
        yield torch.tensor([8, 0])

    timed = timing.timed_batch(encode, generate, CPU, pad_id=0)
    assert calls == ["encode", "generate from context"]
    assert torch.stack(timed.columns, 1).tolist() == [[5, 7, 8], [6, 0, 0]]
    assert timed.generated_tokens == 4
    assert len(timed.ttit_s) == 2
    assert 0 < timed.ttft_s <= timed.ttft_with_encode_s <= timed.total_s
    assert timed.total_s == pytest.approx(timed.ttft_with_encode_s + sum(timed.ttit_s))


def test_a_failure_while_generating_is_not_swallowed() -> None:
    def generate(context: None) -> Iterator[torch.Tensor]:
        yield torch.tensor([1])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        timing.timed_batch(lambda: None, generate, CPU, pad_id=0)


def test_percentiles_are_those_of_the_samples() -> None:
    samples = [float(n) for n in range(101)]
    assert timing.summary(samples) == {"median": 50.0, "p10": 10.0, "p90": 90.0, "n": 101}
    assert timing.summary([]) == {"n": 0}


@pytest.mark.parametrize(("n", "shown"), [(298, False), (299, True)])
def test_p99_needs_299_samples(n: int, shown: bool) -> None:
    assert ("p99" in timing.summary([1.0] * n)) == shown


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = torch.ones(8 << 20)
    assert timing.peak_bytes(CPU) > held.nbytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's own figure, on Linux")
def test_peak_memory_is_the_kernels_figure_in_bytes() -> None:
    (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    # A process starts with its parent's peak, so ours may be the higher one; a wrong unit is off by 1,024.
    assert 0.9 * int(peak_kib) * 1024 < timing.peak_bytes(CPU) < 100 * int(peak_kib) * 1024
