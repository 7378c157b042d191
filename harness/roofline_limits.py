"""What no measurement may beat: the floor of a latency, the guard against impossible numbers, and the paper's theory.

Plain arithmetic without torch, so that whatever draws results can use it. ``harness.roofline`` counts the ``Work`` and
measures the ``Ceilings``.

Theory: Tables 6 and 9 and appendix B.4 of arXiv:2509.01092v2, as printed, in the paper's letters. s context tokens, o
output tokens, d width, ``layers`` (the paper's l), ``batch`` (its b), n parameters, k tokens per chunk, f FLOPs per
second, m bytes per second. Chunk embeddings are ready (the encoder is not in the formulas), numbers take 2 bytes, a
layer is 24 d^2 FLOPs per token and 4 d per pair of tokens, pairs counted without regard to the causal mask, and keys
and values are as wide as the model. Formulas with k = 1 are the decoder's own; k > 1 puts s / k for s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations (a multiply-add is 2), and bytes moved between memory and chip.

    ``attention`` of the operations are scores and weighted values; the others multiply by weights.
    """

    flops: float
    bytes: float
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            flops=self.flops + other.flops,
            bytes=self.bytes + other.bytes,
            attention=self.attention + other.attention,
        )

    def __mul__(self, times: float) -> Work:
        return Work(flops=self.flops * times, bytes=self.bytes * times, attention=self.attention * times)

    __rmul__ = __mul__


NOTHING = Work(flops=0, bytes=0)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The most that a device does per second: FLOPs in ``dtype``, and bytes read plus bytes written.

    ``attention_flops_per_s`` is what its attention kernel reaches, whose exponentials no FLOP counts.
    """

    flops_per_s: float
    bytes_per_s: float
    attention_flops_per_s: float
    device: str
    dtype: str


def floor_s(work: Work, ceilings: Ceilings) -> float:
    """The least seconds that ``work`` takes, even where arithmetic and memory overlap without a gap."""
    return max(work.flops / ceilings.flops_per_s, work.bytes / ceilings.bytes_per_s)


def arithmetic_s(work: Work, ceilings: Ceilings) -> float:
    """The seconds of the arithmetic where each kind runs at its own ceiling.

    A FLOP of attention takes longer than one of a matrix product, so whoever reads fewer positions saves more time than
    FLOPs: a speed-up can pass the ratio of FLOPs without passing the ratio of these.
    """
    rest = work.flops - work.attention
    return rest / ceilings.flops_per_s + work.attention / ceilings.attention_flops_per_s


def violations(
    *,
    measured_s: float | None = None,
    floor_s: float | None = None,
    memory_bytes: float | None = None,
    weights_bytes: float | None = None,
    speedup: float | None = None,
    cap: float | None = None,
    noise: float = 0.0,
) -> list[str]:
    """Why these numbers cannot be, one reason each; empty where nothing is wrong.

    A latency below its floor, a memory below the weights in it, a speed-up above its cap by more than ``noise``
    (relative: 0.05 is 5 %). A comparison of which a side is None is not made.
    """
    found = []
    if measured_s is not None and floor_s is not None and measured_s < floor_s:
        found.append(f"{1e3 * measured_s:.4g} ms is below the floor of {1e3 * floor_s:.4g} ms")
    if memory_bytes is not None and weights_bytes is not None and memory_bytes < weights_bytes:
        found.append(f"{memory_bytes / 1e9:.4g} GB of memory is below the {weights_bytes / 1e9:.4g} GB of the weights")
    if speedup is not None and cap is not None and speedup > cap * (1 + noise):
        found.append(f"a speed-up of {speedup:.4g} is above the cap of {cap:.4g} (noise {noise:.1%})")
    return found


def ttft_ratio_theory(d: float, s: float, k: float) -> float:
    """Table 6: TTFT before over after. k for a short context, k^2 for a long one."""
    return k**2 * (6 * d * s + s**2) / (6 * d * s * k + s**2)


def ttit_ratio_theory(*, d: float, layers: float, batch: float, n: float, s: float, o: float, k: float) -> float:
    """Table 6: TTIT before over after. 1 for a short context, k for a long one."""
    cell = 2 * d * layers * batch
    return (cell * s * k + n * k + cell * o * k) / (cell * s + n * k + cell * o * k)


def kv_ratio_theory(s: float, o: float, k: float) -> float:
    """Table 6: memory of the KV cache before over after. 1 to k for a short context, k for a long one."""
    return (k * s + k * o) / (s + k * o)


def kv_bytes_theory(*, d: float, layers: float, batch: float, s: float, o: float, k: float = 1) -> float:
    """Table 9: bytes of the KV cache at the last token."""
    return 4 * d * layers * batch * (s / k + o)


def ttft_theory(*, d: float, layers: float, batch: float, s: float, f: float, k: float = 1) -> float:
    """Table 9: seconds to the first token, which are those of the FLOPs."""
    return (24 * d**2 + 4 * d * s / k) * layers * batch * (s / k) / f


def ttit_theory(
    *, d: float, layers: float, batch: float, n: float, s: float, o: float, m: float, k: float = 1
) -> float:
    """Table 9: seconds per later token, which are those of reading weights and KV cache."""
    return (2 * n + kv_bytes_theory(d=d, layers=layers, batch=batch, s=s, o=o, k=k)) / m


def throughput_theory(
    *, d: float, layers: float, batch: float, n: float, s: float, o: float, f: float, m: float, k: float = 1
) -> float:
    """Table 9: tokens per second. As printed, all o tokens over TTFT and one TTIT, where o of them would be due."""
    first = ttft_theory(d=d, layers=layers, batch=batch, s=s, f=f, k=k)
    return batch * o / (first + ttit_theory(d=d, layers=layers, batch=batch, n=n, s=s, o=o, m=m, k=k))
