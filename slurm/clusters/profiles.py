"""Where do jobs run? Clusters by name: what a job may ask of each, and what a site says of its own.

``h100`` is a guess until a site corrects it; no real cluster was at hand. Two places correct it, the second before the
first: the site file (the environment's REFRAG_SITE, else ``~/.config/refrag-bench/site.toml``), one table per name,

    [h100]
    partition = "gpu-long"
    account = "nlp"
    modules = ["cuda/12.8"]
    environment = { NCCL_SOCKET_IFNAME = "ib0" }
    shared = "/scratch/me/refrag"

and variables REFRAG_<NAME>_<FIELD>: text as it stands (``REFRAG_H100_PARTITION=gpu-long``), anything else as TOML
writes it (``REFRAG_H100_MODULES='["cuda/12.8"]'``).

Values of ``environment`` that look like secrets (``is_secret``) are in no message and no job script: they are set where
``sbatch`` is called, which hands its environment on.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from harness.errors import InputError, unknown
from slurm.local_cluster import cluster

_SECRET = re.compile(r"SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|(^|_)(TOKEN|KEY)S?($|_)", re.IGNORECASE)
_URI_WITH_SECRET = re.compile(r"://[^/]*@|[?&][^=&]*(key|token|passw|secret)[^=&]*=", re.IGNORECASE)
# What a scheduler's names have; these stand in commands and job scripts.
_NAME = re.compile(r"[\w@.+-]+(,[\w@.+-]+)*", re.ASCII)
_GPU = re.compile(r"[\w.:-]+", re.ASCII)
_FEATURES = re.compile(r"[\w@.+:,&|()\[\]*!-]+", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NAMES = {
    **dict.fromkeys(("partition", "cpu_partition", "account", "qos"), _NAME),
    "gpu_type": _GPU,
    "constraint": _FEATURES,
}
SITE_FILE = "~/.config/refrag-bench/site.toml"


@dataclass(frozen=True, kw_only=True)
class LocalProfile:
    """Processes of this machine (submitit's local executor): one node, no queue."""

    name: str
    gpus_per_node: int = 0  # that jobs may take; 0: all that there are
    environment: Mapping[str, str] = field(default_factory=dict)  # of every job, beside what is set already
    shared: Path = Path("runs")  # where runs lie


@dataclass(frozen=True, kw_only=True)
class SlurmProfile:
    """A SLURM partition of equal nodes. Empty text asks for nothing."""

    name: str
    partition: str
    gpus_per_node: int
    cpus_per_gpu: int
    gpu_type: str = ""  # of the gres, as in gpu:h100:8
    cpu_partition: str = ""  # of jobs without a GPU, where constraint does not hold; empty: theirs is the other one
    memory_gb: int = 0  # per node; 0: all that the node has
    time_min: int = 60
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpu_hour_price: float = 0.0  # in the site's currency; 0: not known
    modules: tuple[str, ...] = ()  # loaded before a job starts
    environment: Mapping[str, str] = field(default_factory=dict)  # of SLURM's commands and every job
    shared: Path = Path("runs")  # where runs lie; every node must see it

    @property
    def gres(self) -> str:
        """All GPUs of a node, as SLURM writes them; empty where a node has none."""
        return self.gres_of(self.gpus_per_node)

    def gres_of(self, gpus: int) -> str:
        """So many GPUs of a node, as SLURM writes them; empty for none."""
        return ":".join(filter(None, ("gpu", self.gpu_type, str(gpus)))) if gpus else ""

    def options(self) -> dict[str, str]:
        """What a job of one whole node asks of ``sbatch`` and ``srun``, long options without their dashes."""
        asked = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres,
            "cpus-per-task": str(self.cpus_per_gpu * max(self.gpus_per_node, 1)),
            "mem": f"{self.memory_gb}G" if self.memory_gb else "0",
            "time": str(self.time_min),
        }
        return {option: value for option, value in asked.items() if value}


Profile = LocalProfile | SlurmProfile


def _local() -> Profile:
    return LocalProfile(name="local")


def _h100() -> SlurmProfile:
    return SlurmProfile(name="h100", partition="h100", gpu_type="h100", gpus_per_node=8, cpus_per_gpu=12)


def _slurm_local() -> Profile:
    """The test cluster of ``refrag-bench cluster up``, asked for exactly what ``h100`` asks for."""
    return replace(_h100(), name="slurm-local", environment=cluster.environment(cluster.default_folder()))


PROFILES: Mapping[str, Callable[[], Profile]] = {"local": _local, "h100": _h100, "slurm-local": _slurm_local}


def find_profile(name: str) -> Profile:
    """The profile of a cluster, with what the site file and the environment change of it.

    Raises ``InputError`` for an unknown name, a site file that cannot be read, an unknown field or a wrong value.
    """
    if name not in PROFILES:
        raise unknown("cluster", name, PROFILES)
    profile = PROFILES[name]()
    path, site = _read_site()
    for field_name, value in site.get(name, {}).items():
        profile = _changed(profile, field_name, value, f"{path} [{name}]")
    prefix = f"REFRAG_{name.upper().replace('-', '_')}_"
    for variable in sorted(v for v in os.environ if v.startswith(prefix)):
        field_name = variable.removeprefix(prefix).lower()
        _check_field(profile, field_name, variable)
        profile = _changed(profile, field_name, _from_environment(profile, field_name, variable), variable)
    return profile


def is_secret(name: str, value: str) -> bool:
    """Whether a variable is not to be written down: by its name, or a URI with a user and password in it."""
    return bool(_SECRET.search(name) or _URI_WITH_SECRET.search(value))


def gpus_here(profile: LocalProfile) -> int:
    """How many GPUs of this machine jobs may take: all, or as many of them as the profile says."""
    import torch

    there = torch.cuda.device_count()
    return min(there, profile.gpus_per_node) if profile.gpus_per_node else there


def shared_folders() -> list[Path]:
    """Where runs may lie, by all profiles; the current folder's first."""
    return list(dict.fromkeys([Path("runs"), *(find_profile(name).shared for name in PROFILES)]))


def _read_site() -> tuple[Path, dict[str, Any]]:
    """The site file and its tables; no table where nobody named a file and there is none."""
    named = os.environ.get("REFRAG_SITE")
    path = Path(named or SITE_FILE).expanduser()
    if not named and not path.exists():
        return path, {}
    try:
        site = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a site file at {path} (REFRAG_SITE): {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: expected TOML: {error}") from error
    for name, table in site.items():
        if name not in PROFILES:
            raise unknown(f"cluster in {path}", name, PROFILES)
        if not isinstance(table, dict):
            raise InputError(f"{path}: expected a table [{name}], got {type(table).__name__}")
    return path, site


def _from_environment(profile: Profile, field_name: str, variable: str) -> Any:
    text = os.environ[variable]
    hint = get_type_hints(type(profile))[field_name]
    if hint in (str, Path):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        said = f", got {text!r}" if field_name != "environment" else ""  # its values may be secrets
        expected, _ = _KINDS[hint]
        raise InputError(f"{variable}: expected {expected} as {field_name}, as TOML writes it{said}") from error


def _changed(profile: Profile, field_name: str, value: Any, where: str) -> Profile:
    _check_field(profile, field_name, where)
    hint = get_type_hints(type(profile))[field_name]
    expected, read = _KINDS[hint]
    read_value = read(value)
    if read_value is None:
        said = f", got {value!r}" if field_name != "environment" else ""
        raise InputError(f"{where}: expected {expected} as {field_name}{said}")
    if field_name in _NAMES and not (
        _NAMES[field_name].fullmatch(value) or (value == "" and field_name != "partition")
    ):
        raise InputError(
            f"{where}: expected a name without spaces and a shell's characters as {field_name}, got {value!r}"
        )
    if field_name == "environment":
        read_value = {**profile.environment, **read_value}
    return replace(profile, **{field_name: read_value})


def _check_field(profile: Profile, field_name: str, where: str) -> None:
    valid = {f.name for f in fields(profile)} - {"name"}
    if field_name not in valid:
        raise unknown(f"field of {where}:", field_name, valid)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _amount(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _path(value: Any) -> Path | None:
    path = Path(value).expanduser() if isinstance(value, str) else None
    return path if path and path.is_absolute() else None


def _names(value: Any) -> tuple[str, ...] | None:
    modules = isinstance(value, list) and all(isinstance(item, str) and item.split() == [item] for item in value)
    return tuple(value) if modules else None


def _variables(value: Any) -> dict[str, str] | None:
    if not isinstance(value, dict) or not all(_VARIABLE.fullmatch(name) for name in value):
        return None
    return value if all(isinstance(item, str) for item in value.values()) else None


# What a site may write for a field of each type, and how it is read (None: it is something else).
_KINDS: Mapping[Any, tuple[str, Callable[[Any], Any]]] = {
    str: ("text", _text),
    int: ("a whole number of at least 0", _number),
    float: ("a number of at least 0", _amount),
    Path: ("a folder with an absolute path", _path),
    tuple[str, ...]: ("a list of text without spaces", _names),
    Mapping[str, str]: ("a table of text by names of variables (letters, digits and _)", _variables),
}
