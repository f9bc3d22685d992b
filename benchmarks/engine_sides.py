"""The sides that `engines.py` compares, servers of two of them, and the CPU time of whole process trees.

Our own engines are measured as a run uses them, by `Sampler.generate`: text, seeds and checks included. Of
servers that are asked directly, only the servers' time counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from rs_aligner.address import Address
from rs_aligner.child import start_process
from rs_aligner.config import GenerationConfig, LengthParams, SamplingParams
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.sampler import Decoding, Sampler, load_sampler
from rs_aligner.remote.transport import Conversation
from rs_aligner.rollout import Prompt
from rs_aligner.sample_request import SampleRequest

LLAMA_PYTHON = "RS_ALIGNER_LLAMA_PYTHON"
"""Names the Python of an environment with `xllamacpp`, which has llama.cpp's server, and `gguf`."""
START_SECONDS = 400.0
READY = "ready at"
"""Of the line by which both say that they can be asked."""
TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds to which the kernel tells the CPU time of other processes."""
_ANSWER_SECONDS = 1800.0
_JSON = {"Content-Type": "application/json"}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all that it has started."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # those of children that have ended, too
    return total


@dataclass(frozen=True)
class Work:
    """What every side decodes.

    Attributes:
        folder: of the model, with its tokenizer.
        precision: `fp32` or `bf16`.
        prompts: token ids.
        num_rollouts: of each prompt.
        max_length: most tokens of a rollout, which an end token may end earlier.
        greedy: else temperature 1, from all tokens.
    """

    folder: Path
    precision: str
    prompts: Sequence[tuple[int, ...]]
    num_rollouts: int
    max_length: int
    greedy: bool = False

    @property
    def sampled(self) -> Work:
        """Several rollouts of the first prompts, as many as there are prompts in all."""
        return replace(self, prompts=self.prompts[: len(self.prompts) // self.num_rollouts])

    def few(self, num_prompts: int) -> Work:
        """As `sampled`, of so many prompts."""
        return replace(self, prompts=self.prompts[:num_prompts])

    @property
    def as_greedy(self) -> Work:
        """As many greedy rollouts: one of each prompt, since those of a prompt are all equal."""
        return replace(self, greedy=True, num_rollouts=1)


class Side(Protocol):
    """Who decodes."""

    def sample(self, work: Work) -> list[tuple[int, ...]]:
        """The rollouts' token ids, those of a prompt side by side."""

    def before(self) -> None:
        """What is not measured: keys and values of earlier prompts are forgotten."""

    def cpu(self) -> float:
        """CPU seconds of all its processes so far."""


class Ours:
    """An engine of ours on a policy.

    Args:
        work: names the model.
        runtime: of this process.
        config: names the engine.
        weights_at: where weights travel through, for an engine that has its own.
        server: the engine's, whose time counts, too.
    """

    def __init__(
        self,
        work: Work,
        runtime: Runtime,
        config: GenerationConfig,
        weights_at: Path | None = None,
        server: Server | None = None,
    ) -> None:
        self.sampler: Sampler = load_sampler(
            *(work.folder, runtime, Tokenizer(work.folder)),
            seed=1,
            precision=work.precision,
            generation=Decoding(config, weights_at),
        )
        self._server, self._step = server, 0

    def sample(self, work: Work) -> list[tuple[int, ...]]:
        self._step += 1
        asked = SampleRequest(
            [Prompt(str(place), "", ids, position=place) for place, ids in enumerate(work.prompts)],
            work.num_rollouts,
            SamplingParams(use_greedy=work.greedy),
            LengthParams(max_length=work.max_length, min_length=0),
            step=self._step,
        )
        found = sorted(self.sampler.generate(asked), key=lambda one: (one.group, one.index))
        return [one.token_ids for one in found]

    def before(self) -> None:
        if self._server is not None:
            self._server.forget()

    def cpu(self) -> float:
        return time.process_time() + (0.0 if self._server is None else self._server.cpu())


class Server:
    """A server that was started; it ends with the context `started`.

    Args:
        process: it.
        port: that it listens at.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self._port = process, port
        self._link = Conversation(Address("127.0.0.1", port), _JSON)

    @property
    def address(self) -> str:
        """For `generation.endpoints`."""
        return f"127.0.0.1:{self._port}"

    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def cpu(self) -> float:
        """CPU seconds of it and of all its processes."""
        return cpu_seconds(self._process.pid)

    def ask(self, path: str, body: Any = None) -> Any:
        """What it answers.

        Raises:
            RuntimeError: it refuses.
        """
        sent = b"" if body is None else json.dumps(body).encode()
        answer = self._link.exchange("POST", path, _ANSWER_SECONDS, sent)
        if answer.status != 200:
            raise RuntimeError(f"{path}: HTTP {answer.status}: {answer.body[:500]!r}")
        return json.loads(answer.body) if answer.body else None

    def forget(self) -> None:
        """Drop keys and values of prompts that were decoded before."""
        self.ask("/reset_prefix_cache")


@contextlib.contextmanager
def started(command: Sequence[str], port: int, log: Path, **variables: str) -> Iterator[Server]:
    """A server, ready to be asked, and ended with all that it started."""
    with log.open("wb") as output:
        process = start_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            cwd=log.parent,
        )
    server = Server(process, port)
    try:
        deadline = time.monotonic() + START_SECONDS
        while READY not in log.read_text(errors="replace"):
            if server.has_ended() or time.monotonic() > deadline:
                raise RuntimeError(f"a server ended, or was not ready in {START_SECONDS:g} s")
            time.sleep(0.5)
        yield server
    except RuntimeError as error:
        raise RuntimeError(f"{error}; it said: {log.read_text(errors='replace')[-3000:]}") from error
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def vllm_command(work: Work, port: int, weights_root: Path, max_length: int) -> list[str]:
    """The command that serves a model by vLLM, on one thread."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[work.precision]
    return [
        *(sys.executable, "-m", "rs_aligner", "serve-rollouts"),
        f"pretrained_checkpoint.restore_from_path={work.folder}",
        f"inference.port={port}",
        f"weights_root={weights_root}",
        *(f"vllm.dtype={dtype}", f"vllm.max_length={max_length}", "vllm.max_num_seqs=128"),
        *("vllm.threads=1", "vllm.cpu_cache_gib=1"),
    ]


class Vllm:
    """VLLM's server, asked directly: all prompts in one request.

    Args:
        server: it.
        eos_ids: tokens that end a rollout.
    """

    def __init__(self, server: Server, eos_ids: Sequence[int]) -> None:
        self._server, self._eos_ids, self._seed = server, list(eos_ids), 0
        self.before, self.cpu = server.forget, server.cpu

    def sample(self, work: Work) -> list[tuple[int, ...]]:
        self._seed += work.num_rollouts  # a prompt's further ones have those that follow
        answer = self._server.ask(
            "/v1/completions",
            {
                "model": "policy",
                "prompt": [list(ids) for ids in work.prompts],
                "n": work.num_rollouts,
                "max_tokens": work.max_length,
                "temperature": 0.0 if work.greedy else 1.0,
                "stop_token_ids": self._eos_ids,
                "ignore_eos": True,
                "logprobs": 0,
                "return_token_ids": True,
                "seed": self._seed,
            },
        )
        choices = sorted(answer["choices"], key=lambda one: one["index"])
        return [tuple(one["token_ids"]) for one in choices]


class Llama:
    """llama.cpp's server (`llama_server.py`), asked directly: all prompts in one request."""

    def __init__(self, server: Server) -> None:
        self._server, self._seed, self.cpu = server, 0, server.cpu

    def before(self) -> None:
        """It is told with each request to keep nothing."""

    def sample(self, work: Work) -> list[tuple[int, ...]]:
        self._seed += work.num_rollouts  # a prompt's further ones have those that follow
        answers = self._server.ask(
            "/completion",
            {
                "prompt": [list(ids) for ids in work.prompts],
                "n_cmpl": work.num_rollouts,
                "n_predict": work.max_length,
                "temperature": 0.0 if work.greedy else 1.0,
                "samplers": ["temperature"],
                "n_probs": 1,
                "return_tokens": True,
                "cache_prompt": False,
                "seed": self._seed,
            },
        )
        answers = [answers] if isinstance(answers, dict) else answers
        # The end token, which it decodes, is not among those that it tells.
        return [tuple(one["tokens"]) for one in sorted(answers, key=lambda one: one["index"])]


def llama_python() -> Path | None:
    """The Python that llama.cpp's server runs in; None where the variable names none."""
    named = os.environ.get(LLAMA_PYTHON)
    return Path(named) if named and os.access(named, os.X_OK) else None


def llama_command(python: Path, work: Work, port: int, gguf: Path) -> list[str]:
    """The command that serves a model by llama.cpp, on one thread, all rollouts at once."""
    script = Path(__file__).with_name("llama_server.py")
    tokens = max(map(len, work.prompts)) + work.max_length
    return [
        str(python),
        str(script),
        str(work.folder),
        str(gguf),
        *map(str, (port, len(work.prompts), tokens)),
    ]
