"""Which processes are ours? Daemons in the foreground of sessions of their own, found again and stopped by pid file.

A pid alone proves nothing: it may belong to somebody else by now. ``run/NAME.pid`` also keeps when the kernel started
the process and its command line, and only a process that agrees in all three is ever sent a signal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.files import write_atomically

POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """One process of a cluster, by its name and how it is started."""

    name: str
    command: Sequence[str]


def start(folder: Path, daemon: Daemon, environment: Mapping[str, str]) -> None:
    """Start ``daemon`` unless it runs. Its output goes to the end of ``log/NAME.log``."""
    if alive(folder, daemon.name):
        return
    with _log(folder, daemon.name).open("ab") as log:
        process = subprocess.Popen(
            daemon.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    # The kernel shows no command line for a moment: whoever asks whether it is alive would be told no.
    while process.poll() is None and not command(process.pid):
        time.sleep(POLL_S / 10)
    given = "".join(f"{word}\0" for word in daemon.command)
    known = {"pid": process.pid, "started": _started(process.pid), "command": given}
    write_atomically(_pid_file(folder, daemon.name), json.dumps(known))


def alive(folder: Path, name: str) -> int | None:
    """The pid of the named daemon, None where it does not run (any more)."""
    try:
        known = json.loads(_pid_file(folder, name).read_bytes())
        pid = int(known["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    started = _started(pid)
    return pid if started and (started, command(pid)) == (known.get("started"), known.get("command")) else None


def stop(folder: Path, names: Iterable[str], grace_s: float) -> None:
    """SIGTERM to all that run, SIGKILL to what is still there after ``grace_s`` seconds; forgets their pid files."""
    names = list(names)
    _signal(folder, names, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(alive(folder, name) for name in names):
        time.sleep(POLL_S)
    _signal(folder, names, signal.SIGKILL)
    while any(alive(folder, name) for name in names):
        time.sleep(POLL_S)
    for name in names:
        _pid_file(folder, name).unlink(missing_ok=True)


def last_lines(folder: Path, name: str, count: int = 3) -> str:
    """The end of a daemon's log in one line."""
    path = _log(folder, name)
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return " | ".join(line.strip() for line in lines[-count:] if line.strip()) or f"{path} is empty"


def with_environment(*marks: str) -> list[int]:
    """Processes, this one and its ancestors aside, whose environment has an entry that starts with each of ``marks``.

    Only of this user's: the kernel shows nobody else's. A process may have overwritten its own.
    """
    ours, pid = {os.getpid()}, os.getpid()
    while pid := _parent(pid):
        ours.add(pid)
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if all(any(v.startswith(mark.encode()) for v in variables) for mark in marks):
            found.append(int(entry.parent.name))
    return [pid for pid in found if pid not in ours]


def command(pid: int) -> str:
    """Its command line, a NUL after every word; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _signal(folder: Path, names: Iterable[str], number: signal.Signals) -> None:
    for name in names:
        if pid := alive(folder, name):
            os.kill(pid, number)


def _pid_file(folder: Path, name: str) -> Path:
    return folder / "run" / f"{name}.pid"


def _log(folder: Path, name: str) -> Path:
    return folder / "log" / f"{name}.log"


def _stat(pid: int) -> list[str]:
    """What follows the name in /proc/PID/stat: state, parent, ...; empty for a process that is gone or a zombie."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if words[0] in "ZX" else words


def _started(pid: int) -> int | None:
    """When the kernel started the process, in ticks since boot."""
    words = _stat(pid)
    return int(words[19]) if words else None


def _parent(pid: int) -> int:
    words = _stat(pid)
    return int(words[1]) if words else 0
