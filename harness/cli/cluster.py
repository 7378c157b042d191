"""``refrag-bench cluster``: a real SLURM on this machine, up, down, and how it is."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from harness.config import load, plain

HELP = "bring up a small SLURM cluster on this machine, take it down, say how it is"

DESCRIPTION = """\
A SLURM cluster for tests, on this machine and of this user alone: munge, accounting, a controller and two virtual
nodes with 8 H100 each that are only counted. Needs Debian's packages (12: SLURM 22.05) and no root, no systemd.

  up      start it, or what is missing of it; prints the environment that sbatch, squeue and the like need
  down    cancel its jobs, stop its processes
  status  print daemons, nodes and partitions; exit code 1 where something is wrong

Partitions: h100 (default; its jobs may be preempted and requeued) and h100-high (preempts), over the same nodes."""

EPILOG = """\
examples:
  apt-get install --no-install-recommends munge slurmctld slurmd slurm-client slurmdbd \\
      mariadb-server-core mariadb-client-core
  eval "$(refrag-bench cluster up)" && srun --nodes=2 --gres=gpu:h100:8 hostname
  refrag-bench doctor --cluster slurm-local
  refrag-bench cluster down"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="up|down|status", required=True)
    for name, help_ in (("up", "start it"), ("down", "stop it"), ("status", "how is it?")):
        action = actions.add_parser(name, help=help_)
        action.add_argument(
            "--folder",
            type=Path,
            metavar="DIR",
            help="where it lives (default: REFRAG_CLUSTER, else refrag-cluster-UID among the temporary files)",
        )
        if name == "status":
            action.add_argument("--json", action="store_true", help="print the state as one JSON object")


def run(args: argparse.Namespace) -> int:
    folder: Path = args.folder or load("slurm.local_cluster.cluster:default_folder")()
    if args.action == "status":
        return _status(load("slurm.local_cluster.cluster:status")(folder), as_json=args.json)
    load(f"slurm.local_cluster.cluster:{args.action}")(folder, _say)
    if args.action == "up":
        for name, value in load("slurm.local_cluster.cluster:environment")(folder).items():
            print(f"export {name}={shlex.quote(value)}")
    return 0


def _say(line: str) -> None:
    """Not on standard output: that is for ``eval``."""
    print(line, file=sys.stderr)


def _status(status: Any, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(plain(status), indent=1))
    else:
        print(f"cluster in {status.folder}: {status.problem or 'up'}")
        for name, pid in status.daemons.items():
            print(f"  {name:<10} {f'pid {pid}' if pid else 'not running'}")
        for name, state in status.nodes.items():
            print(f"  node {name}: {state}")
        for name, nodes in status.partitions.items():
            print(f"  partition {name}: {nodes}")
    return 0 if status.up else 1
