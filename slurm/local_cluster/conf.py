"""What the test cluster's daemons are told: every configuration file as a function from a ``Setup`` to its text.

Written for SLURM 22.05 (Debian 12). Later versions rename settings: there the user signal of a preemption moved out of
``SlurmctldParameters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NODES = ("h100-01", "h100-02")
GPUS = 8
CPUS = 96
MEMORY_MB = 2_000_000

# Seconds. How long a credential lives is also how long a requeued job waits: below 12 a job may come back to a node
# that has not yet let go of its last attempt, which drains the node.
CREDENTIAL_S = 12
GRACE_S = 10  # from the user signal of a preemption to SIGTERM
KILL_WAIT_S = 2


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What differs from one cluster to the next. ``ports`` by daemon: ctld, dbd, mysql and every node."""

    folder: Path
    host: str
    user: str
    ports: Mapping[str, int]
    first_job_id: int
    password: str  # of the database


def port_names() -> tuple[str, ...]:
    return ("ctld", "dbd", "mysql", *NODES)


def slurm_conf(setup: Setup) -> str:
    """The controller, the nodes and two partitions over the same nodes; ``h100-high`` preempts ``h100``.

    The nodes claim a real H100 node's cores and memory, so that a job asks here for what it asks for there; nothing
    is reserved on this machine.
    """
    folder, host = setup.folder, setup.host
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={setup.ports[name]} CPUs={CPUS} Boards=1 "
        f"SocketsPerBoard=2 CoresPerSocket={CPUS // 2} ThreadsPerCore=1 RealMemory={MEMORY_MB} "
        f"Gres=gpu:h100:{GPUS} Feature=h100 State=UNKNOWN"
        for name in NODES
    )
    partition = f"Nodes={','.join(NODES)} MaxTime=UNLIMITED DefaultTime=10 DefMemPerCPU=1000"
    return f"""\
ClusterName=refrag
FirstJobId={setup.first_job_id}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={setup.ports["ctld"]}
SlurmUser={setup.user}
SlurmdUser={setup.user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire={CREDENTIAL_S}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/run/slurmctld.own.pid
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/run/slurmd-%n.own.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1,bf_window=1440,sched_interval=5
PriorityType=priority/multifactor
PriorityDecayHalfLife=7-0
PriorityWeightPartition=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
EnforcePartLimits=ALL
KillWait={KILL_WAIT_S}
OverTimeLimit=0
SlurmctldTimeout=10
SlurmdTimeout=15
ReturnToService=2
MinJobAge=300
MaxArraySize=1001
MessageTimeout=10
BatchStartTimeout=30
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={setup.ports["dbd"]}
AccountingStoragePass={folder}/run/munge.socket
AccountingStorageTRES=gres/gpu,gres/gpu:h100
{nodes}
PartitionName=h100 {partition} Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime={GRACE_S}
PartitionName=h100-high {partition} PriorityTier=100 PreemptMode=OFF
"""


def gres_conf(setup: Setup) -> str:
    """GPUs that are only counted. SLURM wants character devices: links to /dev/null are."""
    devices = f"{setup.folder}/gpu/nvidia[0-{GPUS - 1}]"
    return f"NodeName={','.join(NODES)} Name=gpu Type=h100 File={devices}\n"


def slurmdbd_conf(setup: Setup) -> str:
    """Holds the database's password: slurmdbd refuses the file unless only its user can read it."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={setup.folder}/run/munge.socket
DbdHost={setup.host}
DbdAddr=127.0.0.1
DbdPort={setup.ports["dbd"]}
SlurmUser={setup.user}
PidFile={setup.folder}/run/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={setup.ports["mysql"]}
StorageUser=slurm
StoragePass={setup.password}
StorageLoc=slurm_acct_db
"""


def mariadb_cnf(setup: Setup) -> str:
    """A small database that listens on this machine only, and that a test may lose."""
    folder = setup.folder
    return f"""\
[mariadbd]
user={setup.user}
datadir={folder}/mysql
socket={folder}/run/mysql.socket
pid-file={folder}/run/mariadbd.own.pid
bind-address=127.0.0.1
port={setup.ports["mysql"]}
init-file={folder}/etc/init.sql
skip-name-resolve
innodb-buffer-pool-size=64M
innodb-log-file-size=8M
innodb-lock-wait-timeout=900
innodb-flush-log-at-trx-commit=0
max-allowed-packet=16M
performance-schema=OFF
"""


def init_sql(setup: Setup) -> str:
    """Run at every start of the database."""
    return f"""\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{setup.password}';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
"""
