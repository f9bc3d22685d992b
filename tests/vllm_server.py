"""A real vLLM for tests: started on a free port, asked, and ended with all that it started.

Its Python is the fixture `vllm_python`. `STORIES` is the model that it takes, in the folder `test_data`.
`vllm_server` starts it by itself, `serve_rollouts` by our command, behind the guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rs_aligner.address import Address
from rs_aligner.child import start_process
from rs_aligner.remote.transport import Conversation, HTTPAnswer
from rs_aligner.rollout_server.barred import variable_of
from rs_aligner.rollout_server.inside import rs_aligner_guard as guard
from tests.ports import free_port

STORIES = "stories_wide"
BARRED = (376, 268, 511)
"""Ids that a shared server of that model can bar: "little", "b", and the last one."""
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
}
START_SECONDS = 250  # some tens of a core, which others use, too


@dataclass(frozen=True)
class Running:
    """A server that answers: its port, what it says, its process, which leads a group of its own."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, timeout: float = 60
    ) -> HTTPAnswer:
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        sent = b"" if body is None else json.dumps(body).encode()
        return Conversation(Address.parse(self.url), headers).exchange(method, path, timeout, sent)


def barring(*ids: int, vocab_size: int = 512) -> tuple[list[str], dict[str, str]]:
    """Switches and variables of a vLLM that can bar these ids, and tells so, as `serve-rollouts` has them."""
    known = np.ones(vocab_size, dtype=bool)
    known[list(ids)] = False
    switches = ["--middleware", "rs_aligner_guard.Guard", "--logits-processors", "rs_aligner_barring:Barring"]
    variable = variable_of(known)
    assert variable is not None
    return switches, {"PYTHONPATH": str(Path(guard.__file__).parent), guard.BARRED: variable}


@contextlib.contextmanager
def vllm_server(
    python: Path,
    model: Path,
    folder: Path,
    *switches: str,
    name: str = "policy",
    port: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start vLLM itself, as `serve-rollouts` does but without the guard, with its development routes.

    Args:
        python: the fixture `vllm_python`.
        model: a Hugging Face folder.
        folder: for its log, and to run in.
        switches: more of them.
        name: by which the model is asked for.
        port: to listen at; a free one by default.
        env: more variables.
    """
    port, log = port or free_port(), folder / "vllm.log"
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--seed", "1"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "64"]
    settings = {**SETTINGS, **(env or {})}
    with _started([*command, *switches], settings, log, b"startup complete") as process:
        try:
            yield Running(port, log, process)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)


@contextlib.contextmanager
def serve_rollouts(
    python: Path,
    model: Path,
    folder: Path,
    *overrides: str,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start `rs-aligner serve-rollouts`, wait until it says that it is ready, and end it as Ctrl-C would.

    Args:
        python: the fixture `vllm_python`.
        model: a Hugging Face folder.
        folder: for its log and vLLM's, and to run in, so that new weights may come from below it.
        overrides: more of them.
        port: to listen at; a free one by default.
        env: more variables.
    """
    port, log = port or free_port(), folder / "serve_rollouts.log"
    command = [sys.executable, "-m", "rs_aligner", "serve-rollouts", f"inference.port={port}"]
    command += [f"pretrained_checkpoint.restore_from_path={model}", f"log_dir={folder}"]
    command += ["vllm.cpu_cache_gib=1", "vllm.threads=1"]
    settings = {"RS_ALIGNER_VLLM_PYTHON": str(python), **(env or {})}
    with _started([*command, *overrides], settings, log, b"rollouts ready at") as process:
        try:
            yield Running(port, log, process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            finally:
                process.kill()  # its vLLM ends with it
                process.wait()


@contextlib.contextmanager
def _started(
    command: list[str], settings: Mapping[str, str], log: Path, ready: bytes
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own, once its log says this; ended at the end, with its group."""
    with log.open("ab") as output:
        began = output.tell()
        process = start_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings},
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while ready not in log.read_bytes()[began:]:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # vLLM's engine, too
        process.wait()
