"""One training as one run of MLflow: parameters once, numbers by step, files at the end; again on resuming.

    <folder>/mlflow.json    which run, in which store: a training that goes on goes on there

Steps that the run has are not written twice: an exact resume repeats them with the same numbers. MLflow's own retries
(minutes) are off, a request takes at most ``REQUEST_S``; a site's own MLFLOW_HTTP_REQUEST_* variables stand.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import write_atomically
from harness.train.tracking import Row, Status, without_secrets

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FILE = "mlflow.json"
EXPERIMENT = "refrag-bench"
REQUEST_S = 5
MOST_PARAMETERS, MOST_METRICS = 100, 1000  # of one request


class MlflowRun:
    """The run of the training in ``folder`` (a ``tracking.Run``); it is called ``name`` in the store at ``uri``.

    Artifacts of a store that is a database go to ``artifacts``; a server has its own place. Raises ``ImportError``
    where MLflow is not installed.
    """

    def __init__(self, uri: str, name: str, parameters: Mapping[str, str], folder: Path, artifacts: Path) -> None:
        _import()
        self._uri, self._store, self._name = uri, without_secrets(uri, uri), name
        self._parameters, self._folder, self._artifacts = parameters, folder, artifacts
        self._client: MlflowClient
        self._run = ""
        self._last = 0  # the last step that the run has

    def begin(self) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        if found := self._found():
            self._run = found
            self._client.update_run(found, status="RUNNING")
            history = self._client.get_metric_history(found, "loss")
            self._last = max((metric.step for metric in history), default=0)
        else:
            self._create()

    def write(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, row.at_ms, row.step)
            for row in rows
            if row.step > self._last
            for name, value in row.values.items()
        ]
        self._last = max(self._last, rows[-1].step)
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + MOST_METRICS])

    def end(self, status: Status, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(self._run, str(file))
        self._client.set_terminated(self._run, status)

    def _found(self) -> str | None:
        """The run that this training began earlier in this store, if it is there still."""
        from mlflow.exceptions import MlflowException

        if kept_in(self._folder) != self._store:
            return None
        try:
            info = self._client.get_run(json.loads((self._folder / FILE).read_text())["run"]).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return str(info.run_id) if info.lifecycle_stage == "active" else None

    def _create(self) -> None:
        from mlflow.entities import Param

        self._run = self._client.create_run(self._experiment(), run_name=self._name).info.run_id
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / FILE, json.dumps({"store": self._store, "run": self._run}) + "\n")
        asked = [Param(name, value) for name, value in self._parameters.items()]
        for start in range(0, len(asked), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=asked[start : start + MOST_PARAMETERS])

    def _experiment(self) -> str:
        """The experiment's id; several trainings may make it at once."""
        from mlflow.exceptions import MlflowException

        own = None if self._uri.startswith(("http", "databricks")) else self._artifacts.absolute().as_uri()
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return str(self._client.create_experiment(EXPERIMENT, artifact_location=own))
            except MlflowException:
                found = self._client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        return str(found.experiment_id)


class Addition:
    """More numbers for the run that the training in ``folder`` has in the store at ``uri`` (a ``tracking.Run``)."""

    def __init__(self, uri: str, folder: Path) -> None:
        _import()
        self._uri, self._run = uri, json.loads((folder / FILE).read_text())["run"]

    def begin(self) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)

    def write(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        for row in rows:
            metrics = [Metric(name, value, row.at_ms, row.step) for name, value in row.values.items()]
            self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: Status, files: Sequence[Path]) -> None:
        """The run's status stays the training's."""


def kept_in(folder: Path) -> str | None:
    """The store, without secrets, that the training in ``folder`` was tracked to; None where it was not."""
    try:
        return str(json.loads((folder / FILE).read_text())["store"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _import() -> None:
    """MLflow, in the training's thread, because two threads that import at once can meet a module half made.

    Its variables are read now, or at each request.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_S))
    import mlflow.tracking  # noqa: F401

    for noisy in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
