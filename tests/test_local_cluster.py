"""A real cluster on this machine: what later proofs rest on. Marked ``cluster``; run with ``make cluster-test``.

``hostname`` says the same on every virtual node; SLURMD_NODENAME tells them apart.
"""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from clusters import Cluster, until

from slurm.local_cluster import daemons
from slurm.local_cluster.conf import GPUS, NODES

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("watched")]


@pytest.mark.short
def test_up_again_starts_nothing_and_prints_the_way_in(cluster: Cluster) -> None:
    before = cluster.pids()
    said = cluster.up()
    assert None not in before.values() and cluster.pids() == before
    command = ["sh", "-c", 'unset SLURM_CONF; eval "$1"; sinfo -h -o %R', "sh", said]
    partitions = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sorted(partitions.split()) == ["h100", "h100-high"]


@pytest.mark.short
def test_a_job_on_two_nodes(cluster: Cluster) -> None:
    said = cluster.call("srun", "--nodes=2", "--ntasks-per-node=2", "sh", "-c", "echo $(hostname) $SLURMD_NODENAME")
    hosts, nodes = zip(*(line.split() for line in said.splitlines()), strict=True)
    assert len(set(hosts)) == 1 and sorted(nodes) == sorted([*NODES, *NODES])


def test_jobs_share_a_node_and_no_gpu(cluster: Cluster) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES >> gpus; until [ $(wc -l < gpus) = 2 ]; do sleep 0.1; done"
    half = (f"--gres=gpu:h100:{GPUS // 2}", f"--nodelist={NODES[0]}")
    jobs = [cluster.submit(script, *half) for _ in range(2)]
    until(lambda: all(cluster.state(job) == "COMPLETED" for job in jobs))
    first, second = (set(line.split(",")) for line in cluster.written("gpus"))
    assert first | second == set(map(str, range(GPUS))) and not first & second


def test_what_the_nodes_do_not_have_is_refused(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        cluster.submit("true", f"--gres=gpu:h100:{GPUS + 1}")


def test_an_array(cluster: Cluster) -> None:
    job = cluster.submit("echo $SLURM_ARRAY_TASK_ID > element-$SLURM_ARRAY_TASK_ID", "--array=0-5%3")
    until(lambda: len(cluster.state(job).split()) == 6 and set(cluster.state(job).split()) == {"COMPLETED"})
    assert [cluster.written(f"element-{index}") for index in range(6)] == [[str(index)] for index in range(6)]
    accounted = ["sacct", "-X", "-n", "-P", "-o", "jobid,state", "-j", job]
    expected = [f"{job}_{index}|COMPLETED" for index in range(6)]
    until(lambda: sorted(cluster.call(*accounted).split()) == expected)  # sacct lags by about a second


@pytest.mark.short
def test_a_job_that_is_signalled_requeues_itself(cluster: Cluster) -> None:
    job = cluster.submit(
        "echo ${SLURM_RESTART_COUNT:-0} >> signalled\n"
        '[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0\n'
        "trap 'scontrol requeue $SLURM_JOB_ID' USR2\n"
        "touch trapped\n"
        "while true; do sleep 0.1; done"
    )
    until((cluster.work / "trapped").exists)
    cluster.call("scancel", "--batch", "--signal=USR2", job)
    until(lambda: cluster.state(job) == "COMPLETED")
    assert cluster.written("signalled") == ["0", "1"]


def test_the_high_partition_preempts_and_the_preempted_job_comes_back(cluster: Cluster) -> None:
    everything = (f"--nodes={len(NODES)}", f"--gres=gpu:h100:{GPUS}")
    low = cluster.submit(
        "echo low-${SLURM_RESTART_COUNT:-0} >> order\n"
        '[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0\n'
        "trap 'echo asked >> order' USR2\n"
        "touch running\n"
        "while true; do sleep 0.1; done",
        "--partition=h100",
        "--signal=B:USR2@1",
        *everything,
    )
    until((cluster.work / "running").exists)
    high = cluster.submit("echo high >> order", "--partition=h100-high", *everything)
    until(lambda: cluster.state(high) == "COMPLETED")
    until(lambda: cluster.state(low) == "COMPLETED")
    assert cluster.written("order") == ["low-0", "asked", "high", "low-1"]


def test_a_node_that_died_is_seen_and_only_it_is_started_again(cluster: Cluster) -> None:
    before = cluster.pids()
    pid = before[NODES[1]]
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.pids()[NODES[1]] is None)
    status = cluster.bench("cluster", "status")
    assert status.returncode == 1 and f"not running: {NODES[1]}" in status.stdout
    cluster.up()
    after = cluster.pids()
    assert {name for name in before if before[name] != after[name]} == {NODES[1]}
    assert cluster.bench("cluster", "status").returncode == 0
    cluster.call("srun", f"--nodelist={NODES[1]}", "true")


def test_doctor_finds_nothing_wrong(cluster: Cluster) -> None:
    done = cluster.bench("doctor", "--cluster", "slurm-local", "--json")
    checks = {check["name"]: check["ok"] for check in json.loads(done.stdout)["cluster"]}
    assert len(checks) == 7 and set(checks.values()) == {True}, done.stdout


def test_doctor_does_not_wait_for_a_full_cluster(cluster: Cluster) -> None:
    job = cluster.submit("touch full; exec sleep 300", f"--nodes={len(NODES)}", "--exclusive")
    until((cluster.work / "full").exists)
    done = cluster.bench("doctor", "--cluster", "slurm-local", "--json")
    checks = {check["name"]: check["ok"] for check in json.loads(done.stdout)["cluster"]}
    assert checks["folder, node"] is None and checks["job"] is True, done.stdout
    cluster.call("scancel", job)


def test_down_leaves_no_process_and_the_next_up_begins_anew(cluster: Cluster) -> None:
    job = cluster.submit("trap '' TERM\ntouch stubborn\nwhile true; do sleep 1; done", f"--nodes={len(NODES)}")
    until((cluster.work / "stubborn").exists)
    assert cluster.processes()
    assert cluster.bench("cluster", "down").returncode == 0
    assert cluster.processes() == []
    assert cluster.bench("cluster", "down").returncode == 0
    assert cluster.bench("cluster", "status").returncode == 1
    with ThreadPoolExecutor() as pool:  # two at once: the second finds it done
        list(pool.map(lambda _: cluster.up(), range(2)))
    started = [daemons.command(pid) for pid in cluster.processes()]
    assert all(sum(command.endswith(f"-N\0{node}\0") for command in started) == 1 for node in NODES)
    assert cluster.call("squeue", "-h", "-t", "all") == ""
    assert int(cluster.submit("true")) > int(job)


def test_down_without_a_controller_stops_jobs_too(cluster: Cluster) -> None:
    cluster.submit("trap '' TERM\ntouch orphan\nwhile true; do sleep 1; done")
    until((cluster.work / "orphan").exists)
    pid = cluster.pids()["slurmctld"]
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.pids()["slurmctld"] is None)
    assert cluster.bench("cluster", "down").returncode == 0
    assert cluster.processes() == []
