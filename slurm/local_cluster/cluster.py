"""A real SLURM cluster on one machine, for tests and proofs: virtual nodes with GPUs that are only counted.

Everything lies in one folder and belongs to the user who started it: no root (but to install the packages), no systemd,
nothing in /etc, /run or /var, its own munge key, sockets and free ports. Two clusters in two folders know nothing of
one another. It allocates, queues, preempts, requeues and accounts as any SLURM does; it isolates nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError
from harness.files import write_atomically
from slurm.local_cluster import conf, daemons
from slurm.local_cluster.conf import NODES, Setup
from slurm.local_cluster.daemons import Daemon

# Every binary that is called, and the Debian package that has it.
PACKAGES: Mapping[str, str] = {
    "munged": "munge",
    "mungekey": "munge",
    "munge": "munge",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",  # what mariadb-install-db calls
    "slurmdbd": "slurmdbd",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sinfo": "slurm-client",
}

MARK = "refrag-cluster.lock"  # held by one `up` or `down` at a time; a folder without it is not ours to touch
MAX_FOLDER = 80  # characters: a socket's path has at most 107, and munged adds to it
START_S = 60.0
JOBS_GONE_S = 20.0
STOP_S = 15.0
_KEEPER = "slurmstepd"
READY = ("idle", "mixed", "allocated", "completing")


@dataclass(frozen=True, kw_only=True)
class Status:
    """What ``refrag-bench cluster status`` prints; its field names are the keys of ``--json``."""

    folder: str
    up: bool
    problem: str  # in one line; empty where it is up
    daemons: Mapping[str, int | None]  # pids
    nodes: Mapping[str, str]  # state by node
    partitions: Mapping[str, str]  # nodes by partition


def default_folder() -> Path:
    """The environment's REFRAG_CLUSTER, else one folder per user among the temporary files."""
    given = os.environ.get("REFRAG_CLUSTER")
    return Path(given).expanduser() if given else Path(tempfile.gettempdir()) / f"refrag-cluster-{os.getuid()}"


def environment(folder: Path) -> dict[str, str]:
    """All that ``sbatch``, ``sinfo`` and the like need to reach the cluster in ``folder``."""
    return {"SLURM_CONF": str(folder.resolve() / "etc" / "slurm.conf")}


def up(folder: Path, say: Callable[[str], None]) -> None:
    """Bring the cluster up, or only what is missing of it. A cluster of which nothing runs begins anew, queue empty.

    Raises ``InputError`` where packages are missing, the folder cannot be used, or a daemon does not come up.
    """
    _require_packages()
    folder = _usable(folder)
    with _locked(folder):
        names = [daemon.name for daemon in _daemons(folder)]
        anew = not any(daemons.alive(folder, name) for name in names)
        if anew:
            _begin(folder)
        try:
            _start(folder, say)
        except InputError:
            if anew:  # the next `up` then chooses other ports
                daemons.stop(folder, names, grace_s=STOP_S)
            raise


def down(folder: Path, say: Callable[[str], None]) -> None:
    """Cancel all jobs, wait until they are gone, stop the daemons. The folder stays, with its logs."""
    if not (folder / MARK).exists():
        say(f"nothing runs in {folder}")
        return
    folder = folder.resolve()
    with _locked(folder):
        names = [daemon.name for daemon in _daemons(folder)]
        running = [name for name in names if daemons.alive(folder, name)]
        if "slurmctld" in running:
            _cancel_jobs(folder)
        daemons.stop(folder, NODES, grace_s=STOP_S if "slurmctld" in running else 3.0)
        _kill_job_processes(folder)
        for name in reversed([name for name in names if name not in NODES]):
            daemons.stop(folder, [name], grace_s=STOP_S)
        say(f"stopped {', '.join(running)}" if running else f"nothing runs in {folder}")


def status(folder: Path) -> Status:
    """Which daemons run, and what the controller says of nodes and partitions."""
    folder = folder.resolve()
    pids = {daemon.name: daemons.alive(folder, daemon.name) for daemon in _daemons(folder)}
    nodes: dict[str, str] = {}
    partitions: dict[str, str] = {}
    gone = [name for name, pid in pids.items() if pid is None]
    problem = f"not running: {', '.join(gone)}" if gone else ""
    if len(gone) == len(pids):
        problem = f"no cluster runs in {folder}; bring it up with `refrag-bench cluster up`"
    elif "slurmctld" not in gone:
        try:
            nodes, partitions = _nodes(folder), _partitions(folder)
        except InputError as error:
            problem = problem or str(error)
        bad = [f"{name} is {state}" for name, state in nodes.items() if state not in READY]
        problem = problem or ", ".join(bad)
    return Status(folder=str(folder), up=not problem, problem=problem, daemons=pids, nodes=nodes, partitions=partitions)


def missing_packages() -> dict[str, str]:
    """The commands that a cluster needs and this machine lacks, each with Debian's package of it."""
    return {binary: package for binary, package in PACKAGES.items() if _find(binary) is None}


def _require_packages() -> None:
    missing = missing_packages()
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        raise InputError(
            f"no {', '.join(missing)} on this machine; as root on Debian: "
            f"apt-get install --no-install-recommends {packages}"
        )


def _find(binary: str) -> str | None:
    """Daemons lie where an ordinary user's PATH does not look."""
    return shutil.which(binary, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


def _usable(folder: Path) -> Path:
    """``folder``, there and absolute. The sockets in it must be reachable, so all may enter."""
    folder = folder.resolve()
    if len(str(folder)) > MAX_FOLDER or not re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII):
        raise InputError(
            f"expected a folder of at most {MAX_FOLDER} characters in letters, digits and ./+-_ (it holds sockets, and "
            f"its path stands in SLURM's settings), got {folder}"
        )
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"expected a folder of your own, but {folder} belongs to uid {folder.stat().st_uid}")
    if any(folder.iterdir()) and not (folder / MARK).exists():
        raise InputError(f"expected an empty folder or a cluster's, but {folder} holds something else")
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / MARK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _begin(folder: Path) -> None:
    """A new cluster in ``folder``: nothing is left of the last one, and no job id comes twice."""
    for name in ("etc", "gpu", "log", "mysql", "run", "spool", "state"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    for node in NODES:
        (folder / "spool" / node).mkdir()
    for index in range(conf.GPUS):
        (folder / "gpu" / f"nvidia{index}").symlink_to(os.devnull)
    setup = Setup(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        user=_user(),
        ports=_free_ports(conf.port_names()),
        first_job_id=int(time.time()) % 50_000_000 + 1,
        password=secrets.token_hex(16),
    )
    etc = folder / "etc"
    write_atomically(etc / "slurm.conf", conf.slurm_conf(setup))
    write_atomically(etc / "gres.conf", conf.gres_conf(setup))
    for name, text in (
        ("slurmdbd.conf", conf.slurmdbd_conf(setup)),
        ("mariadb.cnf", conf.mariadb_cnf(setup)),
        ("init.sql", conf.init_sql(setup)),
    ):
        (etc / name).touch(mode=0o600)
        (etc / name).write_text(text)
    _call(folder, "mungekey", "-c", "-k", str(etc / "munge.key"))
    _call(
        folder,
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={folder / 'mysql'}",
        f"--user={setup.user}",
        "--auth-root-authentication-method=socket",
        "--skip-test-db",
        "--innodb-log-file-size=8M",
    )


def _user() -> str:
    """The name of this process's user, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError as error:
        raise InputError(f"expected a user with a name (SLURM asks for it), but uid {os.getuid()} has none") from error


def _start(folder: Path, say: Callable[[str], None]) -> None:
    for daemon in _daemons(folder):
        daemons.start(folder, daemon, environment(folder))
        if ready := _READY.get(daemon.name):
            _wait(folder, daemon.name, ready)
            say(f"{daemon.name} is up")
    _resume(folder)
    _wait(folder, "slurmctld", _nodes_ready)
    say(f"{len(NODES)} nodes are up")


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port per name that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in names:
            listening = stack.enter_context(socket.socket())
            listening.bind(("127.0.0.1", 0))
            ports[name] = listening.getsockname()[1]
        return ports


def _daemons(folder: Path) -> list[Daemon]:
    """All of a cluster, in the order in which they need one another."""

    def daemon(name: str, binary: str, *arguments: str) -> Daemon:
        return Daemon(name=name, command=[_find(binary) or binary, *arguments])

    run, etc = folder / "run", folder / "etc"
    return [
        daemon(
            "munged",
            "munged",
            "--foreground",
            f"--key-file={etc / 'munge.key'}",
            f"--socket={run / 'munge.socket'}",
            f"--pid-file={run / 'munged.own.pid'}",
            f"--log-file={folder / 'log' / 'munged.own.log'}",
            f"--seed-file={run / 'munge.seed'}",
            "--num-threads=10",
        ),
        daemon("mariadbd", "mariadbd", f"--defaults-file={etc / 'mariadb.cnf'}"),
        daemon("slurmdbd", "slurmdbd", "-D"),
        daemon("slurmctld", "slurmctld", "-D"),
        *(daemon(node, "slurmd", "-D", "-N", node) for node in NODES),
    ]


def _wait(folder: Path, name: str, ready: Callable[[Path], bool]) -> None:
    """Until ``ready``. Raises ``InputError`` with the end of the daemon's log where it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while not ready(folder):
        ended = daemons.alive(folder, name) is None
        if ended or time.monotonic() > deadline:
            what = "ended" if ended else f"is not ready after {START_S:.0f} s"
            raise InputError(
                f"the cluster in {folder} did not come up: {name} {what}: {daemons.last_lines(folder, name)}"
            )
        time.sleep(0.1)


def _munge_ready(folder: Path) -> bool:
    return _succeeds(folder, "munge", f"--socket={folder / 'run' / 'munge.socket'}", "--no-input")


def _mysql_ready(folder: Path) -> bool:
    """It listens on its TCP port only after init.sql has been run."""
    port = next(
        int(line.partition("=")[2])
        for line in (folder / "etc" / "mariadb.cnf").read_text().splitlines()
        if line.startswith("port=")
    )
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _accounting_ready(folder: Path) -> bool:
    """slurmdbd answers, and knows this cluster."""
    listed = _run(folder, "sacctmgr", "-n", "-P", "list", "cluster", "format=cluster")
    if listed.returncode:
        return False
    return "refrag" in listed.stdout.split() or _succeeds(folder, "sacctmgr", "-i", "add", "cluster", "refrag")


def _controller_ready(folder: Path) -> bool:
    return _succeeds(folder, "scontrol", "ping")


def _nodes_ready(folder: Path) -> bool:
    nodes = _nodes(folder)
    return all(nodes.get(name) in READY for name in NODES)


_READY: Mapping[str, Callable[[Path], bool]] = {
    "munged": _munge_ready,
    "mariadbd": _mysql_ready,
    "slurmdbd": _accounting_ready,
    "slurmctld": _controller_ready,
}


def _nodes(folder: Path) -> dict[str, str]:
    return _table(folder, "sinfo", "-h", "-N", "-o", "%N|%T")


def _partitions(folder: Path) -> dict[str, str]:
    return _table(folder, "sinfo", "-h", "-o", "%R|%N")


def _table(folder: Path, *command: str) -> dict[str, str]:
    lines = _call(folder, *command).splitlines()
    return dict(line.split("|", 1) for line in lines if "|" in line)


def _resume(folder: Path) -> None:
    """A drained node stays drained over a restart."""
    for name, state in _nodes(folder).items():
        if state.startswith(("drain", "down")):
            _run(folder, "scontrol", "update", f"nodename={name}", "state=resume")


def _cancel_jobs(folder: Path) -> None:
    _run(folder, "scancel", f"--user={_user()}")
    deadline = time.monotonic() + JOBS_GONE_S
    while time.monotonic() < deadline and _run(folder, "squeue", "-h").stdout.strip():
        time.sleep(0.2)


def _kill_job_processes(folder: Path) -> None:
    """What outlived its node, if anything: a job's processes and their keepers are sessions of their own.

    Only what this cluster started has both its SLURM_CONF and a job's id in the environment; a keeper has the former.
    """
    mark = f"SLURM_CONF={environment(folder)['SLURM_CONF']}"
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        left = [pid for pid in daemons.with_environment(mark) if Path(daemons.command(pid)).name.startswith(_KEEPER)]
        left += daemons.with_environment(mark, "SLURM_JOB_ID=")
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(daemons.POLL_S)


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_find(command[0]) or command[0], *command[1:]],
        env={**os.environ, **environment(folder)},
        capture_output=True,
        text=True,
        errors="replace",
    )


def _succeeds(folder: Path, *command: str) -> bool:
    return _run(folder, *command).returncode == 0


def _call(folder: Path, *command: str) -> str:
    """Standard output. Raises ``InputError`` with the last lines of what the command said where it fails."""
    done = _run(folder, *command)
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise InputError(f"{command[0]} failed for the cluster in {folder}: {said or f'exit code {done.returncode}'}")
    return done.stdout
