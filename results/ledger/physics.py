"""Which published numbers cannot be? The physics guard over the seed document's Table 2.

That table names neither decoder nor machine nor precision. Taken as the document takes them for the paper's: LLaMA-2-7B
in 16 bits on an A100, 80 GB, one request at a time (its throughputs are one over its TTITs). The floor is the least
that any context leaves: every weight is read once per token. All other numbers are either relative or state too little
to have a floor.
"""

from __future__ import annotations

from harness.roofline_limits import violations
from results.ledger.entries import Entry

# LLaMA-2-7B: layers, width, MLP, vocabulary; NVIDIA's data sheet for the bandwidth of an A100 80 GB SXM.
LAYERS, WIDTH, FFN, VOCAB = 32, 4096, 11008, 32000
READ_PER_TOKEN = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * FFN + 2 * WIDTH) + WIDTH + WIDTH * VOCAB  # all but the embeddings
WEIGHTS_BYTES = 2 * (READ_PER_TOKEN + WIDTH * VOCAB)
FLOOR_S = 2 * READ_PER_TOKEN / 2039e9
ASSUMED = "LLaMA-2-7B in 16 bits on an A100 of 80 GB, one request at a time"


def flags(entry: Entry) -> tuple[str, ...]:
    """Why ``entry`` cannot be, one reason each; empty where nothing speaks against it."""
    if entry.source_class != "seed-claim" or entry.table != "Table 2" or not isinstance(entry.value, float):
        return ()
    match entry.column:
        case "TTFT" | "TTIT":
            return tuple(violations(measured_s=entry.value / 1e3, floor_s=FLOOR_S))
        case "Throughput":
            return tuple(violations(measured_s=1 / entry.value, floor_s=FLOOR_S))
        case "Memory":
            return tuple(violations(memory_bytes=entry.value * 1e9, weights_bytes=WEIGHTS_BYTES))
        case _:
            return ()
