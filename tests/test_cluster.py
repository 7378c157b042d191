"""Cluster profiles, what a site changes of them, and the test cluster's files. No daemon is started."""

import json
import os
import re
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from harness.cli.main import main
from harness.errors import InputError
from slurm.clusters import checks, profiles
from slurm.clusters.checks import check_cluster
from slurm.clusters.profiles import PROFILES, SlurmProfile, find_profile
from slurm.local_cluster import cluster, conf, daemons
from slurm.local_cluster.conf import NODES, Setup
from slurm.local_cluster.daemons import Daemon


@pytest.fixture(autouse=True)
def no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in [v for v in os.environ if v.startswith("REFRAG_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site.toml"
    monkeypatch.setenv("REFRAG_SITE", str(path))
    return path


def slurm_profile(name: str) -> SlurmProfile:
    profile = find_profile(name)
    assert isinstance(profile, SlurmProfile)
    return profile


def test_a_profile_has_the_name_it_is_found_by() -> None:
    assert {name: find_profile(name).name for name in PROFILES} == {name: name for name in PROFILES}
    with pytest.raises(
        InputError, match=r"unknown cluster 'h10' \(did you mean 'h100'\?\); .* h100, local, slurm-local"
    ):
        find_profile("h10")


def test_the_site_file_changes_its_fields_and_the_environment_has_the_last_word(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write_text("")
    before = slurm_profile("h100")
    site.write_text(
        '[h100]\npartition = "long"\naccount = "nlp"\ngpus_per_node = 4\nmodules = ["cuda/12"]\n'
        'environment = { A = "1" }\nshared = "/scratch"\n'
    )
    monkeypatch.setenv("REFRAG_H100_PARTITION", "short")
    monkeypatch.setenv("REFRAG_H100_TIME_MIN", "90")
    monkeypatch.setenv("REFRAG_H100_ENVIRONMENT", '{ B = "2" }')
    after = slurm_profile("h100")
    assert (after.partition, after.account, after.time_min) == ("short", "nlp", 90)
    assert (after.modules, after.environment) == (("cuda/12",), {"A": "1", "B": "2"})
    assert (after.shared, after.gres) == (Path("/scratch"), "gpu:h100:4")
    assert (after.qos, after.cpus_per_gpu) == (before.qos, before.cpus_per_gpu)
    assert "partition" not in vars(find_profile("local"))


def test_the_default_site_file_is_read_where_none_is_named(tmp_path: Path) -> None:
    path = Path(profiles.SITE_FILE).expanduser()
    assert path.is_relative_to(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text('[h100]\nqos = "high"\n')
    assert slurm_profile("h100").qos == "high"


def test_a_site_keeps_what_reaches_the_test_cluster(site: Path) -> None:
    site.write_text('[slurm-local]\nenvironment = { A = "1" }\n')
    environment = cluster.environment(cluster.default_folder())
    assert find_profile("slurm-local").environment == environment | {"A": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[h200]\n", "unknown cluster in .*'h200' .*valid choices: h100, local, slurm-local"),
        ('[h100]\npartitoin = "a"\n', "unknown field of .*'partitoin' .*did you mean 'partition'"),
        ('[h100]\nname = "a"\n', "unknown field of .*'name'"),
        ('[local]\npartition = "a"\n', "unknown field of .*'partition'.* valid choices: environment, gpus_per_node"),
        ("[h100]\npartition = 3\n", "expected text as partition, got 3"),
        ('[h100]\ngpus_per_node = "8"\n', "expected a whole number of at least 0 as gpus_per_node, got '8'"),
        ("[h100]\ngpus_per_node = true\n", "expected a whole number of at least 0 as gpus_per_node, got True"),
        ("[h100]\nmemory_gb = -1\n", "expected a whole number of at least 0 as memory_gb, got -1"),
        ('[h100]\nmodules = "cuda"\n', "expected a list of text without spaces as modules, got 'cuda'"),
        ("[h100]\nenvironment = { A = 1 }\n", "expected a table of text by names of variables .* as environment"),
        ('[h100]\nshared = ""\n', "expected a folder with an absolute path as shared, got ''"),
        ('[h100]\nshared = "runs"\n', "expected a folder with an absolute path as shared, got 'runs'"),
        ('[local]\nshared = "../runs"\n', "expected a folder with an absolute path as shared"),
        ('[h100]\npartition = ""\n', "expected a name .* as partition, got ''"),
        ('[h100]\npartition = " "\n', "expected a name .* as partition, got ' '"),
        ('[h100]\ncpu_partition = "a b"\n', "expected a name .* as cpu_partition, got 'a b'"),
        ('[h100]\nqos = "a;b"\n', "expected a name .* as qos, got 'a;b'"),
        ('[h100]\naccount = "$(id)"\n', "expected a name .* as account"),
        ('[h100]\naccount = "a\\n"\n', "expected a name .* as account"),
        ('[h100]\ngpu_type = "h100 "\n', "expected a name .* as gpu_type"),
        ('[h100]\nconstraint = "a`b`"\n', "expected a name .* as constraint"),
        ('[h100]\nmodules = ["cuda 12"]\n', "expected a list of text without spaces as modules"),
        ('[h100]\nenvironment = { "A B" = "1" }\n', "expected a table of text by names of variables"),
        ('[h100]\nenvironment = { "A;id;B" = "1" }\n', "expected a table of text by names of variables"),
        ('[h100]\nenvironment = { "1A" = "1" }\n', "expected a table of text by names of variables"),
        ("h100 = 3\n", r"expected a table \[h100\], got int"),
        ("[h100\n", "expected TOML"),
    ],
)
def test_a_wrong_site_file_is_one_line(site: Path, text: str, message: str) -> None:
    site.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        find_profile("local" if "[local]" in text else "h100")
    assert str(site) in str(error.value)


def test_a_site_file_that_was_named_must_be_there(site: Path) -> None:
    with pytest.raises(InputError, match=r"expected a site file at .*site\.toml"):
        find_profile("local")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("REFRAG_H100_GPUS", "8", "unknown field of REFRAG_H100_GPUS: 'gpus'.* gpus_per_node, "),
        ("REFRAG_H100_PARTITOIN", "gpu-long", "unknown field of REFRAG_H100_PARTITOIN: 'partitoin' .*'partition'"),
        (
            "REFRAG_H100_TIME_MIN",
            "abc",
            "REFRAG_H100_TIME_MIN: expected a whole number of at least 0 as time_min, as TOML writes it, got 'abc'",
        ),
        ("REFRAG_H100_PARTITION", "", "REFRAG_H100_PARTITION: expected a name .* as partition"),
        ("REFRAG_LOCAL_SHARED", "runs", "REFRAG_LOCAL_SHARED: expected a folder with an absolute path"),
        ("REFRAG_H100_TIME_MIN", '"60"', "expected a whole number"),
    ],
)
def test_a_wrong_variable_is_one_line(variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=message):
        find_profile("local" if "LOCAL" in variable else "h100")


def test_names_that_sites_have_are_taken(site: Path) -> None:
    """Several partitions, features with operators, an empty name where nothing is asked for."""
    site.write_text(
        '[h100]\npartition = "gpu-long,gpu.short"\nconstraint = "[rack1*2&rack2*4]|(hbm80&!old)"\nqos = ""\n'
        'account = "nlp@lab"\ngpu_type = "nvidia_h100_80gb_hbm3"\nshared = "~/refrag"\nmodules = ["cuda/12.8"]\n'
        'environment = { _A1 = "any $(text); here" }\n'
    )
    profile = slurm_profile("h100")
    assert (profile.partition, profile.qos) == ("gpu-long,gpu.short", "")
    assert profile.shared == Path.home() / "refrag" and profile.environment == {"_A1": "any $(text); here"}


def test_every_field_can_be_read_from_a_site() -> None:
    for profile in get_args(profiles.Profile):
        assert set(get_type_hints(profile).values()) <= set(profiles._KINDS)


def test_a_profile_asks_for_nothing_that_it_leaves_empty() -> None:
    bare = SlurmProfile(name="h100", partition="p", gpus_per_node=0, cpus_per_gpu=2)
    assert bare.options() == {"partition": "p", "cpus-per-task": "2", "mem": "0", "time": "60"}
    untyped = SlurmProfile(name="h100", partition="p", gpus_per_node=4, cpus_per_gpu=2, memory_gb=9, qos="q")
    assert untyped.options() == {
        "partition": "p",
        "qos": "q",
        "gres": "gpu:4",
        "cpus-per-task": "8",
        "mem": "9G",
        "time": "60",
    }


SETUP = Setup(
    folder=Path("/tmp/c"),
    host="here",
    user="me",
    ports={name: 7000 + index for index, name in enumerate(conf.port_names())},
    first_job_id=5,
    password="secret",
)


def settings(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split())


def parse(text: str) -> tuple[dict[str, str], dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """slurm.conf as its settings, its nodes and its partitions; refuses a setting given twice."""
    single: dict[str, str] = {}
    nodes: dict[str, dict[str, str]] = {}
    partitions: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if line.startswith("NodeName="):
            nodes[settings(line)["NodeName"]] = settings(line)
        elif line.startswith("PartitionName="):
            partitions[settings(line)["PartitionName"]] = settings(line)
        else:
            name, _, value = line.partition("=")
            assert name not in single and value
            single[name] = value
    return single, nodes, partitions


def test_slurm_conf_agrees_with_itself_and_with_the_other_files() -> None:
    single, nodes, partitions = parse(conf.slurm_conf(SETUP))
    database = settings(" ".join(conf.slurmdbd_conf(SETUP).split()))
    mysql = dict(re.findall(r"^(\S+?)=(.*)$", conf.mariadb_cnf(SETUP), re.MULTILINE))

    ports = [single["SlurmctldPort"], database["DbdPort"], mysql["port"], *(node["Port"] for node in nodes.values())]
    assert sorted(map(int, ports)) == sorted(SETUP.ports.values())
    assert len(set(ports)) == len(ports)
    assert single["AccountingStoragePort"] == database["DbdPort"]
    assert database["StoragePort"] == mysql["port"]
    assert f"'{database['StoragePass']}'" in conf.init_sql(SETUP)
    socket = f"socket={single['AccountingStoragePass']}"
    assert single["AuthInfo"].startswith(f"{socket},") and database["AuthInfo"] == socket

    everything = "".join(write(SETUP) for write in (conf.slurm_conf, conf.slurmdbd_conf))
    own = [path for path in re.findall(r"=(?:socket=)?(/[^,\s]+)", everything) if path != "/bin/true"]
    assert len(own) >= 8 and all(path.startswith("/tmp/c/") for path in own)
    assert all(value.startswith("/tmp/c/") for value in mysql.values() if value.startswith("/"))

    assert set(nodes) == set(NODES)
    assert all(set(partition["Nodes"].split(",")) == set(nodes) for partition in partitions.values())
    assert [name for name, partition in partitions.items() if partition.get("Default") == "YES"] == ["h100"]
    low, high = partitions["h100"], partitions["h100-high"]
    assert int(high["PriorityTier"]) > int(low["PriorityTier"])
    assert (low["PreemptMode"], high["PreemptMode"]) == ("REQUEUE", "OFF")
    assert single["PreemptType"] == "preempt/partition_prio" and single["JobRequeue"] == "1"


def test_gres_conf_has_the_gpus_that_slurm_conf_promises() -> None:
    _, nodes, _ = parse(conf.slurm_conf(SETUP))
    gres = settings(conf.gres_conf(SETUP))
    first, last = map(int, re.findall(r"\d+", gres["File"])[-2:])
    assert set(gres["NodeName"].split(",")) == set(nodes)
    for node in nodes.values():
        assert node["Gres"] == f"{gres['Name']}:{gres['Type']}:{last - first + 1}"


def test_the_virtual_nodes_can_give_what_the_profiles_ask_for() -> None:
    _, nodes, partitions = parse(conf.slurm_conf(SETUP))
    for name in ("h100", "slurm-local"):
        profile = slurm_profile(name)
        assert profile.partition in partitions
        for node in nodes.values():
            assert profile.gres == node["Gres"]
            assert profile.gpus_per_node * profile.cpus_per_gpu <= int(node["CPUs"])
            sockets = int(node["SocketsPerBoard"]) * int(node["CoresPerSocket"]) * int(node["ThreadsPerCore"])
            assert sockets == int(node["CPUs"])
            assert profile.memory_gb * 1024 <= int(node["RealMemory"])


def test_missing_packages_are_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_find", lambda name: None if name in ("munged", "munge", "slurmd") else name)
    assert main(["cluster", "up", "--folder", str(tmp_path / "c")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "no munged, munge, slurmd on this machine" in err
    assert err.endswith("apt-get install --no-install-recommends munge slurmd\n")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a b", "in letters, digits"),
        ("a%n", "in letters, digits"),
        ("x" * 90, "at most 80 characters"),
        ("used", "something else"),
    ],
)
def test_a_folder_that_cannot_hold_a_cluster(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_require_packages", lambda: None)
    monkeypatch.setattr(cluster, "MAX_FOLDER", 80 if len(name) > 80 else 1000)
    (tmp_path / "used" / "run").mkdir(parents=True)
    (tmp_path / "used" / "thesis.txt").touch()
    with pytest.raises(InputError, match=message):
        cluster.up(tmp_path / name, print)
    assert (tmp_path / "used" / "thesis.txt").exists()


def test_a_daemon_that_ends_is_told_with_its_last_words_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = Daemon(name="munged", command=["sh", "-c", "echo first; echo no such key >&2; exit 1"])
    monkeypatch.setattr(cluster, "_require_packages", lambda: None)
    monkeypatch.setattr(cluster, "_call", lambda *command: "")
    monkeypatch.setattr(cluster, "_succeeds", lambda *command: False)
    monkeypatch.setattr(cluster, "_daemons", lambda folder: [SLEEP, fails])
    with pytest.raises(InputError, match=r"did not come up: munged ended: first \| no such key"):
        cluster.up(tmp_path / "c", lambda line: None)
    assert daemons.with_environment(f"SLURM_CONF={tmp_path}") == []


def test_status_of_what_was_never_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "status", "--folder", str(tmp_path)]) == 1
    assert "bring it up with `refrag-bench cluster up`" in capsys.readouterr().out
    assert main(["cluster", "status", "--folder", str(tmp_path), "--json"]) == 1
    state = json.loads(capsys.readouterr().out)
    assert state["up"] is False and set(state["daemons"].values()) == {None} and set(NODES) < set(state["daemons"])
    assert main(["cluster", "down", "--folder", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    for name in ("run", "log"):
        (tmp_path / name).mkdir()
    return tmp_path


SLEEP = Daemon(name="sleep", command=[sys.executable, "-c", "import time; time.sleep(60)"])
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


def test_a_daemon_is_started_once_and_found_by_its_pid_file(bench: Path) -> None:
    daemons.start(bench, SLEEP, {"MARK_OF_OURS": str(bench)})
    pid = daemons.alive(bench, "sleep")
    daemons.start(bench, SLEEP, {})
    assert pid and daemons.alive(bench, "sleep") == pid
    assert daemons.with_environment(f"MARK_OF_OURS={bench}") == [pid]
    daemons.stop(bench, ["sleep"], grace_s=10)
    assert daemons.alive(bench, "sleep") is None
    assert daemons.with_environment(f"MARK_OF_OURS={bench}") == []


def test_what_ignores_sigterm_is_killed(bench: Path) -> None:
    daemons.start(bench, Daemon(name="stubborn", command=[sys.executable, "-c", STUBBORN]), {})
    while "1" not in daemons.last_lines(bench, "stubborn").split():
        assert daemons.alive(bench, "stubborn")
    daemons.stop(bench, ["stubborn"], grace_s=0.2)
    assert daemons.alive(bench, "stubborn") is None


@pytest.mark.parametrize("wrong", ["started", "command"])
def test_a_pid_that_is_somebody_elses_is_left_alone(bench: Path, wrong: str) -> None:
    daemons.start(bench, SLEEP, {})
    path = bench / "run" / "sleep.pid"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {wrong: {"started": known["started"] - 1, "command": "sshd"}[wrong]}))
    assert daemons.alive(bench, "sleep") is None
    daemons.stop(bench, ["sleep"], grace_s=0)
    path.write_text(json.dumps(known))
    assert daemons.alive(bench, "sleep") == known["pid"]
    daemons.stop(bench, ["sleep"], grace_s=10)


# --- doctor, against commands that answer as SLURM's do ---


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands first on PATH; ``answers`` rewrites one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("REFRAG_H100_SHARED", str(tmp_path / "shared"))
    answers(folder, "sinfo", 'case "$*" in *%R*) echo h100; echo debug;; *) echo "gpu:h100:8(S:0-1)";; esac')
    for command in ("sacct", "sbatch"):
        answers(folder, command, "exit 0")
    answers(folder, "srun", 'while [ "$1" != cp ]; do shift; done; exec "$@"')
    return folder


def answers(folder: Path, command: str, script: str) -> None:
    path = folder / command
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def verdicts() -> dict[str, bool | None]:
    return {check.name: check.ok for check in check_cluster("h100")}


def said(name: str) -> str:
    (text,) = (check.said for check in check_cluster("h100") if check.name == name)
    assert len(text.splitlines()) == 1
    return text


def test_a_good_cluster_passes_every_check(fake_slurm: Path) -> None:
    names = ("sinfo", "sacct", "partition", "gres", "job", "folder", "folder, node")
    assert verdicts() == dict.fromkeys(names, True)
    assert not (fake_slurm.parent / "shared").exists(), "looking at a cluster makes nothing"
    assert said("folder") == f"{fake_slurm.parent / 'shared'} can be made: {fake_slurm.parent} is writable here"
    (fake_slurm.parent / "shared").mkdir()
    assert verdicts() == dict.fromkeys(names, True)
    assert said("folder") == f"{fake_slurm.parent / 'shared'} is writable here"
    assert not list((fake_slurm.parent / "shared").iterdir())


@pytest.mark.parametrize(
    ("command", "script", "check", "ok", "message"),
    [
        (
            "sinfo",
            "(echo first; echo 'sinfo: fatal: no source') >&2; exit 1",
            "sinfo",
            False,
            "sinfo: fatal: no source",
        ),
        ("sacct", "echo 'accounting storage is disabled' >&2; exit 1", "sacct", False, "storage is disabled"),
        ("sinfo", "echo debug", "partition", False, "no 'h100'; this cluster has debug"),
        ("sinfo", 'case "$*" in *%R*) echo h100;; *) echo gpu:h100:4;; esac', "gres", False, "nodes have gpu:h100:4"),
        ("sinfo", 'case "$*" in *%R*) echo h100;; *) echo gpu:a100:8;; esac', "gres", False, "nodes have gpu:a100:8"),
        ("sbatch", "echo 'Invalid qos specification' >&2; exit 1", "job", False, "Invalid qos"),
        ("srun", "echo 'Requested nodes are busy' >&2; exit 1", "folder, node", None, "no node was free"),
        ("srun", "echo 'cp: no such folder' >&2; exit 1", "folder, node", False, "cp: no such folder"),
        ("srun", "exit 0", "folder, node", False, "a node wrote elsewhere than"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    fake_slurm: Path, command: str, script: str, check: str, ok: bool | None, message: str
) -> None:
    answers(fake_slurm, command, script)
    assert verdicts()[check] is ok
    assert message in said(check)


def test_a_command_that_hangs_is_given_up(fake_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks._ask, "__kwdefaults__", {"limit_s": 0.2})
    answers(fake_slurm, "sacct", "exec sleep 20")
    assert said("sacct") == "sacct does not answer within 0 s"


def test_a_gres_that_is_not_a_gpu_of_ours(fake_slurm: Path) -> None:
    profile = SlurmProfile(name="h100", partition="p", gpus_per_node=4, cpus_per_gpu=1)
    assert checks._holds("gpu:4", profile) and checks._holds("gpu:h100:8", profile)
    assert not any(checks._holds(item, profile) for item in ("gpu:3", "shard:8", "(null)", "gpu", ""))


def test_a_folder_that_cannot_be_written(fake_slurm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFRAG_H100_SHARED", str(tmp_path / "file" / "runs"))
    assert verdicts()["folder"] is False and "folder, node" not in verdicts()
    assert "Not a directory" in said("folder")


def test_doctor_prints_a_line_a_check_and_fails_where_one_does(
    fake_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--cluster", "h100"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cluster, ")]
    assert len(lines) == 7 and all(": ok: " in line for line in lines)
    answers(fake_slurm, "sbatch", "exit 1")
    assert main(["doctor", "--cluster", "h100", "--json"]) == 1
    assert [c["name"] for c in json.loads(capsys.readouterr().out)["cluster"] if c["ok"] is False] == ["job"]
    assert main(["doctor", "--cluster", "nowhere"]) == 2
    assert "valid choices: h100, local, slurm-local" in capsys.readouterr().err


def test_doctor_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFRAG_LOCAL_SHARED", str(tmp_path / "runs"))
    assert {check.name: check.ok for check in check_cluster("local")} == {"GPUs": True, "folder": True}
    monkeypatch.setenv("REFRAG_LOCAL_GPUS_PER_NODE", "1000")
    assert {check.name: check.ok for check in check_cluster("local")} == {"GPUs": False, "folder": True}
