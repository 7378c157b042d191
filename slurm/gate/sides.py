"""Which two commits are compared, and a worktree of each."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from harness.config import digest
from harness.errors import InputError, unknown
from slurm import checkout
from slurm.checkout import Source


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: a commit, or what is in the tree on top of it. ``files`` are those that differ from it."""

    name: str
    source: Source
    subject: str
    date: str
    files: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Names its stored predictions: the commit, and the digest of what differs from it."""
        changed = f"-{digest(self.source.diff.hex())}" if self.source.diff else ""
        return f"{self.source.commit}{changed}"

    def holds(self, path: str) -> bool:
        """Whether the commit has a file or folder ``path``, from the repository's root."""
        return bool(checkout.git("ls-tree", "--full-tree", self.source.commit, path))

    @property
    def short(self) -> str:
        return f"{self.source.commit[:12]}{'+' if self.source.diff else ''}"

    @property
    def said(self) -> str:
        named = f" ({self.name})" if not self.source.commit.startswith(self.name) else ""
        files = ", ".join(self.files[:5]) + (f" and {len(self.files) - 5} more" if len(self.files) > 5 else "")
        changed = f" with uncommitted changes in {files}" if self.source.diff else ""
        return f"{self.source.commit[:12]}{named}{changed}: {self.subject}"


def commit_of(name: str) -> Side:
    """The commit that ``name`` stands for. Raises ``InputError`` with the nearest names where there is none.

    In a shallow clone it may only be missing here, so none is offered in its place.
    """
    try:
        commit = checkout.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except InputError:
        if checkout.git("rev-parse", "--is-shallow-repository").strip() == b"true":
            raise InputError(
                f"unknown revision {name!r}; this clone is shallow, `git fetch --unshallow` brings what it lacks"
            ) from None
        refs = checkout.git("for-each-ref", "--format=%(refname:short)").decode().split()
        if re.fullmatch("[0-9a-f]{4,40}", name):  # no commit, or more than one, begins so
            commits = checkout.git("rev-list", "--all", "--abbrev-commit").decode().split()
            refs += [commit for commit in commits if commit.startswith(name[:4])]
        raise unknown("revision", name, {"HEAD", *refs}) from None
    return _side(name, Source(commit=commit.decode().strip(), diff=b""))


def candidate_of(name: str | None, *, dirty: bool) -> Side:
    """The commit of ``name``; None is what is checked out, with its uncommitted changes where ``dirty`` allows them.

    Raises ``InputError`` for uncommitted changes that were not asked for.
    """
    if name is not None:
        if dirty:
            raise InputError(f"--dirty takes what is checked out; leave --candidate {name} out")
        return commit_of(name)
    return _side("HEAD", checkout.source(dirty=dirty))


def _side(name: str, source: Source) -> Side:
    subject, date = checkout.git("show", "--no-patch", "--format=%s%n%cI", source.commit).decode().splitlines()[:2]
    files = dict.fromkeys(re.findall(r"^diff --git a/(.+?) b/", source.diff.decode(errors="replace"), re.MULTILINE))
    return Side(name=name, source=source, subject=subject, date=date, files=tuple(files))


@contextmanager
def worktree(side: Side, below: Path) -> Iterator[Path]:
    """A worktree of ``side`` in a folder of its own below ``below``, removed at the end."""
    below.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f"{side.short.rstrip('+')}-", dir=below.resolve()))
    try:
        yield checkout.check_out(side.source, folder)
    finally:
        checkout.remove(folder)
        shutil.rmtree(folder)


def ancestors(name: str) -> list[str]:
    """Every commit that led to ``name``, itself too, the oldest first. Raises ``InputError`` as ``commit_of`` does."""
    commit = commit_of(name).source.commit
    return checkout.git("rev-list", "--topo-order", "--reverse", commit).decode().split()
