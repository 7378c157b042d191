"""Benchmarks print ratios measured in one run; they assert equality of results, never a time."""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="cpu or cuda")
    parser.addoption("--checkpoint", help="tiny decoder to measure (default: a random one of the same shape)")
    parser.addoption("--gigabytes", default="0.1", help="shards that the loader is measured on (0.1)")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    from harness.device import open_device
    from harness.errors import InputError

    try:
        return str(open_device(str(request.config.getoption("--device"))))
    except InputError as error:
        pytest.exit(str(error), returncode=2)


@pytest.fixture(scope="session")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder that is measured."""
    given = request.config.getoption("--checkpoint")
    if given:
        return Path(str(given))
    from harness.data.world.tokenizer import build_tokenizer
    from harness.model.load import random_decoder
    from harness.train.export import export

    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    folder = tmp_path_factory.mktemp("checkpoint") / "final"
    return export(random_decoder("tiny", seed=0), build_tokenizer(), training, folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from harness.data.world.mirror import WorldConfig, write_world

    return write_world(WorldConfig(documents=2), tmp_path_factory.mktemp("data") / "world")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """A saved run says of the machine what a time depends on, and what runs are told to differ by."""
    import torch

    cpu = {name: machine_info["cpu"].get(name) for name in ("brand_raw", "count")}
    kept = {name: machine_info[name] for name in ("system", "machine", "python_version")}
    machine_info.clear()
    machine_info |= {**kept, "cpu": cpu, "torch": torch.__version__}


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """A commit is the same in every clone, whatever its folder and branch are called."""
    for name in ("project", "branch"):
        commit_info.pop(name, None)
