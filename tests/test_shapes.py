"""What a job asks of SLURM: the parameters, and the whole script that sbatch gets."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import PROJECT
from sweep_fakes import ONE_GPU, Tiny, bin_folder, command, header

from harness.errors import InputError
from slurm.clusters.profiles import SlurmProfile
from slurm.clusters.shapes import MIN_MINUTES, Shape, sbatch_parameters, shape_of
from slurm.execution.arrays import Array
from slurm.execution.launch import build_executor
from slurm.execution.sweep import Sweep

GOLDEN = PROJECT / "tests" / "golden"
H100 = SlurmProfile(name="h100", partition="h100", gpu_type="h100", gpus_per_node=8, cpus_per_gpu=12)
NODE = Shape(tasks_per_node=8, gpus_per_task=1)
TWO_NODES = Shape(nodes=2, tasks_per_node=8, gpus_per_task=1)
COMMON = {"partition": "h100", "time": 60, "cpus_per_task": 12, "signal_delay_s": 120}


@dataclass(frozen=True, kw_only=True)
class Wide(Tiny):
    nodes: int = 2
    tasks_per_node: int = 4


@pytest.mark.parametrize(
    ("shape", "profile", "asked"),
    [
        (ONE_GPU, H100, {"nodes": 1, "ntasks_per_node": 1, "gres": "gpu:h100:1"}),
        (NODE, H100, {"nodes": 1, "ntasks_per_node": 8, "gres": "gpu:h100:8", "mem": "0"}),
        (TWO_NODES, H100, {"nodes": 2, "ntasks_per_node": 8, "gres": "gpu:h100:8", "mem": "0"}),
        (Shape(), H100, {"nodes": 1, "ntasks_per_node": 1}),
        (
            ONE_GPU,
            replace(H100, memory_gb=2000),
            {"nodes": 1, "ntasks_per_node": 1, "gres": "gpu:h100:1", "mem": "250G"},
        ),
        (NODE, replace(H100, memory_gb=2000), {"nodes": 1, "ntasks_per_node": 8, "gres": "gpu:h100:8", "mem": "2000G"}),
        (
            ONE_GPU,
            replace(H100, gpu_type="", account="nlp", qos="high", constraint="hbm80"),
            {"nodes": 1, "ntasks_per_node": 1, "gres": "gpu:1", "account": "nlp", "qos": "high", "constraint": "hbm80"},
        ),
        (Shape(), replace(H100, gpus_per_node=0), {"nodes": 1, "ntasks_per_node": 1}),
        (
            Shape(),
            replace(H100, cpu_partition="cpu", constraint="hbm80", qos="high"),
            {"nodes": 1, "ntasks_per_node": 1, "partition": "cpu", "qos": "high"},
        ),
        (
            ONE_GPU,
            replace(H100, cpu_partition="cpu", constraint="hbm80"),
            {"nodes": 1, "ntasks_per_node": 1, "gres": "gpu:h100:1", "constraint": "hbm80"},
        ),
    ],
    ids=[
        *("one GPU", "a node", "two nodes", "CPU", "a share of memory", "all memory", "a site's words", "no GPU there"),
        *("CPU elsewhere", "GPU beside CPUs"),
    ],
)
def test_what_a_shape_asks_of_a_profile(shape: Shape, profile: SlurmProfile, asked: dict[str, object]) -> None:
    assert sbatch_parameters(shape, profile) == COMMON | asked


def test_a_share_of_memory_is_never_all_of_it() -> None:
    """To SLURM 0 is the whole node."""
    assert sbatch_parameters(ONE_GPU, replace(H100, memory_gb=4))["mem"] == "1G"


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(InputError, match="a job asks for 8 GPUs of a node; those of h100 have 4"):
        sbatch_parameters(TWO_NODES, replace(H100, gpus_per_node=4))
    with pytest.raises(InputError, match=f"a time limit of at least {MIN_MINUTES} minutes, got {MIN_MINUTES - 1}"):
        sbatch_parameters(ONE_GPU, H100, minutes=MIN_MINUTES - 1)
    with pytest.raises(InputError, match="got 1"):
        sbatch_parameters(ONE_GPU, replace(H100, time_min=1))
    assert sbatch_parameters(ONE_GPU, replace(H100, time_min=1), minutes=MIN_MINUTES)["time"] == MIN_MINUTES


@pytest.mark.parametrize(
    ("job", "shape"),
    [
        (Tiny(name="a", folder=Path("/a")), Shape()),
        (Tiny(name="a", folder=Path("/a"), device="cuda:1"), ONE_GPU),
        (Wide(name="a", folder=Path("/a"), device="cuda"), Shape(nodes=2, tasks_per_node=4, gpus_per_task=1)),
        (Wide(name="a", folder=Path("/a")), Shape(nodes=2, tasks_per_node=4)),
    ],
)
def test_the_shape_of_a_job(job: Tiny, shape: Shape) -> None:
    assert shape_of(job) == shape


def test_a_shape_counts_its_gpus_and_says_so() -> None:
    assert (TWO_NODES.gpus_per_node, TWO_NODES.gpus) == (8, 16)
    assert [shape.said for shape in (Shape(), ONE_GPU, TWO_NODES)] == [
        "1 process, 0 GPUs",
        "1 process, 1 GPU",
        "2 nodes x 8 processes, 16 GPUs",
    ]


@pytest.mark.parametrize(
    ("name", "shape", "indices", "parallel", "waits"),
    [
        ("array-of-one-gpu-jobs", ONE_GPU, tuple(range(12)), 4, {}),
        ("two-nodes-of-8-gpus", TWO_NODES, (12,), None, {"after_ok": ["70", "71_2"], "after_any": ["72"]}),
    ],
)
def test_the_script_that_sbatch_gets(
    name: str,
    shape: Shape,
    indices: tuple[int, ...],
    parallel: int | None,
    waits: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Byte for byte. Where a change is meant, read the new one as a site's administrator would, then keep it."""
    command(bin_folder(tmp_path, monkeypatch), "srun", "")  # its being there is all that submitit asks
    sweep = Sweep.create(tmp_path / "sweeps", header(cluster="h100", parallel=parallel))
    profile = replace(H100, modules=("cuda/12.8",), environment={"NCCL_SOCKET_IFNAME": "ib0"})
    array = Array(phase="train", shape=shape, indices=indices)
    executor = build_executor(sweep, profile, array, sweep.folder / "log" / "launch-1", **waits)
    if len(indices) > 1:
        executor.parameters["map_count"] = len(indices)  # as map_array does
    text = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    text = text.replace(str(sweep.folder.resolve()), "/SWEEP").replace(sys.executable, "/PYTHON")
    assert str(tmp_path) not in text
    assert text == (GOLDEN / f"{name}.sbatch").read_text()
