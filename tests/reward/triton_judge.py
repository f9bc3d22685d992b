"""A real PyTriton server that scores and fails as a test wants, in processes that a test may kill or freeze.

It speaks our protocol (`ours`) or NeMo-Aligner's contract and nothing else (`nemo`). A score is a function of
the text, or of the tokens, alone, so that whoever asks can tell a true one. What the server does with
requests stands in a file that is read for each of them:

    hold               the first request that comes says so in `at_work`, and is never answered
    slow S             takes S seconds a row
    fail               every third request is an error
    nan, inf           every fifth text has no number
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
FINGERPRINT = "f00dbeef"


def truth(text: str) -> float:
    """The score of a text: the number behind a leading `=`, else one in steps that float32 has."""
    if text.startswith("="):
        return float(text[1:])
    return (crc32(text.encode()) % 65536) / 64


def has_no_number(text: str) -> bool:
    """Whether `nan` and `inf` hit it."""
    return crc32(text.encode()) % 5 == 0


def truth_of_tokens(token_ids: tuple[int, ...]) -> float:
    """The score of a sequence in NeMo-Aligner's contract."""
    return float(sum((place + 1) * token for place, token in enumerate(token_ids)) % 65536)


class TritonJudge:
    """A running server, restartable at its port."""

    def __init__(self, folder: Path, port: int, contract: str, *arguments: str) -> None:
        self.folder, self.port = folder, port
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [sys.executable, "-m", "tests.reward.triton_judge", str(port), contract, *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self.behave("")

    def behave(self, how: str) -> None:
        """From the next request on."""
        (self.folder / "behaviour").write_text(how)

    def start(self) -> None:
        """Does not wait until it is ready."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def processes(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            me = psutil.Process(self._process.pid)
            return [me, *me.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        """To the server and all that belongs to it."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer does it; returns when all are gone."""
        family = self.processes()
        self.signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
        if self._process is not None:
            self._process.wait(timeout=10)

    def wait_until_at_work(self, timeout: float = 30) -> None:
        """Until a request is held."""
        self._wait_for(self.folder / "at_work", timeout)

    def wait_until_ready(self, timeout: float = 60) -> None:
        """Until the server has said that it is ready."""
        self._wait_for(self.folder / "ready", timeout)

    def _wait_for(self, file: Path, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not file.exists():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)
        file.unlink()


@contextlib.contextmanager
def triton_judge(folder: Path, port: int, contract: str = "ours", *arguments: str) -> Iterator[TritonJudge]:
    """A server that is started, and gone at the end, whatever happened to it."""
    judge = TritonJudge(folder, port, contract, *arguments)
    judge.start()
    try:
        judge.wait_until_ready()
        yield judge
    finally:
        judge.signal(signal.SIGCONT)
        judge.kill()


class _Ours:
    """The inference function of our own protocol."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint.encode()
        self._calls = 0

    def __call__(self, requests: list[Any]) -> list[dict[str, Any]]:
        return [self._answer(request.data) for request in requests]

    def _answer(self, data: dict[str, Any]) -> dict[str, Any]:
        texts = [text.decode() for text in data["responses"][:, 0]]
        how, _, amount = Path("behaviour").read_text().partition(" ")
        self._calls += 1
        if how == "hold" and texts != [""]:  # a made-up row is not held
            Path("at_work").touch()
            time.sleep(60)
        if how == "slow":
            time.sleep(float(amount) * len(texts))
        if how == "fail" and self._calls % 3 == 0:
            raise RuntimeError("the judge is out of order")
        rewards = [
            float(how) if how in ("nan", "inf") and has_no_number(text) else truth(text) for text in texts
        ]
        column = np.empty((len(texts), 1), dtype=object)
        column[:, 0] = [self._fingerprint] * len(texts)
        return {
            "rewards": np.array(rewards, dtype=np.float32)[:, None],
            "row_ids": data["row_ids"],
            "fingerprint": column,
        }


def _nemo(requests: list[Any]) -> list[dict[str, Any]]:
    """The inference function of a NeMo-Aligner reward model."""
    answers = []
    for request in requests:
        tokens, lengths = request.data["tokens"], request.data["sequence_lengths"]
        rows = zip(tokens.tolist(), lengths[:, 0].tolist(), strict=True)
        rewards = [truth_of_tokens(tuple(row[:length])) for row, length in rows]
        answers.append({"rewards": np.array(rewards, dtype=np.float32)[:, None]})
    return answers


def _serve(port: int, contract: str, fingerprint: str = FINGERPRINT, token: str = "") -> None:
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

    text = {"dtype": bytes, "shape": (1,)}
    if contract == "ours":
        inputs = [Tensor(name=name, **text) for name in ("prompts", "responses", "metadata", "row_ids")]
        outputs = [Tensor(name=name, **text) for name in ("row_ids", "fingerprint")]
    else:
        inputs = [
            Tensor(name="tokens", dtype=np.int64, shape=(-1,), optional=True),
            Tensor(name="sequence_lengths", dtype=np.int64, shape=(1,), optional=True),
            Tensor(name="sentences", **text, optional=True),
        ]
        outputs = []
    triton = Triton(
        config=TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False),
        security_config=TritonSecurityConfig(
            access_token=token or "none", restricted_endpoints=["inference"] if token else []
        ),
    )
    with triton:
        triton.bind(
            model_name="reward_model",
            infer_func=_Ours(fingerprint) if contract == "ours" else _nemo,
            inputs=inputs,
            outputs=[Tensor(name="rewards", dtype=np.float32, shape=(1,)), *outputs],
            config=ModelConfig(max_batch_size=128, batcher=DynamicBatcher(max_queue_delay_microseconds=100)),
        )
        triton.run()
        Path("ready").touch()
        triton.serve()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *sys.argv[2:])
