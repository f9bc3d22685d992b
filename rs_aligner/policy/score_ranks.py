"""A rank of a served reward model: a process that scores what it is sent, until nobody is there to ask.

Run with `python -m` by the judge, which sends every rank of a copy of the model the same sequences over a
socket of its own; so the ranks need no agreement on what comes next, and wait without a time limit. Signals
are the judge's business: a rank leaves when its socket is closed, and is killed when the judge is.
Left out on purpose: several nodes (serve several judges instead).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rs_aligner.child import die_with_parent, leave_signals_to_parent
from rs_aligner.threads import ONE_THREAD, Threads


@dataclass(frozen=True)
class RankSettings:
    """What a rank is told first.

    Attributes:
        folder: the reward model, a Hugging Face folder or a checkpoint.
        store: a file in which the ranks of a copy find each other.
        expert_parallel_size: replicas of a copy, which share a mixture's experts and the batches out.
        threads: of a rank, on a CPU.
    """

    folder: str
    store: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    batch_size: int
    precision: str
    accelerator: str
    threads: Threads = ONE_THREAD
    expert_parallel_size: int = 1

    @property
    def ranks(self) -> int:
        """Of a copy of the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.expert_parallel_size


def _answer(
    connection: Connection[Any, Any], score: Callable[[Sequence[Sequence[int]]], list[float]]
) -> None:
    """Score until nobody asks any more, then leave.

    At once: there is nothing to save, and taking torch down in good order would take two seconds.
    """
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send((None, score(connection.recv())))
    os._exit(0)


def main(connection: Connection[Any, Any]) -> None:
    """Load the model, then answer each list of sequences: `(None, rewards)` or `(what is wrong, None)`.

    The first answer says that the model is loaded and has scored something.
    """
    settings: RankSettings = connection.recv()
    try:
        import torch.distributed as dist

        from rs_aligner.model.runtime import start
        from rs_aligner.policy.reward_model import load_reward_model
        from rs_aligner.policy.scoring import SequenceScorer

        with start(
            settings.tensor_parallel_size,
            settings.pipeline_parallel_size,
            settings.expert_parallel_size,
            accelerator=settings.accelerator,
            timeout_minutes=5,
            store=dist.FileStore(settings.store, settings.ranks),
            threads=settings.threads,
        ) as runtime:
            model, _ = load_reward_model(Path(settings.folder), runtime, precision=settings.precision)
            score = SequenceScorer(model, runtime, settings.batch_size)
            score([(0,)])
            connection.send((None, []))
            _answer(connection, score)
    except Exception as error:  # the ranks may be out of step now: the judge starts new ones
        with contextlib.suppress(OSError):
            connection.send((f"{type(error).__name__}: {error}", None))


if __name__ == "__main__":
    leave_signals_to_parent()
    die_with_parent(int(sys.argv[2]))
    main(Connection(int(sys.argv[1])))
