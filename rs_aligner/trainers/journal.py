"""The ledger as the loop knows it, on every rank: what earlier starts left, open steps, and what is written.

A start that continues finds behind its checkpoint steps that are selected already, and perhaps one that is
open. Nothing of either is sampled or judged again: a step samples as it always does, and what is there
already is left out of the request (`OpenRollouts`). So a selected step comes to the same candidates and the
same selection, and is trained again. The first rank reads, and the others get it from there.

Left out on purpose: what may be changed between two starts. A rollout is taken back if it was made under the
same settings (`made_by`), for the same prompt, from the seed and by the version that it would be sampled from
now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import uuid4

from rs_aligner.record.lease import LeaseLost
from rs_aligner.record.ledger import Ledger, held_out_name, number_of, step_name
from rs_aligner.record.ledger_row import Judged, LedgerRow, Stamp, row_of
from rs_aligner.record.leftovers import Leftovers
from rs_aligner.record.open_step import OpenStep
from rs_aligner.record.run import Run
from rs_aligner.record.sinks import Sampled
from rs_aligner.rollout import Group, Prompt, Score
from rs_aligner.sample_request import SampleRequest
from rs_aligner.selection import Selection
from rs_aligner.trainers.protocols import Samples

_logger = logging.getLogger("rs_aligner")

Found = TypeVar("Found")
NOWHERE = Stamp(0)


@dataclass(frozen=True, slots=True)
class OpenRollouts:
    """A step that is not selected yet, or a look at held-out prompts, as this rank sees it.

    Attributes:
        stamp: of its rows.
        there: what earlier starts left of it, by (group, index).
        file: this replica's; None where this rank does not speak for a replica.
    """

    stamp: Stamp = NOWHERE
    there: Mapping[tuple[int, int], LedgerRow] = field(default_factory=dict)
    file: OpenStep | None = None

    def known(self, request: SampleRequest) -> dict[tuple[int, int], Judged]:
        """What is there of a request: rollouts of the same prompts, by their places in the request."""
        found = {}
        for place, prompt in enumerate(request.prompts) if self.there else ():
            for index in request.indices:
                row = self.there.get((request.number(place), index))
                if row is not None and row.prompt_token_ids == prompt.token_ids:
                    rollout = replace(row.as_rollout, group=place, by_design=True)
                    found[place, index] = Judged(rollout, row.score, row.watched_score)
        return found

    def write(self, prompt: Prompt, number: int, judged: Judged) -> None:
        """Write down a rollout of the step's prompt of this number, if it has a score."""
        if self.file is not None and isinstance(judged.score, Score):
            numbered = judged._replace(rollout=replace(judged.rollout, group=number))
            self.file.append(row_of(prompt, numbered, self.stamp, is_short=False))

    def settle(self) -> OSError | LeaseLost | None:
        """See to it that all of it is on the disk; returns why it is not, for all ranks to raise."""
        try:
            if self.file is not None:
                self.file.settle()
        except (OSError, LeaseLost) as error:
            return error
        return None


class Journal:
    """What a run writes of its steps, and what earlier starts wrote.

    Args:
        policy: whose ranks and replicas they are.
        run: the run's folder.
        speaks: whether this rank asks the judges of its replica.
        watches: whether a watched judge is asked, too, as far as this rank knows.
    """

    def __init__(self, policy: Samples, run: Run, *, speaks: bool, watches: bool) -> None:
        self._policy, self._run, self._speaks, self._watches = policy, run, speaks, watches
        self.ledger: Ledger | None = None  # on the first rank
        self._left: Leftovers | None = None  # there, too
        self._names: frozenset[str] = frozenset()  # what earlier starts left something of
        self._whole: frozenset[str] = frozenset()  # of these, what is selected, or measured
        self._replica = 0

    def begin(self, saved: int) -> None:
        """Open the run's folder behind a checkpoint (-1: there is none); a collective."""
        self._left = self._run.open(saved)
        me = uuid4().hex
        left = self._left
        mine = (me, self._watches, None if left is None else (left.names, left.whole))
        everyone = self._policy.gather(mine)
        self._replica = next((place for place, (other, *_) in enumerate(everyone) if other == me), 0)
        self._watches = any(watches for _, watches, _ in everyone)
        self._names, self._whole = next(found for *_, found in everyone if found is not None)
        if left is not None:
            self.ledger = left.ledger
            left.tell()

    def open_step(self, step: int) -> OpenRollouts:
        """A step that begins to sample; a collective."""
        return self._open(step_name(step), step)

    def open_held_out(self, step: int) -> OpenRollouts:
        """A look at held-out prompts behind a step; a collective."""
        return self._open(held_out_name(step), step)

    def is_trained_again(self, step: int) -> bool:
        """Whether an earlier start has selected this step."""
        return step_name(step) in self._whole

    def selected(
        self, step: int, groups: Sequence[Group], selection: Selection, *, everything: bool = False
    ) -> None:
        """Write a step down, or see that an earlier start selected the same of it; a collective then.

        Args:
            step, groups, selection, everything: as of `Ledger.append`.

        Raises:
            ValueError: another selection was made then, and `Run.selects_anew` does not allow it; every rank
                raises it.
        """
        if self.is_trained_again(step):
            ledger = self.ledger
            different = self._from_first(
                lambda: ledger and ledger.difference(step, groups, selection, everything=everything)
            )
            if not different:
                return
            if not self._run.selects_anew:
                raise ValueError(
                    f"{different}. Step {step} was trained on that and is trained again now; go on with the "
                    "settings of then, or start anew in another exp_manager.explicit_log_dir"
                )
            if self._run.is_first:
                _logger.warning("%s: step %d is selected anew, and so is all behind it", different, step)
            self.forget_from(step)
        if self.ledger is not None:
            self._run.check_owner()
            self.ledger.append(step, groups, selection, everything=everything)

    def measured(self, step: int, groups: Sequence[Group], *, anew: bool) -> None:
        """Write down the answers to held-out prompts behind a step, unless all of them were there."""
        self._run.sampled(step, Sampled(groups))
        if self.ledger is not None and (anew or held_out_name(step) not in self._whole):
            self._run.check_owner()
            self.ledger.append_held_out(step, groups)

    def sampled_anew(self, step: int) -> None:
        """Note that a step sampled something; what is there of it and behind it is of another policy then."""
        if self.is_trained_again(step):
            if self._run.is_first:
                _logger.warning("step %d was sampled under other settings: it is made anew from there", step)
            self.forget_from(step)

    def forget_from(self, step: int) -> None:
        """Forget what earlier starts left of this step and of all behind it."""
        if self._left is not None:
            self._run.forget_from(step)
            self._left.forget_from(step)
        self._names = frozenset(name for name in self._names if number_of(name) < step)
        self._whole = frozenset(name for name in self._whole if number_of(name) < step)

    def everywhere(self, read: Callable[[Ledger], Found]) -> Found:
        """What the first rank reads from the ledger, on every rank; a collective.

        Raises:
            ValueError: it cannot be read; every rank raises it.
        """
        ledger = self.ledger
        found = self._from_first(lambda: None if ledger is None else read(ledger))
        assert found is not None
        return found

    def _open(self, name: str, step: int) -> OpenRollouts:
        rows: list[LedgerRow] = []
        if name in self._names:
            left = self._left
            rows = self._from_first(lambda: [] if left is None else left.rows(name)) or []
        if self._watches:
            rows = [row for row in rows if row.watched_score is not None]
        else:
            rows = [replace(row, watched=None, watched_failure=None) for row in rows]
        if rows and name not in self._whole and self._run.is_first:
            what = name.replace("_", " ")
            _logger.info(
                "%s: %d rollouts that were scored by an earlier start are taken back", what, len(rows)
            )
        folder = self._run.rollouts / f"{name}.open"
        return OpenRollouts(
            Stamp(step, self._run.fingerprint),
            {(row.group, row.index): row for row in rows},
            OpenStep(folder, self._replica, self._run.check_owner) if self._speaks else None,
        )

    def _from_first(self, read: Callable[[], Found]) -> Found:
        """What it returns on the first rank; a ValueError of that rank is raised on all."""
        mine: tuple[Found | None, str | None] | None = None
        if self._run.is_first:
            try:
                mine = read(), None
            except ValueError as error:
                mine = None, str(error)
        found, problem = next(item for item in self._policy.gather(mine) if item is not None)
        if problem is not None:
            raise ValueError(problem)
        return found
