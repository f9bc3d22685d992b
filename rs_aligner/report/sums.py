"""What a page says of all rollouts of a run, summed up over the ledger a file at a time.

The sums lie in `report/sums.json` with the name, size and time of each file that is in them, so that a run
that goes on reads no step twice for its page. Where one of these files is another one by now, or is gone,
since a continued run made the step anew, all is summed up again. What is kept does not grow with the number
of rollouts: counts, at most `MOST_POINTS` points, the ends of the list of prompts, and a mean for each
held-out prompt.

Left out on purpose: what can be read from `metrics.jsonl`, and words.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

import msgspec
import xxhash

from rs_aligner.files import make_folder, write_whole
from rs_aligner.record.ledger import names_in, number_of, step_name
from rs_aligner.report.disagreement import Disagreements
from rs_aligner.report.histogram import Histogram
from rs_aligner.report.prompt_list import ListEnd, SeenPrompt
from rs_aligner.report.run_data import RunData
from rs_aligner.report.summed_row import SUMMED_ROWS, SUMS_FILE, SummedRow, shown

FORMAT = 1  # raise it when the sums become others
MOST_POINTS = 2000


class File(msgspec.Struct, array_like=True, frozen=True):
    """A file of the ledger as it was when it was read."""

    name: str
    size: int
    time: int


class Point(msgspec.Struct, array_like=True, order=True, frozen=True):
    """A rollout of the sample: drawn by `rank`, which is random."""

    rank: int
    score: float
    length: int
    kept: bool


class HeldOutPrompt(msgspec.Struct, array_like=True, frozen=True):
    """A held-out prompt in a look: the judge's mean score, and the watched judge's."""

    id: str
    mean: float | None
    watched: float | None


class Look(msgspec.Struct):
    """A look at held-out prompts behind a step."""

    step: int
    prompts: list[HeldOutPrompt]


class Sums(msgspec.Struct):
    """What is summed up.

    Attributes:
        made_for: what the sums depend on besides the files.
        files: that are in them, in the order of the run.
        damaged: files that could not be read, with why.
        rollouts, failed, tokens, truncated: of the rollouts that steps sampled themselves.
        watched: how many of these, and of the held-out answers, the watched judge was asked for.
        held_out: held-out answers of all looks.
        scores, kept_scores: of what steps sampled by design, and of all that was kept.
        lengths: in tokens, of what steps sampled by design.
        tries: rollouts of a prompt in a step.
        pass_rates: of the prompts of steps: none passed, up to a tenth, up to two tenths, ..., below one,
            all.
        points: a sample of all scored rollouts, without bias.
        hardest, easiest: prompts, by the mean score that they had last.
        disagreements: pairs of rollouts that the two judges order otherwise.
        first, last: looks at held-out prompts.
    """

    made_for: str = ""
    files: list[File] = msgspec.field(default_factory=list)
    damaged: list[str] = msgspec.field(default_factory=list)
    rollouts: int = 0
    failed: int = 0
    tokens: int = 0
    truncated: int = 0
    watched: int = 0
    held_out: int = 0
    scores: Histogram = msgspec.field(default_factory=Histogram)
    kept_scores: Histogram = msgspec.field(default_factory=Histogram)
    lengths: Histogram = msgspec.field(default_factory=Histogram)
    tries: dict[int, int] = msgspec.field(default_factory=dict)
    pass_rates: list[int] = msgspec.field(default_factory=lambda: [0] * 12)
    points: list[Point] = msgspec.field(default_factory=list)
    hardest: list[SeenPrompt] = msgspec.field(default_factory=list)
    easiest: list[SeenPrompt] = msgspec.field(default_factory=list)
    disagreements: Disagreements = msgspec.field(default_factory=Disagreements)
    first: Look | None = None
    last: Look | None = None


class Summing:
    """Adds files of a run's ledger to its sums.

    Args:
        sums: so far; they are changed.
        passed_above: a rollout has passed if its score is above this.
        offline_steps: how many steps take the same rollouts, where a rollout's version does not tell which
            step it is of: the run did not sample it, or its servers were behind. Else 0.
    """

    def __init__(self, sums: Sums, *, passed_above: float = 0.0, offline_steps: int = 0) -> None:
        self.sums, self._passed_above, self._offline_steps = sums, passed_above, offline_steps
        self._hardest, self._easiest = ListEnd(sums.hardest, 1), ListEnd(sums.easiest, -1)
        self._points = [(-point.rank, point) for point in sums.points]
        heapq.heapify(self._points)

    def add_step(self, step: int, rows: Iterable[SummedRow]) -> None:
        """Add the rollouts of a step, in (prompt, rollout) order."""
        for _, group in itertools.groupby(rows, key=lambda row: row.group):
            self._add_group(step, list(group))

    def add_held_out(self, step: int, rows: Iterable[SummedRow]) -> None:
        """Add a look at held-out prompts behind a step."""
        prompts = []
        for _, rollouts in itertools.groupby(rows, key=lambda row: row.group):
            group = list(rollouts)
            self.sums.held_out += len(group)
            self.sums.watched += sum(row.is_watched for row in group)
            mean = _mean(row.reward for row in group)
            prompts.append(
                HeldOutPrompt(shown(group[0].prompt_id), mean, _mean(row.watched for row in group))
            )
        look = Look(step, prompts)
        self.sums.first, self.sums.last = self.sums.first or look, look

    def settle(self) -> Sums:
        """The sums with all that was added."""
        sums = self.sums
        sums.points = sorted(point for _, point in self._points)
        sums.hardest, sums.easiest = self._hardest.first(), self._easiest.first()
        return sums

    def _add_group(self, step: int, group: list[SummedRow]) -> None:
        sums = self.sums
        for row in group:
            if row.kept and row.reward is not None:
                sums.kept_scores.add(row.reward)
        sampled = [row for row in group if self._is_new(step, row)]
        if not sampled:
            return  # an earlier step sampled these
        sums.tries[len(sampled)] = sums.tries.get(len(sampled), 0) + 1
        for row in sampled:
            self._add_rollout(step, row)
        scored = [row for row in sampled if row.by_design and row.reward is not None]
        if scored:
            self._add_prompt(step, scored)
        sums.disagreements.look(step, sampled)

    def _is_new(self, step: int, row: SummedRow) -> bool:
        """Whether no earlier step had this rollout."""
        if self._offline_steps:
            return (step - 1) % self._offline_steps == 0
        return row.policy_version >= step - 1

    def _add_rollout(self, step: int, row: SummedRow) -> None:
        sums, length = self.sums, len(row.token_ids)
        sums.rollouts += 1
        sums.tokens += length
        sums.truncated += row.finish_reason == "length"
        sums.watched += row.is_watched
        if row.by_design:
            sums.lengths.add(length)
        if row.reward is None:
            sums.failed += 1
            return
        if row.by_design:
            sums.scores.add(row.reward)
        place = f"{step} {row.group} {row.index}"
        rank = xxhash.xxh3_64_intdigest(place.encode()) >> 1  # 63 bits, which fit into a signed number
        if len(self._points) < MOST_POINTS or -rank > self._points[0][0]:
            point = (-rank, Point(rank, row.reward, length, row.kept))
            (heapq.heappushpop if len(self._points) == MOST_POINTS else heapq.heappush)(self._points, point)

    def _add_prompt(self, step: int, scored: list[SummedRow]) -> None:
        rewards = [row.reward for row in scored if row.reward is not None]
        passed = sum(reward > self._passed_above for reward in rewards)
        self.sums.pass_rates[pass_class(passed, len(rewards))] += 1
        mean, first, name = fmean(rewards), scored[0], shown(scored[0].prompt_id)
        for end in (self._hardest, self._easiest):
            end.forget(name)  # what it was before counts no more
            if end.may_have(mean):
                end.add(SeenPrompt(name, step, shown(first.prompt), mean, max(rewards), len(rewards)))


def pass_class(passed: int, number: int) -> int:
    """Which of the 12 counts of pass rates: 0 none, 1 to 10 for up to k tenths (and not all), 11 all."""
    if passed == number:
        return 11
    return -(-10 * passed // number)  # rounded up


def summed(run: RunData, *, passed_above: float = 0.0, offline_steps: int = 0) -> Sums:
    """The sums of a run as it is now; `sums.json` has them afterwards.

    Args:
        run: of rejection sampling.
        passed_above, offline_steps: as of `Summing`.
    """
    made_for = f"{FORMAT} {passed_above} {offline_steps}"
    known = _known(run.folder / "report" / SUMS_FILE)
    unreadable: dict[str, str] = {}
    while True:
        files = [file for file in ledger_files(run) if file.name not in unreadable]
        sums = known if known is not None and known.made_for == made_for else Sums(made_for)
        if files[: len(sums.files)] != sums.files:
            sums = Sums(made_for)
        added = files[len(sums.files) :]
        problem = _add(run, Summing(sums, passed_above=passed_above, offline_steps=offline_steps), added)
        if problem is None:
            break
        unreadable.update(problem)
        known = None  # half of a file is in it
    sums.damaged = list(unreadable.values())
    if added:
        make_folder(run.folder / "report")
        write_whole(run.folder / "report" / SUMS_FILE, [msgspec.json.encode(sums)])
    return sums


def ledger_files(run: RunData) -> list[File]:
    """The files of a run's ledger as they are now, in the order in which a run makes them."""
    found = []
    folder = run.folder / "rollouts"
    for name in names_in(folder, ".jsonl"):
        try:
            about = (folder / f"{name}.jsonl").stat()
        except FileNotFoundError:  # gone meanwhile
            continue
        found.append(File(name, about.st_size, about.st_mtime_ns))
    return found


def _add(run: RunData, summing: Summing, files: list[File]) -> dict[str, str] | None:
    """Add these files; a file that cannot be read, with why."""
    for file in files:
        number = number_of(file.name)
        rows: Iterator[SummedRow] = run.rows_as(file.name, SUMMED_ROWS)
        try:
            if file.name == step_name(number):
                summing.add_step(number, rows)
            else:
                summing.add_held_out(number, rows)
        except ValueError as error:
            return {file.name: str(error)}
        summing.sums.files.append(file)
    summing.settle()
    return None


def _known(path: Path) -> Sums | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sums)
    except (OSError, ValueError):  # none, or of another version: made anew
        return None


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
