"""Which arrays a sweep becomes, and the bound of its cost."""

import pytest
from conftest import PROJECT
from sweep_fakes import ONE_GPU, Tiny, member

from harness.errors import InputError
from slurm.clusters.profiles import SlurmProfile
from slurm.clusters.shapes import Shape
from slurm.execution.arrays import Array, Cost, arrays, cost
from slurm.execution.sweep import members_of
from slurm.phases import Phase

TWO_NODES = Shape(nodes=2, tasks_per_node=8, gpus_per_task=1)
CPU = Shape()
PROFILE = SlurmProfile(name="h100", partition="h100", gpus_per_node=8, cpus_per_gpu=12, time_min=90)


def test_35_jobs_of_one_shape_where_an_array_holds_10() -> None:
    (found,) = arrays([member(index) for index in range(35)], longest=10)
    assert [len(array.indices) for array in found] == [10, 10, 10, 5]
    assert [index for array in found for index in array.indices] == list(range(35))
    (whole,) = arrays([member(index) for index in range(35)], longest=35)
    assert whole == [Array(phase="one", shape=ONE_GPU, indices=tuple(range(35)))]


def test_a_phase_has_an_array_per_shape_and_phases_keep_their_order() -> None:
    shapes = [ONE_GPU, CPU, ONE_GPU, TWO_NODES, CPU]
    jobs = [member(index, "z", shape) for index, shape in enumerate(shapes)] + [member(5, "a"), member(6, "a")]
    assert arrays(jobs, longest=1001) == [
        [
            Array(phase="z", shape=ONE_GPU, indices=(0, 2)),
            Array(phase="z", shape=CPU, indices=(1, 4)),
            Array(phase="z", shape=TWO_NODES, indices=(3,)),
        ],
        [Array(phase="a", shape=ONE_GPU, indices=(5, 6))],
    ]


def test_what_is_left_of_a_sweep_keeps_its_places() -> None:
    """Resuming submits some jobs: an array names them by their places, and a finished phase is left out."""
    left = [member(3, "one"), member(9, "three")]
    assert [[array.indices for array in phase] for phase in arrays(left, longest=10)] == [[(3,)], [(9,)]]
    assert arrays([], longest=10) == []


def test_a_cluster_without_arrays() -> None:
    with pytest.raises(InputError, match=r"takes no job arrays \(MaxArraySize 0\)"):
        arrays([member(0)], longest=0)


def test_a_job_of_two_phases_is_submitted_once_with_the_first() -> None:
    """Wherever it stands in the second: its phases stay whole, and none is an array twice."""
    first, shared, second = (Tiny(name=name, folder=PROJECT) for name in ("first", "shared", "second"))
    members = members_of([Phase(title="a", jobs=[shared, first]), Phase(title="b", jobs=[second, shared])])
    assert [(job.phase, job.title) for job in members] == [
        ("a", "tiny shared"),
        ("a", "tiny first"),
        ("b", "tiny second"),
    ]
    assert [job.index for job in members] == [0, 1, 2]


def test_the_cost_is_bound_by_time_limits_and_gpus() -> None:
    jobs = [member(0), member(1, shape=CPU), member(2, shape=TWO_NODES)]
    assert cost(jobs, PROFILE) == Cost(jobs=3, gpu_hours=17 * 1.5, price=None)
    priced = SlurmProfile(name="h100", partition="h100", gpus_per_node=8, cpus_per_gpu=12, gpu_hour_price=2.0)
    assert cost(jobs, priced) == Cost(jobs=3, gpu_hours=17.0, price=34.0)
    assert cost(jobs, priced, minutes=30) == Cost(jobs=3, gpu_hours=8.5, price=17.0)
