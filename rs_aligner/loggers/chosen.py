"""The sinks that a config asks for.

What sends figures to other machines ends no run: where it fails, that is told once. Texts of rollouts go
there only with `exp_manager.send_rollout_texts`. Left out on purpose: the sinks that a caller hands over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rs_aligner.config import ExpManagerBase, ExpManagerConfig
from rs_aligner.files import checksum, make_folder, write_whole
from rs_aligner.harmless import without_secrets
from rs_aligner.record.sinks import Sampled

if TYPE_CHECKING:
    from rs_aligner.record.sinks import Logger

_logger = logging.getLogger("rs_aligner")
ID_FILE = "run_id"


def chosen(config: ExpManagerBase) -> Iterator[Logger]:
    """The sinks of a run, in `logs/` of its folder as far as they keep files; for the first rank.

    Raises:
        ValueError: one cannot be opened.
    """
    logs = Path(config.explicit_log_dir) / "logs"
    if config.create_tensorboard_logger:
        from rs_aligner.loggers.tensorboard import TensorBoard

        yield TensorBoard(logs)
    for make in (_wandb, _trackio, _mlflow):
        if (logger := make(config, logs)) is not None:
            yield Harmless(logger)


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run, as sinks are told them: without what is called a secret.

    Args:
        settings: by dotted keys.
    """
    return {key: without_secrets(key.rpartition(".")[2], value) for key, value in settings.items()}


class Harmless:
    """A sink whose failures are told, once, and end nothing.

    Args:
        sink: that may fail.
    """

    def __init__(self, sink: Any) -> None:
        self.sink, self._name, self._has_told = sink, type(sink).__name__, False

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Tell it the settings."""
        self._try(partial(self.sink.log_hyperparams, params))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Tell it the figures of a step."""
        self._try(partial(self.sink.log_metrics, metrics, step))

    def log_rollouts(self, sampled: Sampled, step: int) -> None:
        """Show it what a step sampled."""
        self._try(partial(self.sink.log_rollouts, sampled, step))

    def finalize(self, status: str) -> None:
        """Close it."""
        self._try(partial(self.sink.finalize, status))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of a network, of a server, of its package; the figures are here, too
            if not self._has_told:
                self._has_told = True
                said = " ".join(f"{type(error).__name__}: {error}".split())
                _logger.warning("%s has not got all figures (told once): %s", self._name, said)


def _wandb(config: ExpManagerBase, logs: Path) -> Logger | None:
    if not config.create_wandb_logger:
        return None
    from rs_aligner.loggers.wandb import Wandb, wandb_settings

    make_folder(logs)
    texts = _sends_texts(config)
    settings = wandb_settings(
        config.wandb_logger_kwargs,
        name=config.name,
        folder=logs,
        identity=partial(_identity, logs),
        texts=texts,
    )
    return Wandb(settings, texts=texts)


def _trackio(config: ExpManagerBase, logs: Path) -> Logger | None:
    if not config.create_trackio_logger:
        return None
    from rs_aligner.loggers.wandb import Wandb

    settings = {"project": config.name, "resume": "allow", **config.trackio_logger_kwargs}
    if "name" not in settings:  # which is what trackio tells runs apart by
        settings["name"] = f"{config.name}-{_identity(logs)[:6]}"
    return Wandb(settings, texts=_sends_texts(config), package="trackio")


def _mlflow(config: ExpManagerBase, logs: Path) -> Logger | None:
    if not config.create_mlflow_logger:
        return None
    from rs_aligner.loggers.mlflow import MLflow

    return MLflow(
        config.mlflow_logger_kwargs,
        name=config.name,
        folder=logs / "mlflow",
        identity=_identity(logs),
        texts=_sends_texts(config),
    )


def _sends_texts(config: ExpManagerBase) -> bool:
    return isinstance(config, ExpManagerConfig) and config.send_rollout_texts


def _identity(logs: Path) -> str:
    """What tells this run from all others, the same at each of its starts; a copied folder is another run."""
    file = logs / ID_FILE
    if not file.exists():
        make_folder(logs)
        write_whole(file, [uuid4().hex.encode()])
    return checksum(file.read_bytes() + str(logs.resolve()).encode())
