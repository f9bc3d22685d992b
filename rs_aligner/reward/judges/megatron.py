"""A judge that is a reward model on Megatron, with tensor, pipeline and data parallelism on one machine.

It serves what `train_reward_model.py` leaves (a checkpoint, or `final/`), and any folder of a Llama-family
`*ForSequenceClassification` with one label. In text mode it uses its own tokenizer and, for rows with
`messages`, its own chat template; in token mode (NeMo-Aligner's) it shares the policy's. A text is closed by
an end token as in training; token ids are scored as they come. This process has the texts; the model is in
others (`ranks`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rs_aligner.data.reading import RowReader
from rs_aligner.files import SETTINGS, hugging_face_part, read_json_object
from rs_aligner.model.architecture import Architecture
from rs_aligner.policy.score_ranks import RankSettings
from rs_aligner.reward.judges.base import Metadata, Tokens, Value, content_hash
from rs_aligner.reward.judges.ranks import Ranks
from rs_aligner.rollout import PREFILLED, ScoreFailure
from rs_aligner.threads import threads_of

_logger = logging.getLogger("rs_aligner")
_PRECISIONS = ("auto", "bf16", "fp32")
_ACCELERATORS = ("auto", "cpu", "gpu")
PAUSE_SECONDS = 30.0  # before ranks that could not be started are tried again


@dataclass(kw_only=True, eq=False)
class MegatronJudge:
    """A served reward model. Its fields are `judge.kwargs`.

    Attributes:
        folder: a checkpoint of `train_reward_model.py`, its `final/`, or a classifier with one label.
        tensor_model_parallel_size: ranks that share each layer.
        pipeline_model_parallel_size: ranks that share the layers out among them.
        expert_model_parallel_size: ranks that share a mixture's experts and the rows out among them.
        data_parallel_size: copies of the model that share the rows out among them.
        batch_size: rows that pass through a copy together; part of the fixed shapes.
        precision: `bf16`, `fp32`, or `auto` (bf16 on a GPU).
        accelerator: `cpu`, `gpu`, or `auto` (GPUs where there are some).
        threads: torch threads of each rank on a CPU; None: its share of the usable cores, and one where
            the batches are small.
        start_timeout: seconds that loading the weights may take.

    Raises:
        ValueError: a setting that cannot be used, or a folder that holds no reward model.
    """

    folder: str
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    data_parallel_size: int = 1
    batch_size: int = 8
    precision: str = "auto"
    accelerator: str = "auto"
    threads: int | None = None
    start_timeout: float = 600

    def __post_init__(self) -> None:
        self._check()
        from rs_aligner.model.folder import read_model_folder  # slow

        self._tokenizer, self._arch = read_model_folder(self.folder, "judge.kwargs.folder", use="score")
        path = Path(self.folder).resolve()
        source = hugging_face_part(path)
        trained = read_json_object(source / "config.json").get(SETTINGS, {})
        self._tokenizer.configure(trained.get("chat_template_kwargs"))
        self._reader = RowReader(self._tokenizer, add_bos=trained.get("add_bos"))
        self.tokenizer_folder = str(source)
        self.fingerprint = content_hash(
            "megatron_reward_model", self.precision, self.batch_size, *_files(path)
        )
        self._lock, self._closed = threading.Lock(), False
        self._not_before, self._why_not = 0.0, ""
        self._ranks = self._start(path)

    def _check(self) -> None:
        """Raise a `ValueError` for a setting that cannot be used."""
        sizes = (
            f"{kind}_parallel_size" for kind in ("tensor_model", "pipeline_model", "expert_model", "data")
        )
        for key in (*sizes, "batch_size", *(("threads",) if self.threads is not None else ())):
            _count(key, getattr(self, key))
        _one_of("precision", self.precision, _PRECISIONS)
        _one_of("accelerator", self.accelerator, _ACCELERATORS)

    def _start(self, path: Path) -> Ranks:
        settings = RankSettings(
            folder=str(path),
            store="",
            tensor_parallel_size=self.tensor_model_parallel_size,
            pipeline_parallel_size=self.pipeline_model_parallel_size,
            batch_size=self.batch_size,
            precision=self.precision,
            accelerator=self.accelerator,
            expert_parallel_size=self.expert_model_parallel_size,
        )
        threads = threads_of(self.threads, self.data_parallel_size * settings.ranks)
        settings = replace(settings, threads=threads)
        return Ranks(
            settings,
            num_copies=self.data_parallel_size,
            threads=threads.most,
            start_timeout=self.start_timeout,
        )

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """The reward of each response behind its prompt, an end token behind it."""
        rows = zip(prompts, responses, metadata, strict=True)
        return self._score([self._encode(prompt, response, row) for prompt, response, row in rows])

    def score_tokens(self, tokens: Tokens, lengths: Tokens) -> Sequence[Value]:
        """The reward of each sequence, read at its last token."""
        counts = lengths.reshape(-1).tolist()
        return self._score([row[:count].tolist() for row, count in zip(tokens, counts, strict=True)])

    def close(self) -> None:
        """End the ranks; those that score are ended by force."""
        self._closed = True
        idle = self._lock.acquire(blocking=False)
        self._ranks.end(at_once=not idle)
        if idle:
            self._lock.release()

    def _encode(self, prompt: str, response: str, row: Metadata) -> list[int]:
        """Token ids as `train_reward_model.py` makes them."""
        if "messages" in row and self._tokenizer.has_chat_template:
            chat: Metadata = {
                key: row[key] for key in ("messages", "tools", "chat_template_kwargs") if key in row
            }
            read = self._reader.prompt("the row", self._tokenizer.template.only_read(chat), "text")
            if not read.goes_on:  # else its messages have it
                response = row.get(PREFILLED, "") + response
        elif prompt:
            read = self._reader.prompt("the row", {"text": prompt}, "text")
        else:
            return list(self._reader.alone("the row", response))
        return [*read.token_ids, *self._reader.response("the response", read, response)]

    def _score(self, sequences: Sequence[list[int]]) -> list[Value]:
        problems = [_problem(sequence, self._arch) for sequence in sequences]
        places = [place for place, problem in enumerate(problems) if problem is None]
        rewards = dict(zip(places, self._rewards([sequences[place] for place in places]), strict=True))
        return [
            rewards[place] if problem is None else ScoreFailure(problem)
            for place, problem in enumerate(problems)
        ]

    def _rewards(self, sequences: Sequence[list[int]]) -> list[float]:
        """Share the sequences out; ranks that died are started again, and asked once more."""
        if not sequences:
            return []
        order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
        size = self.batch_size
        shares: list[list[int]] = [[] for _ in range(self.data_parallel_size)]
        for number, start in enumerate(range(0, len(order), size)):
            shares[number % self.data_parallel_size] += order[start : start + size]
        batches = [[sequences[place] for place in share] for share in shares]
        with self._lock:
            try:
                found = self._ask(batches)
            except ChildProcessError as error:
                if self._closed:
                    raise
                _logger.warning("judge: %s; its ranks are started again", error)
                found = self._ask(batches)
        rewards = dict(
            pair
            for share, values in zip(shares, found, strict=True)
            for pair in zip(share, values, strict=True)
        )
        return [rewards[place] for place in range(len(sequences))]

    def _ask(self, batches: list[list[list[int]]]) -> list[list[float]]:
        if self._closed:
            raise ChildProcessError("the judge was closed")
        if not self._ranks.are_running:
            self._start_again()
        return self._ranks.score(batches)

    def _start_again(self) -> None:
        """Start the ranks, unless that has just failed: rows of a call that fails come again one by one."""
        if time.monotonic() < self._not_before:
            raise ChildProcessError(self._why_not)
        try:
            self._ranks.start()
        except ChildProcessError as error:
            self._not_before = time.monotonic() + PAUSE_SECONDS
            self._why_not = f"the ranks of the reward model cannot be started again: {error}"
            raise ChildProcessError(self._why_not) from None


def _problem(sequence: Sequence[int], arch: Architecture) -> str | None:
    """Why a sequence cannot be scored, None if it can."""
    if not sequence:
        return "the row has no tokens"
    if len(sequence) > arch.max_positions:
        return f"the row has {len(sequence)} tokens, the reward model was made for {arch.max_positions}"
    if min(sequence) < 0 or max(sequence) >= arch.vocab_size:
        return f"a token id is outside of the reward model's vocabulary of {arch.vocab_size}"
    return None


def _files(folder: Path) -> list[Path]:
    """What decides the scores: weights, config and tokenizer."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _count(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"judge.kwargs.{key} is {value!r}: should be a whole number above 0")


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"judge.kwargs.{key} is {value!r}: should be {', '.join(allowed[:-1])} or {allowed[-1]}"
        )
