"""``refrag-bench sweep``: an experiment's jobs on a cluster: submit, look, cancel, go on, read the logs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness.cli.arguments import SCALE
from harness.config import load, plain
from harness.errors import InputError

if TYPE_CHECKING:
    from slurm.execution.sweep import Sweep
    from slurm.execution.watch import Status, Watcher

HELP = "run an experiment as jobs of a cluster: submit, status, watch, cancel, resume, logs, clean"

DESCRIPTION = """\
Every job of an experiment becomes a job of the cluster: those of a phase that ask for the same are one array, and a
phase starts when the one before it has succeeded. Jobs run the commit that is checked out, in a worktree of their own,
so the tree may be edited meanwhile. What has a result is not run again.

  submit   work out the jobs and give them to the cluster; exit code 2 and nothing submitted where anything is wrong
  status   where every job stands now; exit code 1 where something failed or waits for somebody, 2 where the controller
           does not answer
  watch    the same until nothing more happens; ending it ends no job
  cancel   end what waits and runs; what is done stays
  resume   submit again what failed, was cancelled, got lost or never started; release what is held
  logs     what a job wrote, all attempts
  clean    remove the code of a sweep of which nothing waits or runs; its logs, states and results stay. What failed
           cannot be resumed then, only submitted anew

Clusters are named profiles (`refrag-bench doctor --cluster NAME` checks one): h100, slurm-local (`refrag-bench cluster
up`), and local: processes of this machine, for which submit and resume stay until the end."""

EPILOG = """\
examples:
  refrag-bench sweep submit k_ablation --cluster h100 --dry-run
  refrag-bench sweep submit k_ablation --cluster h100 --parallel 16 --watch
  refrag-bench sweep status                     the newest sweep
  refrag-bench sweep logs k_ablation-20260101-120000-beef 7
  refrag-bench sweep resume --watch
  refrag-bench sweep clean k_ablation-20260101-120000-beef"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    submit = actions.add_parser("submit", help="give an experiment to a cluster")
    submit.add_argument("experiment", metavar="NAME", help="as `refrag-bench run` knows it")
    submit.add_argument("--cluster", required=True, metavar="NAME", help="h100, slurm-local, local")
    submit.add_argument("--scale", help=SCALE)
    submit.add_argument("--parallel", type=int, metavar="N", help="at most N jobs at once (default: all; local: 1)")
    submit.add_argument("--minutes", type=int, metavar="M", help="time limit of a job (default: the profile's)")
    submit.add_argument("--dry-run", action="store_true", help="print jobs, arrays, GPU-hours and cost; submit nothing")
    submit.add_argument("--dirty", action="store_true", help="take uncommitted changes along and keep their diff")
    submit.add_argument("--data", type=Path, metavar="DIR", help="data root, as of `refrag-bench run`")
    submit.add_argument("--checkpoint", metavar="DIR", help="decoder to evaluate, as of `refrag-bench run`")
    submit.add_argument("--from-scratch", action="store_true", help="train everything, accepted checkpoints or not")
    submit.add_argument("--limit", type=int, metavar="N", help="only the first N questions of every suite")
    submit.add_argument("--device", default="cpu", help="cpu (default) or cuda: a GPU per process")
    submit.add_argument("--out", type=Path, metavar="DIR", help="where tables go (default: results in the sweep)")
    for name, help_ in (
        ("status", "where every job stands"),
        ("watch", "the same, until the end"),
        ("cancel", "end what waits and runs"),
        ("resume", "submit again what is not done"),
        ("logs", "what a job wrote"),
    ):
        actions.add_parser(name, help=help_).add_argument(
            "sweep", nargs="?", metavar="ID", help="default: the newest sweep"
        )
    clean = actions.add_parser("clean", help="remove the code of a sweep that is over")
    clean.add_argument("sweep", metavar="ID", help="never the newest by default: it cannot be resumed afterwards")
    named = actions.choices
    named["logs"].add_argument("job", nargs="?", type=int, metavar="JOB", help="its number (default: all that failed)")
    named["status"].add_argument("--all", action="store_true", help="every job, not only what is not done")
    for name in ("status", "watch"):
        named[name].add_argument("--json", action="store_true", help="print one JSON object per look")
    for name in ("submit", "resume"):
        named[name].add_argument("--watch", action="store_true", help="stay and show it until the end")
    for action in named.values():
        action.add_argument("--runs", type=Path, metavar="DIR", help="where runs lie (default: the profile's)")


def run(args: argparse.Namespace) -> int:
    if args.action == "submit":
        return _submit(args)
    runs = [args.runs] if args.runs else load("slurm.clusters.profiles:shared_folders")()
    sweep: Sweep = load("slurm.execution.sweep:find")(runs, args.sweep)
    return _ACTIONS[args.action](sweep, args)


def _submit(args: argparse.Namespace) -> int:
    profile = load("slurm.clusters.profiles:find_profile")(args.cluster)
    asked = load("slurm.execution.submission:Asked")(
        experiment=args.experiment,
        data=args.data,
        checkpoint=args.checkpoint,
        limit=args.limit,
        device=args.device,
        scale=args.scale,
        from_scratch=args.from_scratch,
        runs=(args.runs or profile.shared).absolute(),
        out=args.out,
    )
    settings = dict(parallel=args.parallel, minutes=args.minutes)
    if args.dry_run:
        print(load("slurm.execution.submission:describe")(asked, profile, **settings))
        return 0
    sweep = load("slurm.execution.submission:create")(
        asked, profile, dirty=args.dirty, online=args.allow_download, **settings
    )
    return _resume(sweep, args)


def _resume(sweep: Sweep, args: argparse.Namespace) -> int:
    """In the sweep's own code: this process goes on there if it is another's. Raises ``InputError`` without any."""
    if not sweep.code.exists():
        raise InputError(f"sweep {sweep.header.id} was cleaned, its code is gone; submit the experiment again")
    if sweep.header.online:
        os.environ.pop("HF_HUB_OFFLINE", None)  # which this call has set, being without the option
    if not load("slurm.execution.launch:in_own_code")(sweep):
        return _in_its_code(sweep, args)
    profile = load("slurm.clusters.profiles:find_profile")(sweep.header.cluster)
    watcher = _watcher(sweep)
    if sweep.header.cluster == "local":
        signal.signal(signal.SIGTERM, _as_interrupt)
        with load("harness.cli.sweep_view:live")() as show:
            load("slurm.execution.pool:run")(sweep, profile, lambda: show(watcher.status()))
        return _say(watcher.status())
    launched = load("slurm.execution.launch:launch")(sweep, profile)
    jobs = sum(len(one.indices) for one in launched)
    counted = load("slurm.execution.submission:counted")
    said = f"{counted(jobs, 'job')} in {counted(len(launched), 'array')}"
    print(f"{sweep.header.id}: {said} submitted to {sweep.header.cluster}")
    return _watch(sweep, args) if args.watch else 0


def _in_its_code(sweep: Sweep, args: argparse.Namespace) -> NoReturn:
    """This process becomes that one, so that a signal to it (SIGTERM of a service manager) reaches who drives it."""
    online = ["--allow-download"] if args.allow_download or sweep.header.online else []
    command = [sys.executable, "-m", "harness.cli.main", "sweep", *online, "resume", sweep.header.id]
    command += ["--runs", sweep.header.asked["runs"], *(["--watch"] if args.watch else [])]
    environment = {**os.environ, "PYTHONPATH": str(sweep.code.resolve())}
    sys.stdout.flush()
    os.chdir(sweep.code)
    os.execve(command[0], command, environment)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _watcher(sweep: Sweep) -> Watcher:
    """What reads this sweep's state: from SLURM, or from the processes of this machine."""
    watcher = load("slurm.execution.watch:Watcher")
    if sweep.header.cluster == "local":
        driven = load("slurm.execution.pool:driven")
        local: Watcher = watcher(sweep, load("slurm.execution.pool:looker")(sweep), driven=lambda: driven(sweep))
        return local
    profile = load("slurm.clusters.profiles:find_profile")(sweep.header.cluster)
    found: Watcher = watcher(sweep, load("slurm.clusters.queue:Queue")(profile).look)
    return found


def _status(sweep: Sweep, args: argparse.Namespace) -> int:
    status = _watcher(sweep).status()
    if args.json:
        print(json.dumps(plain(status) | {"counts": plain(status.counts)}))
    else:
        load("harness.cli.sweep_view:table")(status, everything=args.all)
    return status.code


def _watch(sweep: Sweep, args: argparse.Namespace) -> int:
    watcher = _watcher(sweep)
    if getattr(args, "json", False):
        for status in load("slurm.execution.watch:watch")(watcher):
            print(json.dumps(plain(status) | {"counts": plain(status.counts)}), flush=True)
        return watcher.status().code
    with load("harness.cli.sweep_view:live")() as show:
        for status in load("slurm.execution.watch:watch")(watcher):
            show(status)
    return _say(watcher.status())


def _cancel(sweep: Sweep, _: argparse.Namespace) -> int:
    if sweep.header.cluster == "local":
        told = load("slurm.execution.pool:stop")(sweep)
        print(f"{sweep.header.id}: {len(told)} process{'' if len(told) == 1 else 'es'} told to end")
        return 0
    ended = load("slurm.execution.launch:cancel")(
        sweep, load("slurm.clusters.profiles:find_profile")(sweep.header.cluster)
    )
    print(f"{sweep.header.id}: {load('slurm.execution.submission:counted')(ended, 'job')} cancelled")
    return 0


def _clean(sweep: Sweep, _: argparse.Namespace) -> int:
    with sweep.held():
        status = _watcher(sweep).settled()
        if status.problem:
            raise InputError(status.problem)
        live = [row for row in status.rows if row.state in load("slurm.execution.watch:LIVE") or row.state == "held"]
        if live:
            raise InputError(
                f"{len(live)} jobs of sweep {sweep.header.id} wait or run; `refrag-bench sweep cancel` ends them"
            )
        load("slurm.checkout:remove")(sweep.folder)
    print(f"{sweep.header.id}: code removed")
    return 0


def _logs(sweep: Sweep, args: argparse.Namespace) -> int:
    print(load("slurm.execution.logs:read")(sweep, _watcher(sweep), args.job), end="")
    return 0


def _say(status: Status) -> int:
    """The end of a sweep, on standard output."""
    load("harness.cli.sweep_view:table")(status, everything=False)
    return status.code


_ACTIONS = {"status": _status, "watch": _watch, "cancel": _cancel, "resume": _resume, "logs": _logs, "clean": _clean}
