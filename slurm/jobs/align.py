"""Verify that a decoder understands its chunk embeddings, before continual pre-training builds on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import plain
from harness.device import open_device
from harness.errors import GateMissed, InputError
from harness.files import destination, write_atomically
from harness.train.curriculum import MULTIPLIERS
from harness.train.export import read_training
from harness.train.tracking import VARIABLE, store, tracking, without_secrets
from slurm.jobs import Progress

if TYPE_CHECKING:
    from harness.train.alignment import Alignment, Gate
    from harness.train.rows import Batch


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was measured on which checkpoint, and one line per number of chunks that missed the gate."""

    folder: Path
    checkpoint: str
    k: int
    batches: int
    seed: int
    gate: Gate | None
    measured: tuple[Alignment, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AlignJob:
    """Read ``batches`` batches of new text back from each number of ``chunks`` (powers of two).

    ``gate`` None measures only. With ``stop`` a missed gate raises ``GateMissed``, so that in a pipeline no stage
    starts from this checkpoint; without it the result says what was missed. ``out`` is written either way.
    """

    checkpoint: Path
    chunks: tuple[int, ...] = (1, 2, 4, 8)
    batches: int = 8
    gate: Gate | None = None
    stop: bool = False
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None

    @property
    def title(self) -> str:
        # A trained stage lies in <stage and scale>/final.
        named = self.checkpoint.parent if self.checkpoint.name == "final" else self.checkpoint
        return f"verify the alignment of {named.name}"

    def run(self, progress: Progress | None = None) -> Verification:
        """Measure; the same numbers every time. Raises ``InputError`` for counts and checkpoints that cannot be."""
        if not self.chunks or any(count not in MULTIPLIERS for count in self.chunks):
            raise InputError(
                f"expected numbers of chunks of {', '.join(map(str, MULTIPLIERS))}, got "
                f"{', '.join(map(str, self.chunks)) or 'none'}"
            )
        if self.batches < 1:
            raise InputError(f"expected at least 1 batch, got {self.batches}")
        device = open_device(self.device)

        from harness.data.world.tokenizer import content_tokens
        from harness.model.load import load_decoder
        from harness.train.alignment import measure
        from harness.train.read_back import held_out, read_back

        load = _loader(self.checkpoint)
        out = self.out and destination(self.out)
        decoder = load_decoder(str(self.checkpoint), device=self.device)
        model = load(self.checkpoint, decoder.model)
        kinds = content_tokens(decoder.tokenizer)
        practices = {count: held_out(model, decoder.tokenizer, count, self.seed) for count in self.chunks}
        total = self.batches * len(practices)

        def drawn(place: int, count: int) -> Iterator[Batch]:
            for number in range(self.batches):
                yield {name: tensor.to(device) for name, tensor in next(practices[count]).items()}
                if progress:
                    progress(place * self.batches + number + 1, total, f"{count} chunks")

        batches = {count: drawn(place, count) for place, count in enumerate(practices)}
        measured = measure(model, read_back, batches, kinds)
        result = Verification(
            folder=self.checkpoint,
            checkpoint=decoder.checkpoint,
            k=model.config.k,
            batches=self.batches,
            seed=self.seed,
            gate=self.gate,
            measured=tuple(measured),
            missed=tuple(self.gate.failures(measured)) if self.gate else (),
        )
        if out:
            write_atomically(out, to_json(result) + "\n")
        _track(result)
        if self.stop and result.missed:
            raise GateMissed(f"{self.checkpoint} misses the alignment gate: {'; '.join(result.missed)}")
        return result

    def said(self, result: Verification) -> str:
        """The reading at every number of chunks, each kind of token beside its floor, and the verdict."""
        lines = []
        for row in result.measured:
            kinds = (
                f"{kind} {100 * read.accuracy:.1f} % (floor {100 * row.floor[kind].accuracy:.1f})"
                for kind, read in row.read.items()
            )
            lines.append(f"    {row.chunks} chunks: {', '.join(kinds)}")
        verdict = "" if result.gate is None else "gate missed" if result.missed else "gate passed"
        return "\n".join(["token accuracy" + (f"; {verdict}" if verdict else ""), *lines])


def _loader(checkpoint: Path) -> Callable[[Path, Any], Any]:
    """What loads the chunk-reading model in ``checkpoint``. Raises ``InputError`` where there is none."""
    import refrag_v1.checkpoint
    import refrag_v2.checkpoint

    if refrag_v1.checkpoint.FILES.there(checkpoint):
        return refrag_v1.checkpoint.load
    refrag_v2.checkpoint.read_config(checkpoint)  # the quickest refusal of what is not REFRAG's
    return refrag_v2.checkpoint.load_refrag


def _track(result: Verification) -> None:
    """Add what was measured to the checkpoint's training where that was tracked, and still may be."""
    from harness.train.mlflow_run import Addition, kept_in

    kept = kept_in(result.folder.parent)
    uri = store(None) or (None if os.environ.get(VARIABLE) else kept)
    if uri is None or without_secrets(uri, uri) != kept:
        return
    with tracking(lambda: Addition(uri, result.folder.parent), uri, ()) as logged:
        if logged:
            measured = {
                str(row.chunks): {"read": plain(row.read), "floor": plain(row.floor)} for row in result.measured
            }
            logged({"step": read_training(result.folder).get("steps", 0), "alignment": measured})


def to_json(result: Verification) -> str:
    """The document that ``--json`` prints and ``out`` holds; of the folder its last two names, which travel."""
    document: dict[str, Any] = plain(result)
    document["folder"] = "/".join(result.folder.parts[-2:])
    return json.dumps(document, indent=1)
