"""What earlier starts left behind the checkpoint that a run continues from: selected steps, and open ones.

A selected step is trained again from its file, and a look at held-out prompts measured again from its own; of
an open one, and of a step whose judge failed too much, the scored rollouts are taken back. What cannot be
used goes: rows made under other settings, and what is behind a step that has to be made anew, since it would
be of a policy that never was. A file that is not as it was written is named and set aside.
"""

from __future__ import annotations

import logging

from rs_aligner.record.attempts import sampled_alike
from rs_aligner.record.ledger import Ledger, held_out_name, number_of, step_name
from rs_aligner.record.ledger_row import NOT_TRAINED, KeptRow, LedgerRow
from rs_aligner.record.open_step import read_open

_logger = logging.getLogger("rs_aligner")


class Leftovers:
    """What there is behind a checkpoint. Making one takes away what cannot be used.

    Args:
        ledger: of the run.
        saved: the checkpoint's step; -1 for none.

    Attributes:
        names: of what something is left of (`step_name`, `held_out_name`).
        whole: of these, what is selected, or measured.
        last_step: the last of the steps that are trained again, which follow the checkpoint without a gap;
            `saved` where there is none.
    """

    def __init__(self, ledger: Ledger, saved: int) -> None:
        self.ledger, self.last_step, self._saved = ledger, saved, saved
        self.names: frozenset[str] = frozenset()
        self.whole: frozenset[str] = frozenset()
        for name in ledger.names():
            if number_of(name) <= saved and name != held_out_name(saved):
                ledger.close(name)  # in the checkpoint, whatever came of it
            elif self._is_reached(name):
                self._look_at(name)
            else:
                _logger.warning("%s is behind a step that is made anew, and goes", ledger.path(name))
                ledger.forget(name)

    @property
    def last_row(self) -> int:
        """The last step whose row of metrics is of what is here."""
        if self.last_step < 0 and held_out_name(0) in self.whole:
            return 0
        return self.last_step

    def rows(self, name: str) -> list[LedgerRow]:
        """What may be taken back: all that a selected step sampled, or what is scored of another one.

        Raises:
            ValueError: a file is not as it was written (file and line named).
        """
        step = number_of(name)
        version = step - 1 if name == step_name(step) else step
        path = self.ledger.path(name)
        written = self.ledger.read_named(name) if path.exists() else []
        if name not in self.whole:
            written = [
                row for row in (*written, *read_open(self.ledger.open_path(name))) if row.failure is None
            ]
        if name == step_name(step):  # servers may have been behind; a bank's are older still
            version = min(version, max((row.policy_version for row in written), default=version))
        return [row for row in written if row.policy_version == version and self._may_use(row, name)]

    def tell(self) -> None:
        """Say in the log how much that is."""
        again = sorted(number_of(name) for name in self.whole if name == step_name(number_of(name)))
        if again:
            which = f"step {again[0]} is" if len(again) == 1 else f"steps {again[0]} to {again[-1]} are"
            _logger.info(
                "%s trained again from the ledger: nothing of that is sampled or judged again", which
            )

    def forget_from(self, step: int) -> None:
        """Forget what is behind the selection of this step."""
        for name in self.names:
            if number_of(name) > step or name == held_out_name(step):
                self.ledger.forget(name)

    def _may_use(self, row: LedgerRow | KeptRow, name: str) -> bool:
        """Whether a rollout was sampled as it would be now.

        What comes first behind the checkpoint was sampled by the weights in it, whatever the start of then
        was going to learn; what comes later, by what it had learnt meanwhile.
        """
        saved = max(self._saved, 0)
        if name in (step_name(saved + 1), held_out_name(saved)):
            return sampled_alike(row.made_by, self.ledger.made_by)
        return row.made_by == self.ledger.made_by

    def _is_reached(self, name: str) -> bool:
        """Whether all before it is here, so that it is of a policy that the run comes to."""
        last, number = max(self.last_step, 0), number_of(name)
        return number == last + 1 if name == step_name(number) else number <= last

    def _look_at(self, name: str) -> None:
        if self._is_whole(name):
            self.ledger.close(name)
            self.whole |= {name}
            if name == step_name(number_of(name)):
                self.last_step = number_of(name)
        if self.ledger.path(name).exists() or self.ledger.open_path(name).exists():
            self.names |= {name}

    def _is_whole(self, name: str) -> bool:
        path = self.ledger.path(name)
        if not path.exists():
            return False
        try:
            rows = self.ledger.glance(name)
        except ValueError as error:
            aside = self.ledger.set_aside(name)
            _logger.warning("%s; the file is set aside as %s, and made anew", error, aside.name)
            return False
        if not all(self._may_use(row, name) for row in rows):
            _logger.warning("%s was made under other settings, and goes", path)
            path.unlink()
            return False
        if any(row.made_by != self.ledger.made_by for row in rows):
            return False  # other settings train on it, and perhaps on other rows of it
        return all(row.reason != NOT_TRAINED for row in rows)
