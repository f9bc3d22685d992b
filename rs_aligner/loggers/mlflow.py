"""MLflow as a sink of a run's figures. It has no histograms; a few answers are a table among its artifacts.

Texts of rollouts go along only where they are asked for. Left out on purpose: weights, which stay here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rs_aligner.files import make_folder
from rs_aligner.record.sinks import Sampled

_TAG = "rs_aligner_run"
_MOST_AT_ONCE = 100  # parameters that a server takes in a request
_LONGEST = 500  # characters of a parameter's value, in whichever version


class MLflow:
    """A run at MLflow.

    Args:
        kwargs: `exp_manager.mlflow_logger_kwargs`, as of Lightning's logger: `experiment_name`, `run_name`,
            `tracking_uri`, `tags`, `run_id`, `prefix`, `artifact_location`.
        name: of the run and, where nothing else is said, of the experiment.
        folder: where runs are kept when no server is named.
        identity: tells this run from others, and is the same whenever it is gone on with.
        texts: whether texts of rollouts are sent.

    Raises:
        ValueError: it cannot be opened, or an argument is none that there is.
    """

    def __init__(
        self, kwargs: Mapping[str, Any], *, name: str, folder: Path, identity: str, texts: bool
    ) -> None:
        given = dict(kwargs)
        self._texts, self._prefix = texts, given.pop("prefix", "") or ""
        try:
            self._client, self._id = _begin(given, name, folder, identity)
        except Exception as error:  # of its own classes, and of the network's
            said = " ".join(str(error).split())
            raise ValueError(
                f"exp_manager.create_mlflow_logger: mlflow cannot begin a run: {said}. "
                f"exp_manager.mlflow_logger_kwargs are {dict(kwargs)}"
            ) from error

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Send the settings."""
        from mlflow.entities import Param

        found = [Param(key, _text(value)) for key, value in params.items()]
        known = self._client.get_run(self._id).data.params  # of a run that is gone on with: none can change
        found = [one for one in found if one.key not in known]
        for start in range(0, len(found), _MOST_AT_ONCE):
            self._client.log_batch(self._id, params=found[start : start + _MOST_AT_ONCE])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a step's figures."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(f"{self._prefix}{key}", float(value), now, step) for key, value in metrics.items()]
        self._client.log_batch(self._id, metrics=found)

    def log_rollouts(self, sampled: Sampled, step: int) -> None:
        """Send a few answers, where texts are asked for."""
        if self._texts and (examples := sampled.examples()):
            columns: dict[str, Sequence[Any]] = {
                key: [one.cells()[key] for one in examples] for key in examples[0].cells()
            }
            self._client.log_table(self._id, columns, f"samples/{sampled.name}_{step:06d}.json")

    def finalize(self, status: str) -> None:
        """End it there."""
        self._client.set_terminated(self._id, "FINISHED" if status == "success" else "FAILED")


def _begin(given: dict[str, Any], name: str, folder: Path, identity: str) -> tuple[Any, str]:
    """A client, and the id of the run that is begun or gone on with."""
    from mlflow import MlflowClient

    uri = given.pop("tracking_uri", None) or os.environ.get("MLFLOW_TRACKING_URI")
    experiment = given.pop("experiment_name", None) or name
    location, tags = given.pop("artifact_location", None), given.pop("tags", None) or {}
    run_id, run_name = given.pop("run_id", None), given.pop("run_name", None) or name
    if given.pop("save_dir", None) or given.pop("log_model", None):
        raise ValueError("save_dir and log_model do nothing here: name a tracking_uri; weights stay here")
    if given:
        raise ValueError(f"unknown: {', '.join(given)}")
    if uri is None:
        make_folder(folder)
        uri, location = f"sqlite:///{folder.resolve() / 'mlflow.db'}", location or folder.resolve().as_uri()
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment, location) if found is None else found.experiment_id
    if run_id is None:
        before = client.search_runs([number], f"tags.{_TAG} = '{identity}'", max_results=1)
        run_id = before[0].info.run_id if before else None
    if run_id is None:
        return client, client.create_run(number, run_name=run_name, tags={**tags, _TAG: identity}).info.run_id
    client.update_run(run_id, status="RUNNING")
    return client, run_id


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
