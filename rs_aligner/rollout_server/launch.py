"""vLLM as a server of rollouts: started in its own environment, waited for, watched, and stopped, all of it.

Its switches are those that rollouts need: the guard before every route, the development routes behind it, and
no defaults of sampling from the model's folder. It is ready once it has sampled a token: what it cannot
compute shows no earlier. Whatever ends this process ends vLLM, too. Left out on purpose: starting it again,
since it would come back with the weights that it was first started with.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rs_aligner import child
from rs_aligner.address import Address
from rs_aligner.config import ServeRolloutsConfig
from rs_aligner.config.base import problem
from rs_aligner.config.layout import positions_of, rope_type_of
from rs_aligner.config.serve_rollouts import LORA_RANKS
from rs_aligner.files import json_object_if_any
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.transport import Conversation, error_text
from rs_aligner.rollout_server.environment import Build
from rs_aligner.rollout_server.failure import reason_of
from rs_aligner.rollout_server.inside import rs_aligner_guard as guard

END_SECONDS = 20.0
"""How long vLLM may take to end by itself."""
ASK_SECONDS = 30.0
WATCH_SECONDS = 1.0
HEALTH_SECONDS = 10.0
_INSIDE = Path(guard.__file__).parent
# vLLM ends with who started it: the kernel keeps that wish when the process becomes another program.
_START = (
    "import os, runpy, signal, sys; _, ours, parent, *command = sys.argv; "
    "runpy.run_path(ours)['die_with_parent'](int(parent), signal.SIGTERM); os.execv(command[0], command)"
)


def max_length_of(config: ServeRolloutsConfig) -> int | None:
    """Most tokens of a sequence; None for as many as the model was made for.

    Of a model with LongRoPE at most those before it: where sequences may be longer, vLLM takes the long
    factors for each text, and the policy is decoded and trained with the short ones.

    Raises:
        ValueError: more were asked for.
    """
    given = config.vllm.max_length
    made = json_object_if_any(Path(config.pretrained_checkpoint.restore_from_path) / "config.json") or {}
    most = positions_of(made)
    if rope_type_of(made) != "longrope" or most is None:
        return given
    if given is not None and given > most:
        why = f"of this model at most {most}, beyond which its longrope rope_type makes another model of it"
        raise ValueError(problem("vllm.max_length", given, why))
    return given or most


def command_of(
    config: ServeRolloutsConfig, python: Path, build: Build, address: str, barred: str | None = None
) -> list[str]:
    """The command line of vLLM; no secret is in it."""
    vllm = config.vllm
    dtype = {"cpu": "float32", "gpu": "bfloat16"}[build] if vllm.dtype == "auto" else vllm.dtype
    lora_rank = next((one for one in LORA_RANKS if one >= (config.lora_rank or LORA_RANKS[-1] + 1)), None)
    settings: dict[str, Any] = {
        "--model": Path(config.pretrained_checkpoint.restore_from_path).absolute(),
        "--served-model-name": config.inference.model_name,
        "--host": address,
        "--port": config.inference.port,
        "--dtype": dtype,
        "--max-model-len": max_length_of(config),
        "--max-num-seqs": vllm.max_num_seqs,
        "--tensor-parallel-size": vllm.tensor_parallel_size,
        "--gpu-memory-utilization": vllm.gpu_memory_utilization if build == "gpu" else None,
        "--seed": vllm.seed,
        "--generation-config": "vllm",
        "--logprobs-mode": "raw_logprobs",
        "--max-lora-rank": lora_rank,
        "--middleware": "rs_aligner_guard.Guard",
        "--worker-extension-cls": "rs_aligner_worker.Reloading",
        "--logits-processors": None if barred is None else "rs_aligner_barring:Barring",
    }
    switches = ["--disable-uvicorn-access-log"]
    # A prompt that is cut in two dies of its seed on a CPU (vLLM 0.32: "CPU Generator does not use offset").
    switches += ["--enforce-eager", "--no-enable-chunked-prefill"] if build == "cpu" else []
    switches += ["--enable-lora"] if lora_rank is not None else []
    given = [text for name, value in settings.items() if value is not None for text in (name, str(value))]
    serve = [str(python), "-P", "-m", "vllm.entrypoints.openai.api_server"]
    return [*serve, *given, *switches, *vllm.arguments]


def environment_of(
    config: ServeRolloutsConfig, build: Build, token: str | None, barred: str | None = None
) -> dict[str, str]:
    """The variables of vLLM's process: this one's without what is Python's, and vLLM's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_API"))}
    for name in (guard.TOKEN, guard.BARRED):
        kept.pop(name, None)
    threads = config.vllm.threads or len(os.sched_getaffinity(0))
    kept |= {
        "PYTHONPATH": str(_INSIDE),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        guard.ROOT: str(Path(config.weights_root).absolute()),
        guard.LAUNCHER: str(os.getpid()),
    }
    if token is not None:
        kept[guard.TOKEN] = token
    if barred is not None:
        kept[guard.BARRED] = barred
    if config.lora_rank is not None:
        kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if build == "cpu":
        kept |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.vllm.cpu_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
        }
    return kept


class Server:
    """A vLLM that was started.

    Args:
        process: it, which leads a group of its own.
        log: what it says.
        config: what it was started by.
        address: where it listens.
        token: what it wants to be shown.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        log: Path,
        config: ServeRolloutsConfig,
        address: str,
        token: str | None,
    ) -> None:
        self._process, self._log, self._config = process, log, config
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._link = Conversation(Address(reached, config.inference.port), headers)

    def wait(self) -> dict[str, Any]:
        """Wait until it is ready.

        Returns:
            What the guard says of it.

        Raises:
            ValueError: it cannot serve the model, or was not ready in time; with its own reason.
        """
        limit = self._config.startup_timeout
        deadline = time.monotonic() + limit
        while not self.is_healthy():
            if self._process.poll() is not None:
                raise ValueError(f"vLLM cannot serve {self._model}: {self.reason()}")
            if time.monotonic() > deadline:
                raise ValueError(f"vLLM was not ready in startup_timeout={limit:g} s; its log: {self._log}")
            time.sleep(0.2)
        about: dict[str, Any] = json.loads(self._ask("GET", "/rs_aligner/about"))
        trial = {"model": self._config.inference.model_name, "prompt": [0], "max_tokens": 1, "temperature": 0}
        self._ask("POST", "/v1/completions", trial)
        return about

    def watch(self) -> str:
        """Wait until it breaks; returns why."""
        next_look = time.monotonic()
        while self._process.poll() is None:
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + HEALTH_SECONDS
                with contextlib.suppress(TransportError):  # a busy one may take its time
                    if self._link.exchange("GET", "/health", ASK_SECONDS).status == 503:
                        return f"its engine is dead: {self.reason()}"
            time.sleep(WATCH_SECONDS)
        return f"it ended: {self.reason()}"

    def is_healthy(self) -> bool:
        """Whether it answers that it is."""
        with contextlib.suppress(TransportError):
            return self._link.exchange("GET", "/health", ASK_SECONDS).status == 200
        return False

    def reason(self) -> str:
        """Why it failed, by its log, which is named."""
        said = reason_of(self._log.read_text(encoding="utf-8", errors="replace"))
        return f"{said or 'it does not say why'} (its log: {self._log})"

    @property
    def _model(self) -> str:
        return self._config.pretrained_checkpoint.restore_from_path

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        sent = b"" if body is None else json.dumps(body).encode()
        try:
            answer = self._link.exchange(method, path, self._config.startup_timeout, sent)
        except TransportError as error:
            raise ValueError(f"vLLM cannot serve {self._model}: {error}: {self.reason()}") from None
        if answer.status != 200:
            time.sleep(WATCH_SECONDS)  # until its log has it
            why = error_text(answer.body) if answer.status < 500 else self.reason()
            raise ValueError(f"vLLM cannot serve {self._model}: {why}")
        return answer.body


@contextlib.contextmanager
def started(
    config: ServeRolloutsConfig,
    python: Path,
    build: Build,
    at: tuple[str, str | None],
    log: Path,
    barred: str | None = None,
) -> Iterator[Server]:
    """A vLLM that is started, and ended with all that it started, whatever happens.

    Args:
        config: what it is started by.
        python: of its environment.
        build: which of vLLM's is in there.
        at: the address to listen at, and the token.
        log: where it writes what it says.
        barred: the ids that it can bar, as `barred.variable_of` has them; None for none.
    """
    address, token = at
    first = (str(python), "-P", "-c", _START, child.__file__, str(os.getpid()))
    with log.open("wb") as output:
        process = child.start_process(
            [*first, *command_of(config, python, build, address, barred)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment_of(config, build, token, barred),
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield Server(process, log, config, address, token)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its engine and workers, should they be left
        process.wait()
