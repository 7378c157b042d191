"""What does the latency lab's journal say? Every row beside the reference, the physical limit and the paper.

A row has three lines, one per boundary of TTFT: ``prefill`` (what a system keeps of the passages is ready: the paper's
"cached"), ``+encode`` (it is made inside: "not cached") and ``+retrieve`` (the passages are searched for first, which
costs every system the median of the searches that the header holds). Where a policy chooses, choosing is inside all
three. The reference is standard RAG's prefill, as the paper's is LLaMA's TTFT, with its search in the third. The
samples of one length and batch size were taken in rounds, so ratios are of medians, with a bootstrap that draws whole
rounds (95 %, seeded).

Of third parties only numpy is imported here: a bare GPU machine runs this.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import InputError
from harness.roofline_limits import (
    NOTHING,
    Ceilings,
    Work,
    arithmetic_s,
    floor_s,
    kv_ratio_theory,
    ttft_ratio_theory,
    ttit_ratio_theory,
    violations,
)

SCHEMA = 2
REFERENCE, AGAIN = "standard RAG", "standard RAG (again)"
PREFILL, ENCODE, RETRIEVE = "prefill", "+encode", "+retrieve"
SAMPLES = {PREFILL: "prefill_s", ENCODE: "with_encode_s", RETRIEVE: "with_encode_s"}
ROW = {"label", "length", "batch", "samples", "work", "memory"}
RESAMPLES = 10_000
PAPER = Path(__file__).parents[1] / "reference" / "fig02_08_09_latency.csv"
# What the paper leaves open: the k of its one not-cached curve (the same in all three figures; 16 is the main text's),
# and whether CEPE encodes inside the clock (taken so: it would be far above its curve otherwise).
PAPER_ROWS = {
    ("REFRAG k=8", PREFILL): ("Figure 9", "REFRAG (Cached) k=8"),
    ("REFRAG k=16", PREFILL): ("Figure 2", "REFRAG (Cached) k=16"),
    ("REFRAG k=32", PREFILL): ("Figure 8", "REFRAG (Cached) k=32"),
    ("REFRAG k=16", ENCODE): ("Figure 2", "REFRAG (Not Cached) k=16"),
    ("CEPE", ENCODE): ("Figure 2", "CEPE"),
}
PAPER_METRICS = {"ttft": "TTFT", "ttit": "TTIT", "throughput": "Throughput"}


@dataclass(frozen=True)
class Journal:
    """The header, and the rows of every group that was measured whole."""

    header: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def ceilings(self) -> Ceilings:
        return Ceilings(**self.header["ceilings"])

    def row(self, label: str, length: int, batch: int) -> dict[str, Any]:
        """The row of that group. Raises ``InputError`` where there is none."""
        for row in self.rows:
            if (row["label"], row["length"], row["batch"]) == (label, length, batch):
                return row
        raise InputError(f"the journal has no row {label!r} at {length} tokens, batch {batch}")

    def search(self, batch: int) -> Search | None:
        """What finding the passages of ``batch`` questions takes; None where that was not measured."""
        for part in self.header["search"]:
            if part["batch"] == batch:
                return Search(median_s=float(np.median(part["seconds"])), work=Work(**part["work"]))
        return None

    @cached_property
    def lines(self) -> list[Line]:
        """Three lines per row (two where no search was measured), in the journal's order."""
        paper = read_paper()
        return [line for row in self.rows for line in _lines(self, row, paper)]

    def line(self, label: str, boundary: str, length: int, batch: int = 1) -> Line | None:
        """That row at that boundary, the others not worked out; None where there is none."""
        for row in self.rows:
            if (row["label"], row["length"], row["batch"]) == (label, length, batch):
                lines = _lines(self, row, read_paper())
                return next(each for each in lines if each.boundary.partition("+select")[0] == boundary)
        return None


@dataclass(frozen=True)
class Search:
    """One search: its median seconds, and the least work of it."""

    median_s: float
    work: Work


NO_SEARCH = Search(median_s=0.0, work=NOTHING)


def read(path: Path) -> Journal:
    """The journal at ``path``, up to a line that was torn. Raises ``InputError`` where there is none of this schema."""
    documents: list[Any] = []
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            documents.append(json.loads(line))
    except json.JSONDecodeError:
        pass
    except OSError as error:
        raise InputError(f"no latency journal at {path}: {error.strerror}") from error
    if not documents or not isinstance(documents[0], dict) or documents[0].get("kind") != "run":
        raise InputError(f"{path} is not a latency journal: it has no header")
    header, *rows = documents
    if header.get("schema") != SCHEMA:
        raise InputError(f"{path} has schema {header.get('schema')!r}; expected {SCHEMA}")
    if not isinstance(header.get("labels"), list):
        raise InputError(f"{path} is not a latency journal: its header has no labels")
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for number, row in enumerate(rows, start=2):
        whole = isinstance(row, dict) and row.keys() >= ROW
        if not whole or not (isinstance(row["length"], int) and isinstance(row["batch"], int)):
            raise InputError(f"{path}, line {number} is not a row of a latency journal")
        groups.setdefault((row["length"], row["batch"]), []).append(row)
    return Journal(header, [row for group in groups.values() if len(group) == len(header["labels"]) for row in group])


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times faster than the reference, with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row at one boundary. Times in seconds; what cannot be said is None. ``flags`` are impossibilities.

    ``theory`` are the paper's formulas for a REFRAG that expands nothing (Table 6): the ratios of TTFT, of TTIT at the
    last token and of the KV cache. ``cap`` is the reference's FLOPs over this row's, ``noise`` how far from 1 the A/A
    interval reaches. A speed-up is flagged where it passes both the cap and the ratio of seconds with attention at its
    own ceiling (``arithmetic_s``).
    """

    length: int
    batch: int
    label: str
    boundary: str
    error: str | None
    decoder_positions: int | None
    ttft_s: tuple[float, float, float] | None  # p10, median, p90
    device_ttft_s: float | None  # the median by the device's own clock, of the prefill
    ttit_s: tuple[float, float, float] | None
    n: int
    tokens_per_s: float | None
    speedup: Ratio | None
    ttit_speedup: Ratio | None
    throughput_speedup: Ratio | None
    floor_s: float | None
    cap: float | None
    mfu: float | None
    mbu: float | None
    paper: float | None
    theory: tuple[float, float, float] | None  # TTFT, TTIT, KV
    noise: float
    peak_bytes: int | None
    weights_bytes: int
    kv_bytes: int | None
    stored_bytes: int | None
    flags: tuple[str, ...]

    @property
    def of_limit(self) -> float | None:
        """Floor over measured: 1 is the limit of this machine."""
        return self.floor_s / self.ttft_s[1] if self.floor_s and self.ttft_s else None


def _lines(journal: Journal, row: dict[str, Any], paper: dict[tuple[str, str, str, int], float]) -> Iterator[Line]:
    reference = journal.row(REFERENCE, row["length"], row["batch"])
    again = journal.row(AGAIN, row["length"], row["batch"])
    noise = ratio(*sides(reference, again, PREFILL)["TTFT"])
    spread = max(abs(noise.low - 1), abs(noise.high - 1)) if noise else 0.0
    samples, work = row["samples"], {phase: Work(**part) for phase, part in row["work"].items()}
    decode_s, on_device = _spread(samples["ttit_s"]), _spread(samples["prefill_device_s"])
    memory = row["memory"]
    for boundary, name in SAMPLES.items():
        search = journal.search(row["batch"]) if boundary == RETRIEVE else NO_SEARCH
        if search is None:
            continue
        found_s, finding = search.median_s, [search.work]
        parts = [*finding, work["prefill"], *([] if boundary == PREFILL else [work["encode"]])]
        before = sum(finding, Work(**reference["work"]["prefill"]))
        whole = sum(parts, NOTHING)
        taken = [found_s + seconds for seconds in samples[name]]
        ttft = _spread(taken)
        floor = sum(floor_s(part, journal.ceilings) for part in parts)
        compared = sides(reference, row, boundary, found_s)
        speedup = ratio(*compared["TTFT"])
        cap = before.flops / whole.flops
        highest = max(cap, arithmetic_s(before, journal.ceilings) / arithmetic_s(whole, journal.ceilings))
        yield Line(
            length=row["length"],
            batch=row["batch"],
            label=row["label"],
            boundary=boundary + ("+select" if row["settings"].get("select") == "policy" else ""),
            error=row["error"],
            decoder_positions=row["decoder_positions"],
            ttft_s=ttft,
            device_ttft_s=on_device[1] if on_device and boundary == PREFILL else None,
            ttit_s=decode_s,
            n=len(taken),
            tokens_per_s=_tokens_per_s(journal, row, boundary, found_s),
            speedup=speedup,
            ttit_speedup=ratio(*compared["TTIT"]),
            throughput_speedup=ratio(*compared["Throughput"]),
            floor_s=floor,
            cap=cap,
            mfu=ttft and whole.flops / ttft[1] / journal.ceilings.flops_per_s,
            mbu=decode_s and work["decode"].bytes / decode_s[1] / journal.ceilings.bytes_per_s,
            paper=_paper_of(row["label"], boundary, row["batch"], row["length"], paper),
            theory=_theory_of(journal, row) if boundary == PREFILL else None,
            noise=spread,
            peak_bytes=memory["peak_bytes"],
            weights_bytes=memory["weights_bytes"],
            kv_bytes=memory["kv_bytes"],
            stored_bytes=memory["stored_bytes"],
            flags=tuple(
                violations(
                    measured_s=ttft and ttft[1],
                    floor_s=floor,
                    memory_bytes=memory["peak_bytes"],
                    weights_bytes=memory["weights_bytes"],
                    speedup=speedup.mean if speedup else None,
                    cap=highest,
                    noise=spread,
                )
            ),
        )


def _theory_of(journal: Journal, row: dict[str, Any]) -> tuple[float, float, float] | None:
    """Table 6 at the decoder's shape: the ratios of TTFT, TTIT and KV cache; None where it has no formula."""
    settings, decoder = row["settings"], journal.header["decoder"]
    if row["system"] != "refrag_v2" or settings["expand"]:
        return None
    d, layers, n = decoder["width"], decoder["layers"], decoder["parameters"]
    s, o, k = row["length"], journal.header["new_tokens"], settings["k"]
    ttit = ttit_ratio_theory(d=d, layers=layers, batch=row["batch"], n=n, s=s, o=o, k=k)
    return ttft_ratio_theory(d=d, s=s, k=k), ttit, kv_ratio_theory(s, o, k)


def read_paper(path: Path = PAPER) -> dict[tuple[str, str, str, int], float]:
    """The published ratios by (figure, row, metric, input tokens)."""
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            metric, _, tokens = row["column/metric"].partition(" acceleration vs LLaMA @ ")
            found[row["table"], row["row/method"], metric, int(tokens.removesuffix(" input tokens"))] = float(
                row["value"]
            )
    return found


def _paper_of(
    label: str, boundary: str, batch: int, length: int, paper: dict[tuple[str, str, str, int], float]
) -> float | None:
    """The paper's TTFT ratio of the same method, boundary and length, batch size 1."""
    if batch != 1 or (label, boundary) not in PAPER_ROWS:
        return None
    return paper.get((*PAPER_ROWS[label, boundary], PAPER_METRICS["ttft"], length))


def _tokens_per_s(journal: Journal, row: dict[str, Any], boundary: str, found_s: float) -> float | None:
    """Generated tokens over the median whole request."""
    whole = _spread(_whole_s(row, boundary, found_s))
    return whole and row["batch"] * journal.header["new_tokens"] / whole[1]


def _whole_s(row: dict[str, Any], boundary: str, found_s: float) -> list[float]:
    """Seconds of each round's whole request, with the encoding or without, after a search of ``found_s``."""
    samples = row["samples"]
    if boundary != PREFILL:
        return [found_s + total for total in samples["total_s"]]
    together = zip(samples["total_s"], samples["with_encode_s"], samples["prefill_s"], strict=True)
    return [total - (with_encode - prefill) for total, with_encode, prefill in together]


def _per_round(row: dict[str, Any]) -> list[float]:
    """The median TTIT of each round."""
    samples, rounds = row["samples"]["ttit_s"], len(row["samples"]["total_s"])
    return [float(np.median(part)) for part in np.array_split(samples, rounds)] if rounds else []


def _spread(samples: Sequence[float]) -> tuple[float, float, float] | None:
    if not samples:
        return None
    low, median, high = np.percentile(samples, [10, 50, 90])
    return float(low), float(median), float(high)


def sides(
    reference: dict[str, Any], row: dict[str, Any], boundary: str, found_s: float = 0.0
) -> dict[str, tuple[list[float], list[float]]]:
    """What each of the paper's three ratios is of: seconds of ``reference`` and of ``row``, round by round.

    Both pay ``found_s`` for a search.
    """

    def first(of: dict[str, Any], until: str) -> list[float]:
        return [found_s + seconds for seconds in of["samples"][SAMPLES[until]]]

    return {
        "TTFT": (first(reference, PREFILL), first(row, boundary)),
        "TTIT": (_per_round(reference), _per_round(row)),
        "Throughput": (_whole_s(reference, PREFILL, found_s), _whole_s(row, boundary, found_s)),
    }


def ratio(reference: Sequence[float], own: Sequence[float]) -> Ratio | None:
    """The ratio of medians; rounds are drawn together, so that what slowed one round slows both sides."""
    n = min(len(reference), len(own))  # a run may end within a round
    if not n:
        return None
    a, b = np.asarray(reference[:n]), np.asarray(own[:n])
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    ratios = np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Ratio(mean=float(np.median(a) / np.median(b)), low=float(low), high=float(high))


def questions_to_pay(journal: Journal, row: dict[str, Any]) -> float | None:
    """After how many questions over the same passages encoding them has paid, by TTFT; None where it never does.

    The smallest n with n standard-RAG prefills >= one encoding + n prefills, as a real number of at least 0.
    """
    reference = _spread(journal.row(REFERENCE, row["length"], row["batch"])["samples"]["prefill_s"])
    prefill, whole = _spread(row["samples"]["prefill_s"]), _spread(row["samples"]["with_encode_s"])
    if not reference or not prefill or not whole or prefill[1] >= reference[1]:
        return None
    return (whole[1] - prefill[1]) / (reference[1] - prefill[1])
