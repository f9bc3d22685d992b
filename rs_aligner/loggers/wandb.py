"""W&B as a sink of a run's figures, and trackio, which has its names.

A run that is gone on with goes on there, too. Texts of rollouts go along only where they are asked for; and
since a terminal's lines may hold some, W&B keeps no copy of them then either. Lightning's names for arguments
are taken, as they stand in configs of NeMo. Left out on purpose: weights and code, which stay here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rs_aligner.record.sinks import Sampled

STEP = "trainer/global_step"  # Lightning's name
_NOT_SENT = ("log_model", "checkpoint_name", "add_file_policy", "experiment")
_LONGEST = 2000  # characters of a text


class Wandb:
    """A run at W&B, or of trackio.

    Args:
        settings: what it is opened with: `init`'s arguments.
        texts: whether texts of rollouts are sent.
        package: `wandb` or `trackio`.

    Raises:
        ValueError: it cannot be opened.
    """

    def __init__(self, settings: Mapping[str, Any], *, texts: bool, package: str = "wandb") -> None:
        self._package: Any = importlib.import_module(package)
        self._texts, self._is_wandb = texts, package == "wandb"
        self._prefix = settings.get("prefix", "")
        given = {key: value for key, value in settings.items() if key != "prefix"}
        try:
            self._run = self._package.init(**given)
        except Exception as error:  # of each package its own classes; none of them is a reason to train
            hint = "log in with `wandb login`, or set WANDB_MODE=offline" if self._is_wandb else ""
            said = " ".join(str(error).split())
            raise ValueError(
                f"exp_manager.create_{package}_logger: {package} cannot begin a run: {said}. "
                + (f"If that is for want of a login, {hint}; " if hint else "")
                + f"exp_manager.{package}_logger_kwargs are {dict(settings)}"
            ) from error
        if self._is_wandb:
            self._run.define_metric(STEP)
            self._run.define_metric("*", step_metric=STEP, step_sync=True)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Send the settings."""
        if self._is_wandb:
            self._run.config.update(dict(params), allow_val_change=True)
        else:
            self._run.config.update(dict(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a step's figures."""
        self._log(metrics, step)

    def log_rollouts(self, sampled: Sampled, step: int) -> None:
        """Send how scores and lengths are distributed; a few answers only where texts are asked for."""
        histogram = getattr(self._package, "Histogram", None)
        found: dict[str, Any] = {}
        if histogram is not None:
            found = {key: histogram(numbers) for key, numbers in sampled.distributions().items()}
        if self._texts and (examples := sampled.examples()):
            rows = [[_short(value) for value in one.cells().values()] for one in examples]
            found[f"samples/{sampled.name}"] = self._table(list(examples[0].cells()), rows)
        if found:
            self._log(found, step)

    def finalize(self, status: str) -> None:
        """End it there."""
        if self._is_wandb:
            self._run.finish(exit_code=0 if status == "success" else 1)
        else:
            self._run.finish()

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        named = {f"{self._prefix}{key}": value for key, value in values.items()}
        if self._is_wandb:
            self._run.log({**named, STEP: step}, step=step)
        else:
            self._run.log(named, step=step)

    def _table(self, head: list[str], rows: list[list[Any]]) -> Any:
        if self._is_wandb:
            return self._package.Table(columns=head, data=rows)
        import pandas

        return self._package.Table(dataframe=pandas.DataFrame(rows, columns=head))


def wandb_settings(
    kwargs: Mapping[str, Any], *, name: str, folder: Path, identity: Callable[[], str], texts: bool
) -> dict[str, Any]:
    """`wandb.init`'s arguments from those of Lightning's logger, which NeMo's configs have.

    Args:
        kwargs: `exp_manager.wandb_logger_kwargs`.
        name: of the run and, where nothing else is said, of the project.
        folder: in which W&B makes its own, `wandb/`.
        identity: tells this run from others, and is the same whenever it is gone on with.
        texts: whether texts of rollouts may be sent.

    Raises:
        ValueError: weights are to be sent.
    """
    found = {"name": name, "project": name, **kwargs}
    for key in _NOT_SENT:
        if found.pop(key, None):
            raise ValueError(
                f"exp_manager.wandb_logger_kwargs.{key}: only figures are sent; checkpoints stay in the "
                "run's folder. Leave it out"
            )
    if found.pop("offline", False):
        found["mode"] = "offline"
    if (saved := found.pop("save_dir", None)) is not None:
        found.setdefault("dir", saved)
    if (version := found.pop("version", None)) is not None:
        found.setdefault("id", version)
    found.setdefault("dir", str(folder))
    if not found.get("id"):
        found["id"] = identity()
    found.setdefault("resume", "allow")
    if not texts:
        found["settings"] = {"console": "off", **(found.get("settings") or {})}
    return found


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[: _LONGEST - 4]} ..."
    return value
