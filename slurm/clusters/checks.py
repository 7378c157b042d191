"""Can jobs run on a cluster? One question a check, from the outside in; nothing that could wait for hours."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import InputError
from harness.files import write_atomically
from slurm.clusters.profiles import LocalProfile, SlurmProfile, find_profile

ANSWER_S = 30  # what a command may take
NODE_S = 10  # what a node may take to become free for the check of the shared folder


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was asked, whether it is so (None: it could not be judged), and what was found, in one line."""

    name: str
    ok: bool | None
    said: str


def check_cluster(name: str) -> list[Check]:
    """All that a job needs of the named cluster. Raises ``InputError`` for an unknown name or a wrong site file."""
    profile = find_profile(name)
    return list(_local(profile) if isinstance(profile, LocalProfile) else _slurm(profile))


def check_before_submission(profile: LocalProfile | SlurmProfile, runs: Path) -> None:
    """What can be known at once, without a node. Raises ``InputError`` for the first thing that is wrong."""
    profile = replace(profile, shared=runs)
    for check in _quick(profile) if isinstance(profile, SlurmProfile) else [_folder(profile)]:
        if check.ok is False:
            raise InputError(f"cluster {profile.name!r}, {check.name}: {check.said}")


def _quick(profile: SlurmProfile) -> Iterator[Check]:
    """Does SLURM answer, is the partition there, and can runs be written?"""
    answer = _ask(profile, "sinfo", "-h", "-o", "%R")
    yield Check(name="sinfo", ok=answer.ok, said="answers" if answer.ok else answer.said)
    accounting = _ask(profile, "sacct", "-X", "-n", "-S", "now")
    yield Check(name="sacct", ok=accounting.ok, said="answers" if accounting.ok else accounting.said)
    if answer.ok:
        partitions = sorted(set(answer.said.split()))
        named = [profile.partition, *filter(None, [profile.cpu_partition])]
        missing = [name for name in named if name not in partitions]
        said = f"no {missing[0]!r}; this cluster has {', '.join(partitions)}" if missing else ", ".join(named)
        yield Check(name="partition", ok=not missing, said=said)
    yield _folder(profile)


def _local(profile: LocalProfile) -> Iterator[Check]:
    import torch

    there = torch.cuda.device_count()
    said = f"{there} here, the profile asks for {profile.gpus_per_node}"
    yield Check(name="GPUs", ok=there >= profile.gpus_per_node, said=said)
    yield _folder(profile)


def _slurm(profile: SlurmProfile) -> Iterator[Check]:
    *answers, folder = _quick(profile)
    yield from answers
    there = any(check.name == "partition" and check.ok for check in answers)
    job = _job(profile) if there else None
    if job:
        yield _gpus(profile)
        yield job
    if profile.modules:
        loaded = _run(profile, ["bash", "-lc", 'module load "$@"', "bash", *profile.modules])
        yield Check(name="modules", ok=loaded.ok, said=" ".join(profile.modules) if loaded.ok else loaded.said)
    yield folder
    if job and job.ok and folder.ok:
        yield _folder_on_a_node(profile)


def _gpus(profile: SlurmProfile) -> Check:
    """Is there a node with what the profile asks for? A gres may name sockets: ``gpu:h100:8(S:0-1)``."""
    listed = _ask(profile, "sinfo", "-h", "-N", "-p", profile.partition, "-o", "%G")
    gres = [re.sub(r"\(.*?\)", "", entry) for entry in listed.said.split()]
    enough = [entry for entry in gres if any(_holds(item, profile) for item in entry.split(","))]
    asked = profile.gres or "no gres"
    if not profile.gres or enough:
        return Check(name="gres", ok=True, said=f"{asked} on {len(enough) if profile.gres else len(gres)} nodes")
    return Check(
        name="gres", ok=False, said=f"no node with {asked}; nodes have {', '.join(sorted(set(gres))) or 'none'}"
    )


def _holds(item: str, profile: SlurmProfile) -> bool:
    kind, *rest = item.split(":")
    count, type_ = (rest[-1] if rest else ""), (rest[0] if len(rest) == 2 else "")
    fits = not profile.gpu_type or profile.gpu_type == type_
    return kind == "gpu" and fits and count.isdigit() and int(count) >= profile.gpus_per_node


def _job(profile: SlurmProfile) -> Check:
    """Would a job of one whole node be taken? Judges account, qos, constraint, memory and time; submits nothing."""
    options = [f"--{option}={value}" for option, value in profile.options().items()]
    taken = _ask(profile, "sbatch", "--test-only", "--nodes=1", "--ntasks=1", *options, "--wrap=true")
    return Check(name="job", ok=taken.ok, said=f"taken: {' '.join(options)}" if taken.ok else taken.said)


def _folder(profile: LocalProfile | SlurmProfile) -> Check:
    """Writable, or can it be made? A file is written and removed; no folder is made."""
    folder, there = profile.shared.absolute(), _there(profile)
    probe = there / f".doctor-{secrets.token_hex(4)}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        return Check(name="folder", ok=False, said=f"{folder}: {there} cannot be written: {error.strerror}")
    said = f"{folder} is" if there == folder else f"{folder} can be made: {there} is"
    return Check(name="folder", ok=True, said=f"{said} writable here")


def _there(profile: LocalProfile | SlurmProfile) -> Path:
    """The folder of runs, or what there is of its path."""
    folder = profile.shared.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _folder_on_a_node(profile: SlurmProfile) -> Check:
    """Does a node read there what was written here, and write there too?"""
    folder = _there(profile)
    probe, word = folder / f".doctor-{secrets.token_hex(4)}", secrets.token_hex(8)
    answer_file = probe.with_suffix(".answer")
    write_atomically(probe, word)
    kept = {k: v for k, v in profile.options().items() if k in ("partition", "account", "qos", "constraint")}
    options = [f"--{option}={value}" for option, value in kept.items()]
    copy = ["cp", str(probe), str(answer_file)]
    try:
        done = _ask(
            profile, "srun", f"--immediate={NODE_S}", "--ntasks=1", "--time=1", "--chdir=/", *options, *copy, limit_s=90
        )
        if done.ok and answer_file.exists() and answer_file.read_text() == word:
            return Check(name="folder, node", ok=True, said=f"{folder} is the same on a node, and writable")
        if done.said.endswith("Requested nodes are busy"):
            return Check(name="folder, node", ok=None, said=f"no node was free within {NODE_S} s: not judged")
        return Check(name="folder, node", ok=False, said=done.said or f"a node wrote elsewhere than {folder}")
    finally:
        probe.unlink(missing_ok=True)
        answer_file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Answer:
    ok: bool
    said: str


def _ask(profile: SlurmProfile, command: str, *arguments: str, limit_s: float = ANSWER_S) -> _Answer:
    if shutil.which(command) is None:
        return _Answer(False, f"no {command} on PATH: is this a login node? (Debian: apt-get install slurm-client)")
    return _run(profile, [command, *arguments], limit_s)


def _run(profile: SlurmProfile, command: list[str], limit_s: float = ANSWER_S) -> _Answer:
    """Standard output of what succeeds; of what fails its last line, which says why."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **profile.environment},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return _Answer(False, f"{command[0]} does not answer within {limit_s:.0f} s")
    if done.returncode == 0:
        return _Answer(True, done.stdout)
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    return _Answer(False, f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ')}")
