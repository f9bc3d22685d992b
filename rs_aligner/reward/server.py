"""The judge as a service of its own: a judge function behind PyTriton, over HTTP.

One Triton model takes both kinds of request of `protocol`: `tokens` and `sequence_lengths` (and
`sentences`) of NeMo-Aligner's contract, or `prompts`, `responses` and `metadata`. It answers `rewards`,
float32 `[B, 1]`, NaN where there is none, and `errors`, bytes `[B, 1]`, with the reason. In token mode a
judge that reads text gets the decoded sequence as the response and an empty prompt, since the wire contract
does not say where one ends and the other begins, and no metadata.

gRPC and Triton's metrics port are left closed: clients speak HTTP, and an open port is something to guard.
Left out: access tokens, and a watchdog over Triton's Python stub. When tritonserver ends, so does this
process, with an error.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.proxy.types import Request
from pytriton.triton import Triton, TritonConfig

from rs_aligner.reward.judges import Metadata, ServedJudge, describe, load_judge, score_rows
from rs_aligner.reward.protocol import Arrays
from rs_aligner.rollout import ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.config import ServeRewardConfig

# Triton refuses a request with more rows than this; the judge never sees more than
# inference_micro_batch_size of them at a time.
MAX_REQUEST_ROWS = 4096
# How long requests in flight may take after SIGTERM, and when the process leaves even if the judge hangs.
FINISH_SECONDS = 5
LEAVE_SECONDS = 8
REPORT_SECONDS = 60.0

INPUTS = [
    Tensor(name="tokens", dtype=np.int64, shape=(-1,), optional=True),
    Tensor(name="sequence_lengths", dtype=np.int64, shape=(1,), optional=True),
    Tensor(name="sentences", dtype=bytes, shape=(1,), optional=True),
    Tensor(name="prompts", dtype=bytes, shape=(1,), optional=True),
    Tensor(name="responses", dtype=bytes, shape=(1,), optional=True),
    Tensor(name="metadata", dtype=bytes, shape=(1,), optional=True),
]
OUTPUTS = [
    Tensor(name="rewards", dtype=np.float32, shape=(1,)),
    Tensor(name="errors", dtype=bytes, shape=(1,)),
]

Decode = Callable[[list[int]], str]


def serve(cfg: ServeRewardConfig) -> None:
    """Serve the judge of the config until SIGTERM or SIGINT, then exit with status 0.

    Raises:
        ValueError: a judge, a tokenizer or an address that cannot be used; before Triton is started.
        RuntimeError: Triton did not start, or ended by itself.
        SystemExit: with status 0, after a signal.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)  # set explicitly: background jobs of a shell ignore SIGINT
    # Who sent a bad request is told why; its traceback here would help nobody.
    logging.getLogger("pytriton").setLevel(logging.CRITICAL)
    host, port, name = cfg.inference.host, cfg.inference.port, cfg.inference.model_name
    address = _free_address(host, port)
    if not ipaddress.ip_address(address).is_loopback:
        print(f"warning: whoever can reach {host}:{port} can use this judge", flush=True)
    judge = load_judge(cfg.judge)
    decode = None if cfg.tokenizer is None else _load_decoder(cfg.tokenizer)
    scorer = Scorer(judge, cfg.inference.inference_micro_batch_size, decode)
    batcher = DynamicBatcher(max_queue_delay_microseconds=cfg.inference.max_queue_delay_microseconds)
    with _triton(address, port, None if cfg.log_dir is None else Path(cfg.log_dir), name) as triton:
        triton.bind(
            model_name=name,
            infer_func=scorer,
            inputs=INPUTS,
            outputs=OUTPUTS,
            config=ModelConfig(max_batch_size=MAX_REQUEST_ROWS, batcher=batcher),
        )
        triton.run()  # returns when the model, not just the server, is ready
        print(f"judge {name} ready at http://{host}:{port}", flush=True)
        _watch(triton, scorer)


class Scorer:
    """Turns the requests that Triton merged into rows, and the rows' scores into answers.

    Args:
        judge: what scores the rows.
        max_rows: most rows of one call of the judge.
        decode: how token ids become text; None refuses them.
    """

    def __init__(self, judge: ServedJudge, max_rows: int, decode: Decode | None) -> None:
        self._judge = judge
        self._max_rows = max_rows
        self._decode = decode
        self.num_rows = 0
        self.num_failed = 0
        self.last_failure = ""

    def __call__(self, requests: list[Request]) -> list[Arrays]:
        """Answer each request with `rewards` and `errors`.

        Raises:
            ValueError: a request that is neither of the two kinds; Triton answers it with the message.
        """
        columns = [self._columns(request.data) for request in requests]
        prompts = [text for column in columns for text in column[0]]
        responses = [text for column in columns for text in column[1]]
        metadata = [row for column in columns for row in column[2]]
        scores = score_rows(self._judge.score_texts, (prompts, responses, metadata), self._max_rows)
        self.num_rows += len(scores)
        reasons = [score.reason if isinstance(score, ScoreFailure) else "" for score in scores]
        for reason in filter(None, reasons):
            self.num_failed += 1
            self.last_failure = reason
        rewards = np.array([np.nan if isinstance(s, ScoreFailure) else s.reward for s in scores], np.float32)
        errors = np.array([reason.encode() for reason in reasons], dtype=object)
        cuts = np.cumsum([len(column[0]) for column in columns])[:-1]
        return [
            {"rewards": part[:, None], "errors": why[:, None]}
            for part, why in zip(np.split(rewards, cuts), np.split(errors, cuts), strict=True)
        ]

    def _columns(self, data: Arrays) -> tuple[list[str], list[str], list[Metadata]]:
        """Read a request as prompts, responses and metadata."""
        if "prompts" in data and "responses" in data:
            prompts, responses = _texts(data["prompts"]), _texts(data["responses"])
            if "metadata" not in data:
                return prompts, responses, [{} for _ in prompts]
            return prompts, responses, [json.loads(text) for text in _texts(data["metadata"])]
        if "sentences" in data:
            responses = _texts(data["sentences"])
        elif "tokens" in data and "sequence_lengths" in data:
            responses = self._decoded(data["tokens"], data["sequence_lengths"])
        else:
            raise ValueError(
                f"a request needs prompts and responses (with metadata), or tokens and sequence_lengths, or "
                f"sentences; this one has {', '.join(sorted(data)) or 'nothing'}"
            )
        return [""] * len(responses), responses, [{} for _ in responses]

    def _decoded(self, tokens: Any, sequence_lengths: Any) -> list[str]:
        if self._decode is None:
            raise ValueError(
                "this judge reads text and was sent tokens: start it with tokenizer=<folder of the policy's "
                "tokenizer>, or let the client send text (remote_rm.mode=text)"
            )
        lengths = sequence_lengths[:, 0].tolist()
        if min(lengths) < 0 or max(lengths) > tokens.shape[1]:
            raise ValueError(f"sequence_lengths must be in [0, {tokens.shape[1]}], the width of tokens")
        return [self._decode(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]


@contextlib.contextmanager
def _triton(address: str, port: int, log_dir: Path | None, name: str) -> Iterator[Triton]:
    """A Triton that is stopped, and its scratch files removed, whatever happens.

    Its log is a file, kept only in `log_dir`: Triton is talkative and nobody reads it until it fails.
    """
    # The Python backend loads libpython; without this it may find another one than this interpreter's.
    library_folder = sysconfig.get_config_var("LIBDIR")
    search_path = [library_folder, os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, search_path))
    with tempfile.TemporaryDirectory(prefix="judge_", ignore_cleanup_errors=True) as scratch:
        log_file = (log_dir or Path(scratch)) / "triton.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        config = TritonConfig(
            id=f"judge:{name}",  # what `GET /v2` tells a client that asks for another model
            http_address=address,
            http_port=port,
            allow_grpc=False,
            allow_metrics=False,
            log_file=log_file,
            exit_timeout_secs=FINISH_SECONDS,
        )
        triton = Triton(config=config, workspace=Path(scratch) / "workspace")
        status = 0
        try:
            yield triton
        except Exception as error:
            status = 1
            raise RuntimeError(f"Triton failed: {describe(error)}\n{_log_tail(log_file)}".strip()) from error
        finally:
            last_resort = threading.Timer(LEAVE_SECONDS, _leave, (scratch, status))
            last_resort.daemon = True
            last_resort.start()
            triton.stop()  # waits for the judge, however long it takes
            last_resort.cancel()


def _leave(scratch: str, status: int) -> NoReturn:
    """Leave without waiting for anybody; tritonserver is gone by now."""
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(status)


def _watch(triton: Triton, scorer: Scorer) -> NoReturn:
    """Report now and then, until a signal raises SystemExit."""
    reported, next_report = 0, time.monotonic() + REPORT_SECONDS
    while triton.is_alive():
        time.sleep(1.0)
        if time.monotonic() < next_report:
            continue
        next_report += REPORT_SECONDS
        if scorer.num_rows > reported:
            reported = scorer.num_rows
            last = f", the last: {scorer.last_failure}" if scorer.num_failed else ""
            print(f"judge: {reported} rows served, {scorer.num_failed} failed{last}", flush=True)
    raise RuntimeError("tritonserver ended by itself")


def _exit(*_: object) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the way out is not to be interrupted
    raise SystemExit(0)


def _free_address(host: str, port: int) -> str:
    """Resolve the host and make sure that its port can be bound."""
    try:
        address = str(socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        raise ValueError(
            f"cannot serve at {host}:{port}: {error.strerror or error}; "
            "set inference.port to a free port and inference.host to an address of this machine"
        ) from None
    return address


def _load_decoder(folder: str) -> Decode:
    """Load the policy's tokenizer; imported here because most judges need none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"tokenizer: no tokenizer could be loaded from {folder}: {describe(error)}"
        ) from error

    def decode(token_ids: list[int]) -> str:
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))

    return decode


def _texts(column: Any) -> list[str]:
    return [text.decode("utf-8") for text in column[:, 0]]


def _log_tail(log_file: Path) -> str:
    """The last errors of Triton's log."""
    lines = log_file.read_text(errors="replace").splitlines() if log_file.is_file() else []
    return "\n".join([line for line in lines if line.startswith("E")][-5:])
