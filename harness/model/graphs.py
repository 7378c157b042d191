"""Who launches the kernels of a forward pass? On a GPU, graphs: everything of a pass but its attention, recorded once.

A layer of an eager decode step is 37 calls into torch. What lies between one attention and the next (MLP of layer i;
queries, keys and values of layer i + 1: a *part*) depends on nothing but the number of positions. So a pass over B rows
of T positions is L + 1 parts with addresses of their own (``Recorded``), each a CUDA graph; the write to the KV cache,
attention, its output matrix and ``between`` are ordinary calls from part to part, 13 a layer, 5 of which launch
anything. A decode step is the pass with T = 1, a short prefill one with a larger T: one mechanism for both, and for all
systems. The arithmetic is the eager pass's own, operation for operation.

Why not one graph for a whole step, over a KV cache of fixed capacity?

1. It would need attention with a mask. Of torch's kernels the one without a mask (flash) divides the keys of a head
   among processors; the masked one (memory-efficient) has a block per row, head and tile of queries: 32 blocks for
   LLaMA-2-7B at batch 1, on a GPU of 132 processors. A long context would lose most, and with it the reference of
   every ratio.
2. It would be tied to the addresses of a KV cache. One that outlives its prompt is gigabytes that no row of the latency
   lab accounts for and that may put another row out of memory; a copy doubles it; recording per prompt would be inside
   the time per token.
3. Here the KV cache is the caller's and as long as the prompt. Padding, keys and values that were stored
   (``baselines.kv_reuse``) and what a method inserts in a layer (``baselines.cepe``, whose keys and values are others
   for every prompt) need nothing.

The price: L + 1 launches of graphs and 13 L calls per pass from the host instead of one launch. They have to take less
time than the device's work, or it is still launching that costs, only less; that is to be expected of small decoders.

What is recorded: every decode step, and prefills of at most ``POSITIONS`` positions over all rows: a question before
stored keys and values, a context of k = 32 tokens per position. At 1,024 positions a layer of a 7 B decoder is
0.4 TFLOP, more work than its launching. A shape is recorded when it is first seen, so that one warm-up of the caller's
covers it: a pass to warm up, one to capture, one to answer. There are up to ``SHAPES`` of them; later ones stay eager,
since of prompts of ever another length each would be recorded for one use. A shape that cannot be recorded (no memory
left, or something that CUDA does not capture) stays eager, and ``Llama.passes``, which the latency lab's journal keeps,
says so. A pass begins and ends within one call and returns a copy, so decoders may take turns.

NOT RUN YET: no GPU was at hand when this was written. ``cuda_graphs`` has never captured anything, and nothing above is
a measured speed. On a CPU nothing is recorded; the tests replay what a recorder wrote down, whose addresses and numbers
are frozen as a graph's are.

Shapes: B rows, T positions, E hidden size, H query heads, G key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from harness.model.llama import Llama

POSITIONS = 1024
SHAPES = 32
REFUSED, OUT_OF_MEMORY = "refused: ", "out of memory"
# Rotary embeddings that work their frequencies out anew from the longest position, which reads it on the host.
UNSETTLED_ROTARY = ("dynamic", "longrope")

Part = Callable[[], None]
Record = Callable[[Sequence[Part]], Sequence[Part]]  # parts, in the order of a pass, to what does the same again


class Straight:
    """A pass part by part, where nothing is recorded: memory is taken as it comes."""

    into = None

    def __init__(self, llama: Llama, last: int, x_BTE: Tensor, positions_BT: Tensor) -> None:
        self.llama, self.last = llama, last
        self.x_BTE = x_BTE
        self.rotation = llama.rotation(x_BTE, positions_BT)
        self.heads = llama.heads(0, x_BTE, self.rotation)

    def go_on(self, index: int) -> None:
        """From after the attention of layer ``index`` to before the next, or to ``logits`` (B, last, V)."""
        del self.heads  # nobody reads them again, and the MLP needs the room
        self.x_BTE = self.llama.feed_forward(index, self.x_BTE)
        if index + 1 < len(self.llama.layers):
            self.heads = self.llama.heads(index + 1, self.x_BTE, self.rotation)
        else:
            self.logits = self.llama.logits(self.x_BTE[:, -self.last :])


class Recorded:
    """The same pass over B rows of T positions, again and again, asked for the token after the last of them.

    ``x_BTE`` is read from and left in the same memory at every part. ``into`` is where attention shall put its result;
    what is given elsewhere is copied.
    """

    def __init__(self, llama: Llama, B: int, T: int, record: Record) -> None:
        like = llama.embedding
        heads, G, D = llama.n_heads + llama.n_kv_heads, llama.n_kv_heads, llama.head_width
        # Ordinary tensors whatever mode this is: one of inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._whole = like.new_zeros((B, T, like.shape[1]))
            self._tail = self._whole[:, -1:]
            self._positions_BT = torch.zeros((B, T), dtype=torch.long, device=like.device)
            cos, sin = like.new_zeros((2, B, 1, T, D))
            qkv = like.new_zeros((B * T, (heads + G) * D))
            turned_BHTD = like.new_zeros((B, heads, T, D))
            self._logits = like.new_zeros((B, llama.logits_width))
            self.heads = llama.split(qkv, turned_BHTD)
        self.n_layers = len(llama.layers)

        def opening() -> None:
            for kept, made in zip((cos, sin), llama.rotation(self._whole, self._positions_BT), strict=True):
                kept.copy_(made)
            llama.heads(0, self._whole, (cos, sin), qkv, turned_BHTD)

        def between(index: int) -> None:
            llama.feed_forward(index, self._whole, self._whole)
            llama.heads(index + 1, self._whole, (cos, sin), qkv, turned_BHTD)

        def closing() -> None:
            llama.feed_forward(self.n_layers - 1, self._tail, self._tail)
            llama.logits(self._tail, self._logits)

        self._parts = record([opening, *(partial(between, i) for i in range(self.n_layers - 1)), closing])
        self.x_BTE, self.into = self._whole, self._whole

    def enter(self, x_BTE: Tensor, positions_BT: Tensor) -> Recorded:
        """Begin a pass over these inputs."""
        self._whole.copy_(x_BTE)
        self._positions_BT.copy_(positions_BT)
        self._parts[0]()
        self.x_BTE, self.into = self._whole, self._at(0)
        return self

    def go_on(self, index: int) -> None:
        """From after the attention of layer ``index`` to before the next, or to ``logits``."""
        if self.x_BTE is not self.into:
            self.into.copy_(self.x_BTE)
        self._parts[index + 1]()
        self.x_BTE = self.into
        self.into = self._at(index + 1)

    @property
    def logits(self) -> Tensor:
        """(B, 1, V). A copy: the next pass writes over its own."""
        return self._logits[:, None].clone()

    def _at(self, index: int) -> Tensor:
        """What the attention of layer ``index`` leaves: of the last layer one position, which alone is read."""
        return self._whole if index + 1 < self.n_layers else self._tail


class Graphs:
    """Which shapes of a decoder are recorded, by ``record`` (None: none is). ``passes`` counts what was and was not."""

    def __init__(self, record: Record | None, passes: Counter[str]) -> None:
        self.record, self.passes = record, passes
        self.kept: dict[tuple[int, int], Recorded | None] = {}

    def of(self, llama: Llama, B: int, T: int) -> Recorded | None:
        """The pass over B rows of T positions; None where it is to be eager."""
        if (B, T) in self.kept:
            return self.kept[B, T]
        too_long = T > 1 and B * T > POSITIONS
        if not self.record or too_long or len(self.kept) >= SHAPES or llama.rotary.rope_type in UNSETTLED_ROTARY:
            return None
        try:
            self.kept[B, T] = Recorded(llama, B, T, self.record)
            self.passes["recorded"] += 1
        except RuntimeError as error:  # only the time depends on it, and the journal says so
            why = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error).partition("\n")[0]
            self.passes[REFUSED + why] += 1
            self.kept[B, T] = None
        return self.kept[B, T]


def cuda_graphs(device: torch.device, parts: Sequence[Part]) -> list[Part]:
    """Each part as a CUDA graph. They share memory: they are replayed in this order, never at once.

    Raises ``RuntimeError`` where CUDA cannot capture them, ``torch.OutOfMemoryError`` included.
    """
    current, aside = torch.cuda.current_stream(device), _aside(device)
    aside.wait_stream(current)
    replays: list[Part] = []
    try:
        with torch.cuda.stream(aside):
            for part in parts:
                part()  # libraries set themselves up at the first call, which a capture does not allow
            torch.cuda.synchronize(device)
            pool = torch.cuda.graph_pool_handle()
            for part in parts:
                # Not ``torch.cuda.graph``: it empties the allocator's cache at each.
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    part()
                finally:
                    graph.capture_end()
                replays.append(graph.replay)
    finally:
        current.wait_stream(aside)
    return replays


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures: it must not be the default one, and each further one takes a workspace."""
    return torch.cuda.Stream(device)
