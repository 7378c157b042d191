"""Does what was measured here agree with what was published? A verdict for every entry of the ledger.

A measured figure is compared with an entry only under the same conditions. They are the same where every condition that
either side names is named by both and equal; what a source does not state is never the same as anything. Otherwise the
closest figure stands beside the entry (the fewest conditions differ), with the conditions that differ, and that is no
comparison. Machines, lengths of answers and the like enter where the quantity depends on them
(``results.ledger.measured``).

**Reproduced** means that two intervals meet. The measured one is its 95 % interval (the figure itself where it has
none). The published one is what its printing leaves open: half a unit of the last printed digit, plus the accuracy that
the source states for a point read off a curve. Published runs have no interval of their own, so a number may differ by
their chance alone; and few samples make wide intervals, so n and the interval stand beside every verdict. A number that
follows from a formula is **verified** where the formula rounds to what was printed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from results.ledger.arithmetic import recomputed
from results.ledger.conditions import LLAMA, NOT_STATED, Conditions, Value
from results.ledger.entries import Entry
from results.ledger.measured import LOG_PERPLEXITY, Measured
from results.ledger.needs import needs
from results.ledger.physics import flags
from results.ledger.seed import NOT_JUDGED, PAPER_VERDICTS, item_of, read_discrepancies

VERDICTS = {
    "reproduced": "measured under the same conditions, and the intervals meet",
    "differs": "measured under the same conditions, and the intervals do not meet",
    "not comparable": "measured, but not under these conditions; those that differ are listed",
    "not measured": "nothing like it was measured here; the entry says what it would take",
    "verified": "no measurement: a formula gives the printed number",
    "no measurement": "a setting, a formula, a definition or a remark of its source",
}
AGAINST_PAPER = (*PAPER_VERDICTS.values(), NOT_JUDGED)

# Our system for the source's name. The second kind is not quite what we run, so that is a condition of its own.
METHODS = {
    "REFRAG": "refrag_v2",
    "LLaMA_FT": "standard_rag",
    "Standard RAG": "standard_rag",
    "CEPE": "cepe",
    "REPLUG": "replug",
    "LLaMA-Full Context": "standard_rag",
    "Full Context": "standard_rag",
    "LLaMA-No Context": "no_context",
    "No Context": "no_context",
    "LLaMA_256": "llama_k",
}
RELATIVES = {
    "LLaMA-32K": "standard_rag",
    "LLaMA-2": "standard_rag",
    "LLaMA-2-32K": "standard_rag",
    "CEPED": "cepe",
    "REPLUG_FT": "replug",
    "REPLUG_Chat": "replug",
}
DATASETS = {"NQ": "NQ", "TQA": "TriviaQA", "TriviaQA": "TriviaQA", "PopQA": "PopQA"}
FIGURES = {
    ("TTFT", "x"): "TTFT, x",
    ("TTFT Speedup", "x"): "TTFT, x",
    ("TTIT", "x"): "TTIT, x",
    ("Throughput", "x"): "Throughput, x",
    ("TTFT", "ms"): "TTFT, ms",
    ("TTIT", "ms"): "TTIT, ms",
    ("Throughput", "tok/s"): "Throughput, tok/s",
    ("Memory", "GB"): "Memory, GB",
    ("strict EM", "EM %"): "EM, %",
    ("EM", "EM %"): "EM, %",
    ("EM", "%"): "EM, %",
    ("F1", "%"): "F1, %",
    ("Reconstruction PPL", "ppl"): "reconstruction perplexity, ppl",
    ("reconstruction perplexity", "ppl"): "reconstruction perplexity, ppl",
    ("token prediction accuracy", "%"): "token accuracy, %",
}
SAME_METRIC = {
    "TTFT Speedup": "TTFT",
    "Reconstruction PPL": "reconstruction perplexity",
    "token prediction accuracy": "token accuracy",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is known of one entry.

    ``difference`` is measured minus published, where they may be compared. ``closest`` is the measured figure meant
    (None where nothing like it was measured), ``interval`` its 95 % interval where it was compared, ``differing`` the
    conditions in which it differs, each "name: theirs / ours". ``against_paper`` is of claims of the seed only, with
    ``item`` of discrepancies.csv. ``needs`` says what a measurement would take, ``flags`` why the number cannot be.
    """

    entry: Entry
    verdict: str
    difference: float | None
    closest: Measured | None
    interval: tuple[float, float] | None
    differing: tuple[str, ...]
    needs: str | None
    against_paper: str | None
    item: str | None
    flags: tuple[str, ...]

    @property
    def why(self) -> str:
        """The verdict's reason, in one line."""
        match self.verdict:
            case "verified" | "differs" if self.closest is None:
                return f"the formula gives {float(self.entry.value) + (self.difference or 0):.6g}"
            case "reproduced" | "differs":
                return f"{figure(self)}, {self.difference:+.4g}"
            case "not comparable":
                return f"closest {figure(self)}; differs in {'; '.join(self.differing)}"
            case "not measured":
                return self.needs or ""
            case _:
                return ""


def figure(verdict: Verdict) -> str:
    """The closest measured figure, its interval where it was drawn, what it is, its n, and what it is of.

    Data and model are named where they differ from the entry's: without them two figures would look alike.
    """
    closest = verdict.closest
    assert closest is not None
    ours, unlike = closest.conditions, [name.partition(":")[0] for name in verdict.differing]
    interval = f" [{verdict.interval[0]:.4g}, {verdict.interval[1]:.4g}]" if verdict.interval else ""
    system = f"{ours['system']} k={ours['k']}" if "k" in ours else str(ours["system"])
    named = [str(ours[key]) for key in ("dataset", "model") if key in ours and key in unlike]
    return f"{closest.value:.4g}{interval} ({', '.join([str(ours['metric']), f'n {closest.n}', system, *named])})"


Candidate = tuple[Mapping[str, Value], Measured]  # with its conditions made comparable


def judge(entries: Iterable[Entry], measured: Iterable[Measured]) -> Iterator[Verdict]:
    """A verdict for every entry, in their order."""
    by_quantity: dict[tuple[str, str, str], list[Candidate]] = {}
    for found in measured:
        by_quantity.setdefault(found.quantity, []).append((_comparable(found.conditions), found))
    items = read_discrepancies()
    for entry in entries:
        item = item_of(entry) if entry.source_class == "seed-claim" else None
        seed = items[item].verdict if item else NOT_JUDGED
        yield _judge(
            entry,
            by_quantity.get(quantity(entry) or ("", "", ""), ()),
            against_paper=seed if entry.source_class == "seed-claim" else None,
            item=item,
        )


def _judge(entry: Entry, candidates: Sequence[Candidate], *, against_paper: str | None, item: str | None) -> Verdict:
    asked, formula = needs(entry), recomputed(entry)
    verdict = "no measurement"
    closest: Measured | None = None
    unlike: tuple[str, ...] = ()
    difference: float | None = None
    interval: tuple[float, float] | None = None
    if formula is not None and isinstance(entry.value, float):
        difference = formula - entry.value
        verdict = "verified" if _meet(published(entry), (formula, formula)) else "differs"
    elif asked and candidates:
        closest, unlike = _closest(entry, candidates)
        verdict = "not comparable"
        if not unlike and isinstance(entry.value, float):
            interval = closest.limits()
            difference = closest.value - entry.value
            own = interval or (closest.value, closest.value)
            verdict = "reproduced" if _meet(published(entry), own) else "differs"
    elif asked:
        verdict = "not measured"
    return Verdict(
        entry=entry,
        verdict=verdict,
        difference=difference,
        closest=closest,
        interval=interval,
        differing=unlike,
        needs=asked,
        against_paper=against_paper,
        item=item,
        flags=flags(entry),
    )


def quantity(entry: Entry) -> tuple[str, str, str] | None:
    """What of ours ``entry`` may be compared with at all; None where nothing of the kind is measured here."""
    under = entry.conditions
    if "part" in under and entry.source_class != "seed-claim":
        return None
    # The one claim of the seed that names no system is its gate on the trained REFRAG.
    system = str(under.get("system", "REFRAG"))
    method = METHODS.get(system) or RELATIVES.get(system)
    if under.get("metric") == LOG_PERPLEXITY:  # its unit is told in many words, its text is a condition
        return (method, LOG_PERPLEXITY, "") if method else None
    name = FIGURES.get((str(under.get("metric")), entry.unit))
    dataset = DATASETS.get(str(under["dataset"])) if "dataset" in under else ""
    return (method, name, dataset) if method and name and dataset is not None else None


def _closest(entry: Entry, candidates: Sequence[Candidate]) -> tuple[Measured, tuple[str, ...]]:
    """The figure of which the fewest conditions differ, then the nearest in numbers; and those conditions.

    Where that leaves several, because the entry states little: the one of the paper's decoder, on a GPU, at the longest
    context, of most repetitions.
    """
    theirs = _comparable(entry.conditions)
    unlike = [len(_unlike(theirs, own)) for own, _ in candidates]
    fewest = min(unlike)
    alike = [found for number, (_, found) in zip(unlike, candidates, strict=True) if number == fewest]
    closest = min(alike, key=lambda found: (*_distance(entry.conditions, found.conditions), *_unlike_the_papers(found)))
    return closest, differing(entry, closest.conditions)


def differing(entry: Entry, ours: Conditions) -> tuple[str, ...]:
    """The conditions that are not named by both and equal, each "name: theirs / ours"."""
    theirs = _comparable(entry.conditions)
    system = str(entry.conditions.get("system", ""))
    unlike = [f"system: {system} / {ours['system']}"] if system in RELATIVES else []
    own = _comparable(ours)
    unlike += [f"{key}: {theirs.get(key, NOT_STATED)} / {own.get(key, '-')}" for key in _unlike(theirs, own)]
    return tuple(unlike)


def _unlike(theirs: Mapping[str, Value], own: Mapping[str, Value]) -> list[str]:
    """Which of the comparable conditions are not named by both and equal."""
    return [
        key
        for key in dict.fromkeys([*theirs, *own])
        if (here := own.get(key, NOT_STATED)) != theirs.get(key, NOT_STATED) or here == NOT_STATED
    ]


def _comparable(conditions: Conditions) -> Mapping[str, Value]:
    """The conditions without the system's name, which ``quantity`` has matched, in one spelling.

    Nothing is expanded where nobody says so: the paper's tables and our records leave it out.
    """
    found = {key: value for key, value in conditions.items() if key not in ("system", "part")} | {
        "expand": conditions.get("expand", 0)
    }
    if "dataset" in found:
        found["dataset"] = DATASETS.get(str(found["dataset"]), found["dataset"])
    if "metric" in found:
        found["metric"] = SAME_METRIC.get(str(found["metric"]), found["metric"])
    return found


def _distance(theirs: Conditions, ours: Conditions) -> tuple[int, float]:
    """How many of the words among the conditions begin otherwise (Arxiv is nearer to arxiv of a text than its books),
    and how far the numbers are apart, in factors of e."""
    shared = [(theirs[key], ours[key]) for key in theirs.keys() & ours.keys()]
    words = [(a.lower(), b.lower()) for a, b in shared if isinstance(a, str) and isinstance(b, str)]
    numbers = [(a, b) for a, b in shared if not isinstance(a, str) and not isinstance(b, str)]
    return (
        sum(not b.startswith(a) for a, b in words),
        sum(abs(math.log((1 + a) / (1 + b))) for a, b in numbers),
    )


def _unlike_the_papers(found: Measured) -> tuple[bool, bool, float, int]:
    ours = found.conditions
    context = ours.get("context", 0)
    on_cpu = "CPU" in str(ours.get("hardware", ""))
    return ours.get("model") != LLAMA, on_cpu, 0.0 if isinstance(context, str) else -context, -found.n


def published(entry: Entry) -> tuple[float, float]:
    """What the printing of a number leaves open: half its last digit, and what reading a curve may miss."""
    value = float(entry.value)
    mantissa, _, exponent = entry.printed.lower().partition("e")
    half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    off = half + _accuracy(entry)
    return value - off, value + off


def _accuracy(entry: Entry) -> float:
    """The accuracy that ``entry.source`` states for its reading; 0 where it states none."""
    if entry.source_class != "paper-figure":
        return 0.0
    if not (found := re.findall(r"\+/-([\d.]+)|, ([\d.]+) TTIT", entry.source)):
        return 0.0
    first, *others = found
    # Figures 2, 8 and 9: the first is of TTFT, the second of the other two curves.
    later = others[0][1] if others and entry.conditions.get("metric") in ("TTIT", "Throughput") else ""
    return float(later or first[0])


def _meet(a: tuple[float, float], b: tuple[float, float]) -> bool:
    slack = 1e-9 * max(map(abs, (*a, *b)))  # 0.5 of the last digit is not a binary fraction
    return a[0] <= b[1] + slack and b[0] <= a[1] + slack


def as_json(verdict: Verdict) -> dict[str, object]:
    """Every field of the entry and of its verdict, as JSON has them."""
    closest = verdict.closest
    return {
        **dataclasses.asdict(verdict.entry),
        "verdict": verdict.verdict,
        "why": verdict.why,
        "difference": verdict.difference,
        "closest": closest
        and {
            "value": closest.value,
            "interval": verdict.interval,
            "n": closest.n,
            "conditions": closest.conditions,
            "path": str(closest.path),
        },
        "differing": verdict.differing,
        "needs": verdict.needs,
        "against_paper": verdict.against_paper,
        "item": verdict.item,
        "flags": verdict.flags,
    }
