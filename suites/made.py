"""What identifies a suite that makes its questions, and their passages, by settings of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.config import digest
from harness.protocol import Example
from harness.record import MadeSuiteSpec, RetrievalSpec


def identify(
    name: str, settings: Mapping[str, Any], questions: Sequence[Example], limit: int | None
) -> tuple[MadeSuiteSpec, RetrievalSpec]:
    """The two parts of a spec: both carry the digest of ``questions``, so what was made and not how it is named."""
    revision = digest(questions)
    spec = MadeSuiteSpec(
        name=name, dataset=name, split="test", limit=limit, root="made", revision=revision, settings=settings
    )
    return spec, RetrievalSpec(retriever="given", setting=name, digest=revision)
