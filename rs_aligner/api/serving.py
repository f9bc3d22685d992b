"""A judge as a service, for as long as a block lasts: `with rs_aligner.serve(...) as served:`.

The server is a process of its own, which ends with this one whatever ends it. Left out on purpose: servers on
other machines, which are started there (`rs-aligner serve`).
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rs_aligner.address import Address
from rs_aligner.child import die_with_parent, start_process
from rs_aligner.config import ConfigError, ServeRewardConfig, load_config
from rs_aligner.config.tree import plain, read_tree, tree_of
from rs_aligner.remote.listening import any_free_port

_PROGRAM = "import sys; from rs_aligner.api.serving import run; sys.exit(run(*sys.argv[1:]))"
_SECONDS_TO_END = 20.0
_READY = "ready at"  # what the server says then


@dataclass(frozen=True)
class Served:
    """A server at work.

    Attributes:
        address: `host:port`, for `remote_rm.endpoints` of a training.
        process: its id.
    """

    address: str
    process: int


@contextlib.contextmanager
def serve(
    *,
    reward_fn: Callable[..., Any] | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    timeout: float = 120.0,
) -> Iterator[Served]:
    """Start the judge's server in a process of its own; it is stopped at the end of the block.

    Args:
        reward_fn: the judge, `f(prompts, responses, metadata)`, that a file has under its name: the server
            imports it from there. None: the judge that `judge` of the config names.
        config: overrides of the tree of `serve_reward.yaml`. Without `inference.port` a free one is taken.
        timeout: seconds until it has to be ready.

    Raises:
        ValueError: the config or the judge cannot be used; with the key, and what the server said.
        TimeoutError: it is not ready in time.
    """
    tree = tree_of(config) if config is None or isinstance(config, Mapping) else read_tree(config)
    if reward_fn is not None:
        if OmegaConf.select(tree, "judge.function") is not None:
            raise ConfigError(["judge.function is set, and reward_fn given: leave one of the two out"])
        OmegaConf.update(tree, "judge.function", _place_of(reward_fn))
    if OmegaConf.select(tree, "inference.port") is None:
        OmegaConf.update(tree, "inference.port", any_free_port())
    typed = load_config(tree, ServeRewardConfig)
    with tempfile.TemporaryDirectory(prefix="rs_") as scratch:
        log = Path(scratch) / "server.log"
        command = [sys.executable, "-c", _PROGRAM, str(os.getpid()), json.dumps(plain(tree))]
        with log.open("wb") as output:
            process = start_process(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(process, log, timeout)
            where = Address(typed.inference.host.strip("[]"), typed.inference.port)
            yield Served(where.netloc, process.pid)
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while _READY not in (said := log.read_text(errors="replace")):
        if process.poll() is not None:
            lines = [line for line in said.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("error: ")]
            told = errors[-1].removeprefix("error: ") if errors else "\n".join(lines[-5:])
            raise ValueError(f"the judge's server has ended: {told}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the judge's server is not ready after {timeout:g} s: {said[-500:]}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _place_of(function: Callable[..., Any]) -> str:
    """`file:name`, where another process finds the function."""
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    if file is None or "<" in name or not Path(file).is_file():
        raise ValueError(
            f"reward_fn is {name}, which another process cannot find: define it in a file, at its top level, "
            "or hand it to rs_aligner.train, which needs no server"
        )
    return f"{Path(file).resolve()}:{name}"


def run(parent: str, tree: str) -> int:
    """The server's process: serve until it is told to end.

    Args:
        parent: id of the process that started this one, with which it ends.
        tree: the config, as JSON.

    Returns:
        The status to end with.
    """
    die_with_parent(int(parent), signal.SIGTERM)  # on which it leaves nothing behind, and is gone in seconds
    from rs_aligner.commands.serve_reward import serve as command

    try:
        return command(load_config(json.loads(tree), ServeRewardConfig))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", flush=True)
        return 2
