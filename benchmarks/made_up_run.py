"""A run's folder that nobody has run, of any size, written by the project's own writers from a seed.

    python benchmarks/made_up_run.py FOLDER [--steps 50] [--prompts 64] [--answers 32] [--seed 0]

What it has: chats and plain texts, two components of the score, a watched judge that parts from the judge,
judges' failures, answers cut at the limit, prompts that come again, held-out looks, a tokenizer whose tokens
spell the texts, and among the answers what could do harm in a page: tags, scripts, ends of scripts, odd
letters. Words and lengths are drawn; the scores rise over the steps. Nothing of it was learnt: it is there to
be looked at.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rs_aligner.files import make_folder
from rs_aligner.record.format import RunRecord
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.metrics import MetricsFile, step_metrics
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection.bars import Threshold, TopK
from rs_aligner.selection.base import Progress
from rs_aligner.selection.chain import Chain

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
_PLAIN = (
    *("the", "a", "and", "to", "of", "it", "was", "he", "she", "they", "in", "on", "with", "said", "had"),
    *("went", "saw", "big", "little", "red", "dog", "cat", "day", "sun"),
)
_ODD = [
    " naïve",
    " 東京",
    " 😀",
    " —",
    ". ",
    ", ",
    "\n\n",
    " 42",
    " =",
    " \\frac{1}{2}",
    " <b>",
    " &amp;",
    "'s",
    ' "',
]
_HOSTILE = (
    "<script>document.title='harmed'</script>",
    "<img src=x onerror=\"document.title='harmed'\">",
    "</script><script>document.title='harmed'</script>",
    "<!-- <script>",
    "javascript:alert(1) \u2028 \u2029 \u202e backwards",
)


class Words:
    """A vocabulary: control tokens, bytes, then words with the space before them."""

    def __init__(self, rng: np.random.Generator, size: int = 2000) -> None:
        letters = list("abcdefghilmnoprstuvwy")
        made = ("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(size))
        words = [f" {word}" for word in dict.fromkeys([*_PLAIN, *made])]
        self.texts = [*SPECIAL, *[""] * 256, *_ODD, *words]
        self._first = len(SPECIAL) + 256
        common = 1 / np.arange(3, len(self.texts) - self._first + 3)
        self._chances = np.cumsum(common / common.sum())

    def draw(self, rng: np.random.Generator, number: int) -> list[int]:
        """Ids of some words, common ones often."""
        found: list[int] = (self._first + np.searchsorted(self._chances, rng.random(number))).tolist()
        return found

    def text(self, ids: Sequence[int]) -> str:
        return "".join([self.texts[number] for number in ids])

    def spell(self, text: str) -> list[int]:
        """A text as tokens of a byte each."""
        return [len(SPECIAL) + byte for byte in text.encode()]

    def save(self, folder: Path) -> None:
        """As `tokenizer.json`, the way byte-level tokenizers are written."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        letters = {byte: chr(byte) for byte in printable}
        letters |= {byte: chr(0x100 + place) for place, byte in enumerate(others)}
        vocabulary = {letters[byte]: len(SPECIAL) + byte for byte in range(256)}
        for number in range(self._first, len(self.texts)):
            spelled = "".join(letters[byte] for byte in self.texts[number].encode())
            vocabulary[spelled] = number
        content = {
            "version": "1.0",
            "added_tokens": [
                {"id": number, "content": text, "special": True} for number, text in enumerate(SPECIAL)
            ],
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        }
        make_folder(folder)
        (folder / "tokenizer.json").write_text(json.dumps(content))


@dataclass(frozen=True)
class Size:
    """How large a run is: steps, prompts a step, answers a prompt, tokens at most; held-out looks' steps."""

    steps: int = 50
    prompts: int = 64
    answers: int = 32
    limit: int = 256
    held_out_interval: int = 10


class MadeUp:
    """Makes the groups of a run."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size, self.rng = size, np.random.default_rng(seed)
        self.words = Words(self.rng)
        self._prompts = [self._prompt(f"p{number}", number) for number in range(10 * size.prompts)]
        self._held_out = [self._prompt(f"h{number}", number) for number in range(size.prompts)]

    def step(self, step: int) -> list[Group]:
        """The groups of a step; prompts come again after ten."""
        first = (step - 1) % 10 * self.size.prompts
        chosen = self._prompts[first : first + self.size.prompts]
        return [
            self._group(place, prompt, step - 1, self.size.answers) for place, prompt in enumerate(chosen)
        ]

    def held_out(self, step: int) -> list[Group]:
        """The answers to held-out prompts behind a step."""
        return [self._group(place, prompt, step, 2) for place, prompt in enumerate(self._held_out)]

    def _prompt(self, name: str, row: int) -> Prompt:
        ids = self.words.draw(self.rng, int(self.rng.integers(8, 60)))
        said = self.words.text(ids)
        if row % 2:
            return Prompt(name, said, tuple(ids), {"id": name, "text": said, "level": row % 5}, row=row)
        system = self.words.draw(self.rng, 12)
        turns = [("system", self.words.text(system)), ("user", said)]
        chat: dict[str, Any] = {
            "id": name,
            "messages": [{"role": role, "content": text} for role, text in turns],
            "answer": str(row),
        }
        tokens = (*system, 1, *ids, 0, 2)
        return Prompt(name, self.words.text(tokens), tokens, chat, row=row)

    def _group(self, place: int, prompt: Prompt, version: int, number: int) -> Group:
        group = Group(prompt, [], [], [])
        skill = 0.2 + 0.5 * version / max(1, self.size.steps) + 0.3 * math.sin(prompt.row)
        for index in range(number):
            rollout = self._rollout(place, index, version)
            group.rollouts.append(rollout)
            score = self._score(rollout, skill)
            group.scores.append(score)
            group.watched.append(self._watched(score))
        return group

    def _rollout(self, place: int, index: int, version: int) -> Rollout:
        rng, limit = self.rng, self.size.limit
        length = int(min(limit, rng.lognormal(4.6, 0.55) + 1))
        ids = self.words.draw(rng, length)
        text = self.words.text(ids)
        if rng.random() < 0.02:
            hostile = _HOSTILE[int(rng.integers(len(_HOSTILE)))]
            ids, text = [*self.words.spell(hostile), *ids], hostile + text
        is_ended = length < limit
        tokens = (*ids, 0) if is_ended else tuple(ids)
        log_probs = np.float32(-rng.exponential(0.9, len(tokens)) * (rng.random(len(tokens)) < 0.7)).tolist()
        ending: Any = "stop" if is_ended else "length"
        seed = int(rng.integers(1 << 62))
        return Rollout(place, index, tokens, text, ending, version, seed, tuple(log_probs))

    def _score(self, rollout: Rollout, skill: float) -> Score | ScoreFailure:
        if self.rng.random() < 0.01:
            return ScoreFailure("no answer in 30 s from http://judge:8000")
        correct = float(self.rng.random() < skill)
        form = round(float(self.rng.normal(0, 0.2)), 4)
        judge = "0123456789abcdef"
        return Score(round(correct + form, 6), {"correct": correct, "form": form}, judge, "float32")

    def _watched(self, score: Score | ScoreFailure) -> Score | ScoreFailure:
        if isinstance(score, ScoreFailure) or self.rng.random() < 0.005:
            return ScoreFailure("the watched judge gave no number")
        return Score(round(0.8 * score.reward + float(self.rng.normal(0, 0.15)), 6))


def make_run(folder: Path, size: Size = Size(), *, seed: int = 0) -> None:
    """Write a run's folder: `run.json`, figures, ledger and the tokenizer of `final/`.

    Args:
        folder: it is made.
        size: of the run.
        seed: of all that is drawn.
    """
    for _ in grow_run(folder, size, seed=seed):
        pass


def grow_run(folder: Path, size: Size, *, seed: int = 0) -> Iterator[int]:
    """The same, step by step: yields the step that is written, 0 for what comes before the first."""
    made = MadeUp(size, seed)
    make_folder(folder / "rollouts")
    RunRecord("train_rs", attempts=1).write(folder)
    made.words.save(folder / "final")
    ledger, chain = Ledger(folder / "rollouts", made_by="made-up"), Chain([Threshold(0.3), TopK(4)])
    with MetricsFile(folder / "metrics.jsonl") as metrics:
        metrics.append({"step": 0, **_look(ledger, made, 0)})
        yield 0
        for step in range(1, size.steps + 1):
            groups = made.step(step)
            selection = chain.select(groups, Progress(step, size.steps))
            ledger.append(step, groups, selection)
            is_due = step % size.held_out_interval == 0 or step == size.steps
            look = _look(ledger, made, step) if is_due else {}
            metrics.append({"step": step, **step_metrics(groups, selection), **_trained(step, size), **look})
            yield step


def _look(ledger: Ledger, made: MadeUp, step: int) -> dict[str, float]:
    groups = made.held_out(step)
    ledger.append_held_out(step, groups)
    scores = [score.reward for group in groups for score in group.scores if isinstance(score, Score)]
    return {"validation/reward": sum(scores) / len(scores)}


def _trained(step: int, size: Size) -> dict[str, float]:
    """Figures as training makes them; made up, as all here."""
    done = step / size.steps
    return {
        "policy_version": step,
        "loss": 1.2 - 0.4 * done,
        "grad_norm": 1.0 + 0.2 * math.sin(step),
        "lr": 1e-5 * (1 - done),
        "consumed_prompts": step * size.prompts,
        "time/weights": 0.0,
        "time/generate": 8.0,
        "time/score_wait": 1.5,
        "time/train": 4.0,
        "time/step": 13.5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    for name in ("steps", "prompts", "answers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_run(args.folder, Size(args.steps, args.prompts, args.answers), seed=args.seed)
    print(f"{args.folder}: {args.steps * args.prompts * args.answers} rollouts")


if __name__ == "__main__":
    main()
