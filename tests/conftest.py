"""What tests share: where the external data lies, no network, and nothing of the user's own settings."""

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from harness import progress

# The same examples in every run and no time limit of an example: a busy machine, or an unlucky day, is no failure.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
os.environ["MLFLOW_TRACKING_URI"] = "off"  # a new store takes ten seconds; the tests of tracking say where
# Before a library of the Hub reads them: no network, caches that hold nothing, no proxy before a test's own server.
CACHES = tempfile.TemporaryDirectory(prefix="refrag-caches-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = CACHES.name + "/hub"
os.environ["REFRAG_CACHE"] = CACHES.name + "/refrag"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
# Printed text is compared: no colour, no width, no line of progress because a machine is slow.
for variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(variable, None)
progress.LOG_SECONDS = math.inf

pytest_plugins = ("clusters",)

PROJECT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("REFRAG_SHARED", PROJECT.parent / "shared"))


def shared_path(relative: str) -> Path:
    """A file or folder of the external data, or a skip that says what is missing."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the external data; set REFRAG_SHARED to the folder that holds it")
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of matrices this small a second thread makes a slower test; and ``TrainJob`` leaves one behind."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic world on disk."""
    from harness.data.world.mirror import WorldConfig, write_world

    return write_world(WorldConfig(people=120, questions=30, documents=2), tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny decoder, exported as training exports one. It answers nonsense, and always the same."""
    from harness.data.world.tokenizer import build_tokenizer
    from harness.model.load import random_decoder
    from harness.train.export import export

    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    folder = tmp_path_factory.mktemp("checkpoint") / "final"
    return export(random_decoder("tiny", seed=3), build_tokenizer(), training, folder)
