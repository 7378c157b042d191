"""Where a number came from: commit, packages, machine. Collected once per run and stored in its record."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "faiss-cpu", "faiss-gpu", "bm25s", "numpy", "scipy")
PROJECT = Path(__file__).resolve().parent.parent
# Results are drawn from records and pages are words: neither makes the code that measured dirty.
CODE = (":!results/tables", ":!results/figures", ":!README.md", ":!docs")


def collect(device: str) -> dict[str, Any]:
    """Commit, dirty flag, versions, machine, SLURM job and attempt. ``device`` is the one that the run uses."""
    import torch

    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _dirty(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "cuda": torch.version.cuda if device.startswith("cuda") else None,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "attempt": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def _dirty() -> bool | None:
    """Whether tracked code differs from the commit; None where that cannot be known."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *CODE)
    return None if changed is None else bool(changed)


def _git(*arguments: str) -> str | None:
    """What git says of the project; None without git or outside the project's own checkout (an installed wheel)."""
    if not (PROJECT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
