"""vLLM as `leaf_world.py` has it: nothing is started, and what it would have been started with is noted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rs_aligner.commands import serve_rollouts
from rs_aligner.rollout_server import environment, launch
from tests.config.leaf_judges import Notes


def set_up_rollout_server(patch: pytest.MonkeyPatch, notes: Notes) -> None:
    """The command's server, which ends as by a signal."""

    @contextlib.contextmanager
    def started(
        config: Any, python: Path, build: environment.Build, at: Any, log: Path, _: Any
    ) -> Iterator[Any]:
        log.touch()
        notes.add("address", at[0])
        notes.add("vllm", launch.command_of(config, python, build, at[0]))
        notes.add("vllm on a GPU", launch.command_of(config, python, "gpu", at[0]))
        notes.add("vllm variables", launch.environment_of(config, build, at[1]))

        def wait() -> None:
            notes.add("startup", config.startup_timeout)
            raise SystemExit(0)

        yield SimpleNamespace(wait=wait)

    patch.setattr(launch, "started", started)
    patch.setattr(environment, "find_python", lambda: Path("python"))
    patch.setattr(environment, "build_here", lambda: "cpu")
    patch.setattr(serve_rollouts, "head_size_problem", lambda _: None)
    patch.setattr(serve_rollouts, "_end_on_signals", lambda: None)
