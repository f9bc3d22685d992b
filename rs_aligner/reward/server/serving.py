"""One Triton with one judge: started, watched and stopped, with nothing left behind.

Triton is several processes and some shared memory. Its Python stub may be killed (out of memory, say), and
Triton then says "ready" while every request fails; so the processes are watched from here. What they write is
this user's alone (`scratch`), and whoever is refused is told why in one line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonLifecyclePolicy, TritonSecurityConfig

from rs_aligner.config import InferenceConfig
from rs_aligner.reward.server.scorer import TOKEN_HEADER, Scorer
from rs_aligner.reward.server.scratch import close_shared_memory, private_files, remove_shared_memory
from rs_aligner.users_code import describe

# Triton refuses a request with more rows than this; the judge never sees more than
# inference_micro_batch_size of them at a time.
MAX_REQUEST_ROWS = 4096
# Batches that a judge gets at once, where it can take several.
CALLS_AT_ONCE = 4
# How long requests in flight may take at the end.
FINISH_SECONDS = 5
# How long a judge may take to let go of a Triton that broke.
LET_GO_SECONDS = 60.0

# How long processes that were killed may take to vanish.
GONE_SECONDS = 1.0

INPUTS = [
    Tensor(name="tokens", dtype=np.int64, shape=(-1,), optional=True),
    Tensor(name="sequence_lengths", dtype=np.int64, shape=(1,), optional=True),
    Tensor(name="sentences", dtype=bytes, shape=(1,), optional=True),
    Tensor(name="prompts", dtype=bytes, shape=(1,), optional=True),
    Tensor(name="responses", dtype=bytes, shape=(1,), optional=True),
    Tensor(name="metadata", dtype=bytes, shape=(1,), optional=True),
    Tensor(name="row_ids", dtype=bytes, shape=(1,), optional=True),
]
OUTPUTS = [
    Tensor(name="rewards", dtype=np.float64, shape=(1,)),
    Tensor(name="errors", dtype=bytes, shape=(1,)),
    Tensor(name="row_ids", dtype=bytes, shape=(1,)),
    Tensor(name="fingerprint", dtype=bytes, shape=(1,)),
    Tensor(name="components", dtype=bytes, shape=(1,)),
]


# PyTriton answers a request that fails with two stack traces of its model in the Python stub. What is wrong
# is in their last line; the traces are for the log, unless it was the fault of the request.
_REFUSAL = """

def _execute(self, requests, execute=TritonPythonModel.execute):
    try:
        return execute(self, requests)
    except pb_utils.TritonModelException as error:
        reason = ([line for line in str(error).splitlines() if line.strip()] or ["(no message)"])[-1]
        if "RequestError: " not in reason:
            LOGGER.error(str(error))
        refusal = pb_utils.TritonError(reason.rpartition("RequestError: ")[2])
        return [pb_utils.InferenceResponse(error=refusal)] * len(requests)


TritonPythonModel.execute = _execute
"""

# Of several instances all but the first ask the first how to reach us. PyTriton lets them wait a second for
# it, which is too short where all of them start at once on a busy machine; and one that asks between its
# socket's `bind` and `listen` is turned away, which would end the server.
HANDSHAKE = """

def _get_config(socket_path, get=get_config_from_handshake_server, seconds=60.0):
    import time

    until = time.monotonic() + seconds
    while True:
        try:
            return get(socket_path, seconds)
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


get_config_from_handshake_server = _get_config
"""

# The processes of the Triton that runs: those of one that ended early may be nobody's children any more.
_running: list[psutil.Process] = []


class ServedModel:
    """A Triton that answers, and its processes."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        servers = [p for p in psutil.Process().children() if _name(p) == "tritonserver"]
        _running[:] = [*servers, *(p for server in servers for p in server.children(recursive=True))]

    def problem(self) -> str | None:
        """What is broken beyond repair; None while all is well."""
        for process in _running:
            if not _is_alive(process):
                name = "tritonserver" if process is _running[0] else "a process of Triton's Python backend"
                return f"{name} ended by itself"
        return None if self._triton.is_alive() else "the connection to Triton ended by itself"


def end_processes() -> None:
    """End all processes of Triton, and what else this process has started, at once."""
    _end_triton()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


@contextlib.contextmanager
def serving(
    cfg: InferenceConfig,
    where: tuple[str, int],
    scorer: Scorer,
    scratch: Path,
    log_file: Path,
    metrics_port: int | None,
) -> Iterator[ServedModel]:
    """A Triton that is ready to score; it is stopped at the end, whatever happens.

    Args:
        cfg: the service.
        where: IPv4 address and port to listen at.
        scorer: what answers requests.
        scratch: a folder for its files.
        log_file: where it writes its log: it is talkative, and nobody reads it until it fails.
        metrics_port: where it shows its figures on loopback; None for nowhere.

    Raises:
        RuntimeError: it does not start, or the judge does not let go of it.
    """
    address, port = where
    config = TritonConfig(
        id=f"judge:{cfg.model_name}",  # what `GET /v2` tells a client that asks for another model
        http_address=address,
        http_port=port,
        http_header_forward_pattern=TOKEN_HEADER,
        allow_grpc=False,
        allow_metrics=metrics_port is not None,
        allow_gpu_metrics=False,  # the judge's GPU is not Triton's, and where there is none it complains
        metrics_address="127.0.0.1",
        metrics_port=metrics_port,
        log_file=log_file,
        exit_timeout_secs=FINISH_SECONDS,
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=cfg.max_queue_delay_microseconds)
    workspace = Path(tempfile.mkdtemp(prefix="t", dir=scratch)) / "w"  # short: sockets lie below it
    triton = Triton(
        config=config,
        workspace=workspace,
        # A model that is loaded over HTTP instead leaves a folder in /tmp each time.
        triton_lifecycle_policy=TritonLifecyclePolicy(launch_triton_on_startup=False, local_model_store=True),
        # Its own endpoints (loading models, shared memory, logging) are closed by a secret made up here.
        security_config=TritonSecurityConfig(),
    )
    try:
        try:
            triton.bind(
                model_name=cfg.model_name,
                # A batch with a row that hangs keeps one of them; the others go on.
                infer_func=[scorer] * (CALLS_AT_ONCE if scorer.takes_calls_at_once else 1),
                inputs=INPUTS,
                outputs=OUTPUTS,
                config=ModelConfig(max_batch_size=MAX_REQUEST_ROWS, batcher=batcher),
            )
            _amend(workspace)
            with private_files():
                triton.run()  # returns when the model, not just the server, is ready
            close_shared_memory(os.getpid())
            model = ServedModel(triton)
        except Exception as error:
            raise RuntimeError(f"Triton failed: {describe(error)}\n{_log_tail(log_file)}".strip()) from error
        yield model
    except SystemExit:
        triton.stop()  # waits for the judge, however long it takes
        raise
    finally:
        _end_triton()
        _stop_or_give_up(triton)
        remove_shared_memory(os.getpid())
        shutil.rmtree(workspace.parent, ignore_errors=True)


def use_our_libpython() -> None:
    """Let Triton's Python stub load this interpreter's libpython: it may find another one by itself."""
    ours, found = sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")
    if found.split(":")[0] != ours:
        os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, [ours, found]))


def _end_triton() -> None:
    """Kill what is left of Triton, and wait until it is gone (not by `wait`: PyTriton does that itself)."""
    processes = list(_running)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + GONE_SECONDS
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    _running.clear()


def _stop_or_give_up(triton: Triton) -> None:
    """Stop a Triton whose processes are gone; the judge may still be busy with their last request."""
    thread = threading.Thread(target=triton.stop, daemon=True)
    thread.start()
    thread.join(LET_GO_SECONDS)
    if thread.is_alive():
        raise RuntimeError(f"Triton broke, and the judge did not end its last call in {LET_GO_SECONDS:g} s")


def _amend(workspace: Path) -> None:
    """Let clients be told what is wrong in one line, without our code in it, and instances be patient."""
    (model,) = workspace.rglob("model.py")
    with model.open("a", encoding="utf-8") as file:
        file.write(_REFUSAL + HANDSHAKE)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _log_tail(log_file: Path) -> str:
    """The last errors of Triton's log."""
    lines = log_file.read_text(errors="replace").splitlines() if log_file.is_file() else []
    return "\n".join([line for line in lines if line.startswith("E")][-5:])
