"""One Triton with one judge: started, watched and stopped, with nothing left behind.

Triton is several processes (`watched`) and some shared memory. What they write is this user's alone
(`scratch`), and whoever is refused is told why in one line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import TritonConfig, TritonLifecyclePolicy, TritonSecurityConfig

from rs_aligner.config import InferenceConfig
from rs_aligner.reward.server.scorer import TOKEN_HEADER, Scorer
from rs_aligner.reward.server.scratch import close_shared_memory, private_files, remove_shared_memory
from rs_aligner.reward.server.watched import BrokenStart, WatchedTriton, end_triton
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


@contextlib.contextmanager
def serving(
    cfg: InferenceConfig,
    where: tuple[str, int],
    scorer: Scorer,
    scratch: Path,
    log_file: Path,
    metrics_port: int | None,
) -> Iterator[WatchedTriton]:
    """A Triton that is ready to score; it is stopped at the end, whatever happens.

    Args:
        cfg: the service.
        where: IPv4 address and port to listen at.
        scorer: what answers requests.
        scratch: a folder for its files.
        log_file: where it writes its log: it is talkative, and nobody reads it until it fails.
        metrics_port: where it shows its figures on loopback; None for nowhere.

    Raises:
        BrokenStart: it broke before it was ready.
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
    log_before = log_file.stat().st_size if log_file.is_file() else 0
    workspace = Path(tempfile.mkdtemp(prefix="t", dir=scratch)) / "w"  # short: sockets lie below it
    calls_at_once = CALLS_AT_ONCE if scorer.takes_calls_at_once else 1
    triton = WatchedTriton(
        calls_at_once,
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
                infer_func=[scorer] * calls_at_once,
                inputs=INPUTS,
                outputs=OUTPUTS,
                config=ModelConfig(max_batch_size=MAX_REQUEST_ROWS, batcher=batcher),
            )
            _amend(workspace)
            with private_files():
                triton.run()  # returns when the model, not just the server, is ready
            close_shared_memory(os.getpid())
        except Exception as error:
            if isinstance(error, BrokenStart):
                raise BrokenStart("; ".join([str(error), *_errors(log_file, log_before)])) from error
            told = [f"Triton failed: {describe(error)}", *_errors(log_file, log_before)]
            raise RuntimeError("\n".join(told)) from error
        yield triton
    except SystemExit:
        triton.stop()  # waits for the judge, however long it takes
        raise
    finally:
        end_triton()
        _stop_or_give_up(triton)
        remove_shared_memory(os.getpid())
        shutil.rmtree(workspace.parent, ignore_errors=True)


def use_our_libpython() -> None:
    """Let Triton's Python stub load this interpreter's libpython: it may find another one by itself."""
    ours, found = sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")
    if found.split(":")[0] != ours:
        os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, [ours, found]))


def _stop_or_give_up(triton: WatchedTriton) -> None:
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


def _errors(log_file: Path, before: int) -> list[str]:
    """The last errors of Triton's log, behind so many bytes; not that there is no GPU, which is none."""
    if not log_file.is_file():
        return []
    lines = log_file.read_bytes()[before:].decode(errors="replace").splitlines()
    return [line for line in lines if line.startswith("E") and "CudaDriverHelper" not in line][-5:]
