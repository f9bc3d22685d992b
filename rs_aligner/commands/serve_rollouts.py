"""A vLLM server of rollouts: from a checked config to an exit status.

What `examples/serve_rollouts.py` does. Left out on purpose: how it is started and guarded (`rollout_server`).
"""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from rs_aligner.address import Address
from rs_aligner.config import ServeRolloutsConfig
from rs_aligner.config.base import problem
from rs_aligner.config.rollout_servers import ROLLOUTS_TOKEN
from rs_aligner.files import json_object_if_any
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.remote.listening import listen_at
from rs_aligner.rollout_server import environment, launch
from rs_aligner.rollout_server.barred import variable_of
from rs_aligner.rollout_server.failure import head_size_problem

_logger = logging.getLogger("rs_aligner")


def serve(config: ServeRolloutsConfig) -> NoReturn:
    """Start vLLM and serve until SIGTERM or SIGINT.

    Raises:
        ValueError: no environment, an address that is taken, or a model that vLLM refuses.
        RuntimeError: it broke while it served.
        SystemExit: with status 0, after a signal.
    """
    _end_on_signals()
    python, build, at = prepare(config)
    model, shown = config.pretrained_checkpoint.restore_from_path, _address(config)
    barred = _barred(Path(model))
    with _log(config) as log, launch.started(config, python, build, at, log, barred) as server:
        print(f"vLLM starts with {model}, which takes a while; its log: {log}", flush=True)
        about = server.wait()
        adapters = "" if about["lora_rank"] is None else f", adapters up to rank {about['lora_rank']}"
        secret = "without a token, for this machine only" if at[1] is None else "with a token"
        what = f"vLLM {about['vllm']}, {about['dtype']}, sequences of {about['max_length']} tokens{adapters}"
        print(f"rollouts ready at {shown} ({what}; {secret})", flush=True)
        print(f"new weights may come from below {about['weights_root']}", flush=True)
        raise RuntimeError(f"vLLM at {shown} serves no more: {server.watch()}")


def prepare(config: ServeRolloutsConfig) -> tuple[Path, environment.Build, tuple[str, str | None]]:
    """What is known before anything is started: vLLM's Python, its build, the address and the token.

    Raises:
        ValueError: as `serve`, or sequences that are too long for the model.
    """
    if (most := launch.max_length_of(config)) != config.vllm.max_length:
        _logger.warning(
            "vllm.max_length is %s, the length before LongRoPE: beyond it vLLM computes another model", most
        )
    at = listen_at(config.inference.host, config.inference.port, config.inference.token_file, ROLLOUTS_TOKEN)
    python, build = environment.find_python(), environment.build_here()
    if build == "cpu":
        key, folder = (
            "pretrained_checkpoint.restore_from_path",
            config.pretrained_checkpoint.restore_from_path,
        )
        if (why := head_size_problem(json_object_if_any(Path(folder) / "config.json") or {})) is not None:
            raise ValueError(problem(key, folder, why))
    for key in (
        ("tensor_parallel_size", "gpu_memory_utilization") if build == "cpu" else ("cpu_cache_gib", "threads")
    ):
        if (
            key in config.vllm.model_fields_set
            and getattr(config.vllm, key) != type(config.vllm).model_fields[key].default
        ):
            other = "on a CPU" if build == "cpu" else "on a GPU"
            _logger.warning("vllm.%s has no effect %s", key, other)
    return python, build, at


def _barred(folder: Path) -> str | None:
    """The ids that the server can bar, since the model's tokenizer lacks them (`barred.variable_of`)."""
    vocab_size = (json_object_if_any(folder / "config.json") or {}).get("vocab_size")
    if not isinstance(vocab_size, int):
        return None
    try:
        return variable_of(Tokenizer(folder).known_ids(vocab_size))
    except ValueError as error:
        _logger.warning("the server bars no ids of a padded vocabulary: %s", error)
        return None


def _address(config: ServeRolloutsConfig) -> Address:
    return Address(config.inference.host.strip("[]"), config.inference.port)


@contextlib.contextmanager
def _log(config: ServeRolloutsConfig) -> Iterator[Path]:
    """VLLM's log, in a folder of its own where none is named: it is kept only if something failed."""
    if config.log_dir is not None:
        folder = Path(config.log_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder / "vllm.log"
        return
    folder = Path(tempfile.mkdtemp(prefix="rs_aligner_vllm_"))  # mode 700
    try:
        yield folder / "vllm.log"
    except SystemExit:
        with contextlib.suppress(OSError):
            (folder / "vllm.log").unlink()
            folder.rmdir()
        raise


def _end_on_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)


def _leave(*_: object) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the way out is not to be interrupted
    raise SystemExit(0)
