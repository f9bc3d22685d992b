"""A run whose policy is a fake: the loop, the judge and all that is written are real, the weights a digest.

The fake policy's weights are a digest of all rows it was trained on, in order, so two runs that end with the
same weights have trained on the same rows.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from rs_aligner import stopping
from rs_aligner.config import RemoteRMConfig, SamplingParams, TrainRSConfig
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.run import Run
from rs_aligner.reward.protocol import Judge
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure, TrainingRow
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.round import Judges
from rs_aligner.trainers.rs import RSData, RSTrainer

Result = Score | ScoreFailure


def digest(*parts: Any) -> str:
    return sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class FakeStats:
    loss: float
    grad_norm: float
    learning_rate: float
    figures: dict[str, float] = field(default_factory=dict)
    skipped: Sequence[Any] = ()


class Killed(BaseException):
    """Stands in for the end of a process: nothing catches it, and other ranks go down with it."""


class Exchange:
    """What replicas in threads of one process gather through."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=20)
        self._items: list[Any] = [None] * size

    def gather(self, replica: int, item: Any) -> list[Any]:
        self._items[replica] = item
        self._barrier.wait()
        found = list(self._items)
        self._barrier.wait()
        return found

    def abort(self) -> None:
        """One of them is no more."""
        self._barrier.abort()


class FakePolicy:
    """Answers depend on the weights, the step, the prompt's position and the rollout's index only."""

    weights_seconds = 0.0

    def __init__(self, events: list[str], batch_size: int, exchange: Exchange, replica: int) -> None:
        self.events, self.batch_size, self.exchange, self.replica = events, batch_size, exchange, replica
        self.version, self.weights = 0, "initial"
        self.trained: list[list[TrainingRow]] = []
        self.asked: list[tuple[int, list[int], SamplingParams]] = []
        self.seconds_per_rollout = 0.0
        self.text_length = 8
        self.before_train: Callable[[], None] = lambda: None

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        asked = (request.step, [prompt.position for prompt in request.prompts], request.sampling)
        self.asked.append(asked)
        mine = list(enumerate(request.prompts))[self.replica :: self.exchange.size]
        for index in reversed(request.indices):  # rollouts end in any order
            for group, prompt in mine:
                drawn = digest(self.weights, request.step, prompt.position, index)
                seed = int(drawn[:6], 16)
                if not request.lacks(group, index, seed=seed, policy_version=self.version):
                    continue
                tokens = tuple(int(c, 16) for c in drawn[: 1 + int(drawn[-1], 16) % 7])
                self.events.append("rollout")
                time.sleep(self.seconds_per_rollout)
                if stopping.poll():
                    return
                yield Rollout(
                    *(
                        group,
                        index,
                        tokens,
                        drawn[: self.text_length],
                        "length" if len(tokens) == 7 else "stop",
                    ),
                    policy_version=self.version,
                    seed=seed,
                    log_probs=tuple(-1.0 for _ in tokens),
                )
        self.events.append("generated")

    def train(self, rows: Sequence[TrainingRow]) -> list[FakeStats]:
        self.before_train()
        self.events.append("train")
        self.trained.append(list(rows))
        stats = []
        for start in range(0, len(rows), self.batch_size):
            self.weights = digest(self.weights, rows[start : start + self.batch_size])
            figure = int(self.weights[:4], 16) / 1000
            stats.append(FakeStats(figure, figure / 2, 0.1 * (start + 1)))
        return stats

    def reference_log_probs(self, rows: Sequence[TrainingRow]) -> list[tuple[float, ...]]:
        self.events.append("reference")
        return [tuple(-1.5 for _ in row.response) for row in rows]

    def restart(self) -> None:
        self.events.append("restart")
        self.weights = "initial"

    def gather(self, item: Any) -> list[Any]:
        return self.exchange.gather(self.replica, item)

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        everyone = self.gather(values)
        return {key: max(one[key] for one in everyone) for key in values}

    def checkpoint_bytes(self) -> int:
        return 0

    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        self.events.append("save")
        self.gather(None)  # no rank alone makes a checkpoint
        if self.replica == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state = {"version": self.version, "weights": self.weights, "counters": counters}
            (folder / "state.json").write_text(json.dumps(state))
        self.gather(None)

    def load(self, folder: Path) -> dict[str, Any]:
        state = json.loads((folder / "state.json").read_text())
        self.version, self.weights = state["version"], state["weights"]
        counters: dict[str, Any] = state["counters"]
        return counters

    def export(self, folder: Path) -> None:
        self.events.append("export")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(self.weights)


Judged = tuple[str, int, int]
"""What a judge was shown: the prompt's id, the version of the policy, and the rollout's index."""


class FakeJudge:
    """Answers nothing before `flush`, so that a trainer that waits for a score too early waits for ever.

    With `batch` it answers as soon as so many wait. What it scored is counted in `scored`; what it is
    answering, or has answered since it was asked last, is `in_flight`.
    """

    def __init__(
        self,
        score: Callable[[Prompt, Rollout], Result],
        events: list[str],
        delay: float,
        batch: int | None = None,
    ) -> None:
        self.score, self.events, self.delay, self.batch = score, events, delay, batch
        self.waiting: list[tuple[Future[Result], Result, Judged]] = []
        self.unreachable_from: int | None = None
        self.scored: Counter[Judged] = Counter()
        self.in_flight: list[Judged] = []

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Result]:
        self.in_flight = []
        self.events.append("submit")
        if self.unreachable_from is not None and rollout.policy_version >= self.unreachable_from - 1:
            raise ConnectionError("no judge is ready at http://nowhere")
        future: Future[Result] = Future()
        shown = prompt.id, rollout.policy_version, rollout.index
        self.waiting.append((future, self.score(prompt, rollout), shown))
        if len(self.waiting) == self.batch:
            self._answer()
        return future

    def flush(self) -> None:
        self.events.append("flush")
        time.sleep(self.delay)
        self._answer()

    def _answer(self) -> None:
        while self.waiting:
            future, result, shown = self.waiting.pop()
            self.scored[shown] += isinstance(result, Score)
            self.in_flight.append(shown)
            future.set_result(result)
            if self.batch is not None:
                self.events.append("answer")

    def close(self) -> None: ...

    def __enter__(self) -> FakeJudge:
        return self

    def __exit__(self, *_: object) -> None: ...


class FakeLogger:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def finalize(self, status: str) -> None: ...


def by_tokens(prompt: Prompt, rollout: Rollout) -> Result:
    """A reward that differs from rollout to rollout."""
    return Score(int(digest(rollout.token_ids, rollout.text)[:6], 16) / 1e6)


class FakeRun:
    """Starts of one run, each with a fresh policy and judge, as after a crash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[str] = []
        self.errors: list[BaseException] = []
        self.logger = FakeLogger()
        self.judges: list[FakeJudge] = []  # of all starts
        self.prompts = [Prompt(f"p{i}", f"text {i}", (100 + i,)) for i in range(6)]
        self.validation = [Prompt(f"v{i}", f"held out {i}", (200 + i,), position=i) for i in range(4)]

    def start(
        self,
        score: Callable[[Prompt, Rollout], Result] = by_tokens,
        *,
        steps: int = 2,
        interval: int | None = 2,
        save_interval: int | None = None,
        replicas: int = 1,
        time_limit: str | None = None,
        delay: float = 0.0,
        before_train: Callable[[], None] = lambda: None,
        remote_rm: dict[str, Any] | None = None,
        judge: Callable[[RemoteRMConfig], Judge] | None = None,
        seconds_per_rollout: float = 0.0,
        unreachable: tuple[int, int] | None = None,
        text_length: int = 8,
        patience: int | None = None,
        epochs: int = 5,
        watched: Callable[[Prompt, Rollout], Result] | None = None,
        scored: Sequence[Group] = (),
        params: dict[str, Any] | None = None,
        batch: int = 4,
        answers_by: int | None = None,
        **rs: Any,
    ) -> list[FakePolicy]:
        """Train; returns the replicas' policies.

        `judge` makes the judge of each replica (by default a fake one that scores by `score`); `unreachable`
        says which replica's fake judge cannot be reached, and from which step on; `answers_by`, how many rows
        fake judges wait for.
        """
        config = TrainRSConfig.model_validate(
            {
                "trainer": {
                    "rs": {
                        "max_epochs": epochs,
                        "patience": patience,
                        "max_steps": steps,
                        "val_check_interval": interval,
                        "save_interval": save_interval,
                    }
                },
                "exp_manager": {
                    "explicit_log_dir": str(self.folder),
                    "max_time_per_run": time_limit,
                    "checkpoint_callback_params": params or {},
                },
                "pretrained_checkpoint": {"restore_from_path": "unused"},
                "remote_rm": remote_rm or {},
                "model": {
                    "global_batch_size": batch,
                    "data": {"data_prefix": {"train": "unused"}},
                    "rs": {"num_rollout_samples": 4, "num_rollouts_per_prompt": 4, **rs},
                },
            }
        )
        exchange = Exchange(replicas)
        policies = [FakePolicy(self.events, batch, exchange, replica) for replica in range(replicas)]
        errors = self.errors = []

        def fit(policy: FakePolicy) -> None:
            policy.before_train = before_train
            policy.seconds_per_rollout, policy.text_length = seconds_per_rollout, text_length
            asked: Judge
            if judge is not None:
                asked = judge(config.remote_rm)
            else:
                asked = fake = FakeJudge(score, self.events, delay, answers_by)
                self.judges.append(fake)
                if unreachable is not None and unreachable[0] == policy.replica:
                    fake.unreachable_from = unreachable[1]
            first = policy.replica == 0
            manager = config.exp_manager
            stopping.limit(
                manager.max_time_per_run, key="exp_manager.max_time_per_run", since=time.monotonic()
            )
            run = Run(
                config.exp_manager, is_first=first, loggers=[self.logger] if first else [], command="train_rs"
            )
            seen = FakeJudge(watched, self.events, delay, answers_by) if watched is not None else None
            if seen is not None:
                self.judges.append(seen)
            data = RSData([] if scored else self.prompts, self.validation, scored)
            trainer = RSTrainer(config, policy, Judges(asked, seen), data, run)
            try:
                with run, asked:
                    trainer.fit()
            except (Exception, stopping.Stopped) as error:
                errors.append(error)
            except Killed as error:
                errors.insert(0, error)
                exchange.abort()

        others = [threading.Thread(target=fit, args=(policy,), daemon=True) for policy in policies[1:]]
        for thread in others:
            thread.start()
        fit(policies[0])
        for thread in others:
            thread.join(timeout=30)
            assert not thread.is_alive()
        stopping.forget()
        if errors:
            raise errors[0]
        return policies

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "rollouts")

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what the clock decides."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
