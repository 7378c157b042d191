"""A sweep's code is one commit in a worktree of its own, with what was not committed where that was asked for."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.errors import InputError
from slurm import checkout

PICTURE = bytes(range(256)) * 4


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(at), *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of three files, which is the project. No setting of the user's own reaches it."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    root = tmp_path / "project"
    (root / "package").mkdir(parents=True)
    (root / "package" / "a.py").write_text("one = 1\n")
    (root / "picture.bin").write_bytes(PICTURE)
    (root / "gone.txt").write_text("here\n")
    (root / ".gitignore").write_text("/runs/\n*.log\n")
    (root / "kept.log").write_text("ignored, and committed all the same\n")
    git(root, "init", "-q")
    git(root, "config", "user.name", "somebody")
    git(root, "config", "user.email", "somebody@example.org")
    git(root, "add", ".")
    git(root, "add", "--force", "kept.log")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(checkout, "ROOT", root)
    return root


def change(root: Path) -> None:
    """One of each kind: modified, trailing space and no newline at the end, binary, moved, deleted, new, executable."""
    (root / "package" / "a.py").write_text("one = 2 \n\ttwo = 3\r\nthree = 4")
    (root / "picture.bin").write_bytes(PICTURE[::-1])
    (root / "gone.txt").unlink()
    (root / "new" / "deep").mkdir(parents=True)
    (root / "new" / "deep" / "ünï code.txt").write_text("new\n")
    (root / "new" / "empty").touch()
    (root / "new" / "blob").write_bytes(PICTURE)
    script = root / "new" / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (root / "new" / "link").symlink_to("run.sh")
    (root / "runs").mkdir()
    (root / "runs" / "ignored").touch()


def tree(folder: Path) -> dict[str, object]:
    """Every file but git's own and what is ignored: contents, or where a link goes; and may it be run?"""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in (".git", "runs") or path.is_dir():
            continue
        found[name] = path.readlink() if path.is_symlink() else (path.read_bytes(), os.access(path, os.X_OK))
    return found


def test_a_clean_tree_is_its_commit(root: Path, tmp_path: Path) -> None:
    source = checkout.source(dirty=False)
    assert (source.commit, source.diff) == (git(root, "rev-parse", "HEAD").strip(), b"")
    assert source.said == source.commit[:12]
    assert checkout.source(dirty=True) == source
    (root / "runs").mkdir()
    (root / "runs" / "ignored").touch()
    assert checkout.source(dirty=False) == source

    code = checkout.check_out(source, tmp_path / "sweep")
    assert code == tmp_path / "sweep" / "code"
    assert tree(code) == tree(root)
    assert not (tmp_path / "sweep" / checkout.DIFF).exists()
    (root / "package" / "a.py").write_text("one = 9\n")
    git(root, "commit", "-qam", "second")
    assert (code / "package" / "a.py").read_text() == "one = 1\n", "the tree may be edited meanwhile"
    assert git(code, "rev-parse", "HEAD").strip() == source.commit


def test_uncommitted_changes_are_refused(root: Path) -> None:
    change(root)
    with pytest.raises(InputError, match=r"^uncommitted changes in .*project \(.*gone\.txt, .*, \.\.\.\): commit them"):
        checkout.source(dirty=False)
    git(root, "checkout", "-q", ".")
    with pytest.raises(InputError, match=r"\(new/\): commit them, or give --dirty"):
        checkout.source(dirty=False)


@pytest.mark.parametrize(
    "setting",
    [
        ("core.quotePath", "true"),
        ("diff.noprefix", "true"),
        ("diff.mnemonicPrefix", "true"),
        ("diff.renames", "copies"),
        ("diff.external", "false"),
        ("color.ui", "always"),
        ("apply.whitespace", "fix"),
    ],
    ids=lambda setting: setting[0],
)
def test_a_dirty_tree_is_taken_along_to_the_byte(root: Path, tmp_path: Path, setting: tuple[str, str]) -> None:
    """Whatever its owner has set for the diffs that he reads."""
    git(root, "config", *setting)
    change(root)
    git(root, "add", "picture.bin")
    (root / "picture.bin").write_bytes(PICTURE[::-1] + b"!")  # staged, and changed again
    index, status = (root / ".git" / "index").read_bytes(), git(root, "status", "--porcelain")
    source = checkout.source(dirty=True)
    assert source.said == f"{source.commit[:12]} with uncommitted changes"
    code = checkout.check_out(source, tmp_path / "sweep")
    assert tree(code) == tree(root)
    assert not (code / "runs").exists()
    assert (tmp_path / "sweep" / checkout.DIFF).read_bytes() == source.diff
    assert ((root / ".git" / "index").read_bytes(), git(root, "status", "--porcelain")) == (index, status)


def test_a_diff_that_does_not_apply_is_one_line(root: Path, tmp_path: Path) -> None:
    source = checkout.Source(commit=checkout.source(dirty=False).commit, diff=b"no diff\n")
    with pytest.raises(InputError, match=r"^a sweep runs a commit of this project; git apply at .*code: .*") as error:
        checkout.check_out(source, tmp_path / "sweep")
    assert "\n" not in str(error.value)


def test_outside_git(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(checkout, "ROOT", tmp_path / "plain")
    with pytest.raises(InputError, match="git rev-parse at .*plain: fatal: not a git repository"):
        checkout.source(dirty=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="a sweep runs a commit of this project: git is needed"):
        checkout.source(dirty=True)
