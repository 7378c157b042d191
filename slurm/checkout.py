"""The code that a sweep runs: a git worktree of one commit, so that the tree may be edited while jobs wait and run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.errors import InputError
from harness.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
DIFF = "changes.diff"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is checked out at ROOT: its commit, and what differs from it (empty where nothing does)."""

    commit: str
    diff: bytes

    @property
    def said(self) -> str:
        return f"{self.commit[:12]}{' with uncommitted changes' if self.diff else ''}"


def source(*, dirty: bool) -> Source:
    """What would be launched. Raises ``InputError`` outside git, and for uncommitted changes unless ``dirty``."""
    commit = git("rev-parse", "HEAD").decode().strip()
    changed = git("status", "--porcelain").decode().splitlines()
    if changed and not dirty:
        files = ", ".join(line[3:] for line in changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise InputError(
            f"uncommitted changes in {ROOT} ({files}): commit them, or give --dirty to run them and keep their diff"
        )
    return Source(commit=commit, diff=_diff() if changed else b"")


def check_out(source: Source, folder: Path) -> Path:
    """A worktree of ``source`` in ``folder``/code, its diff beside it; the worktree."""
    code = folder / "code"
    git("worktree", "add", "--quiet", "--detach", str(code), source.commit)
    if source.diff:
        write_atomically(folder / DIFF, source.diff)
        git("apply", "--whitespace=nowarn", str(folder / DIFF), at=code)
    return code


def remove(folder: Path) -> None:
    """Take the worktree in ``folder``/code away, whichever clone of the project it is of.

    Raises ``InputError`` where git does not let it go.
    """
    code = folder / "code"
    if not code.exists():
        return
    clone = git("rev-parse", "--path-format=absolute", "--git-common-dir", at=code).decode().strip()
    git("worktree", "remove", "--force", str(code.absolute()), at=Path(clone))


def _diff() -> bytes:
    """All that differs from HEAD, untracked files too, without touching the index."""
    with TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        git("read-tree", "HEAD", environment=index)
        git("add", "--all", environment=index)
        # Plumbing: what a user has set for `git diff` (noprefix, an external tool) is not a patch to apply.
        return git("diff-index", "--cached", "--binary", "--no-ext-diff", "--patch", "HEAD", environment=index)


def git(*arguments: str, at: Path | None = None, environment: dict[str, str] | None = None) -> bytes:
    """What git says in the worktree ``at`` (ROOT). Raises ``InputError`` with its last line where it fails."""
    at = at or ROOT
    try:
        done = subprocess.run(
            ["git", "-C", str(at), *arguments], capture_output=True, env={**os.environ, **(environment or {})}
        )
    except FileNotFoundError as error:
        raise InputError("a sweep runs a commit of this project: git is needed") from error
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"a sweep runs a commit of this project; git {arguments[0]} at {at}: {why[-1]}")
    return done.stdout
