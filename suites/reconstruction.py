"""Reconstruction: how well is a context foretold again, token by token, from what a system made of it?

Protocol (after arXiv:2509.01092v2, Table 11): the windows of ``suites.perplexity``, each predicted with its context's
own first ``output`` tokens right after the context in place of those that follow it. All else is as there. A system
that kept every token could copy; how near to that chunk embeddings come is what their training is to teach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from harness.errors import InputError
from harness.likelihood import Window
from harness.record import WindowSpec
from suites.perplexity import PerplexitySuite

NAME = "reconstruction"


@dataclass(frozen=True, kw_only=True)
class ReconstructionSuite(PerplexitySuite):
    """The same settings; ``output`` is at most the context. Raises ``InputError`` where it is more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output > self.context:
            raise InputError(
                f"a context of {self.context} tokens cannot give back {self.output}: expected a context of at least "
                "the output"
            )

    @property
    def spec(self) -> WindowSpec:
        return replace(super().spec, name=NAME)

    @cached_property
    def windows(self) -> list[Window]:
        return [replace(window, continuation=window.context[: self.output]) for window in super().windows]
