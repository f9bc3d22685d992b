"""What other settings would have kept of a run's rollouts: another selector, N, bar, or part of the score.

Nothing is sampled and nothing judged. The selectors are those of a run (`rs_aligner/selection`), shown the
groups of the ledger, step by step. With fewer rollouts a prompt than were recorded there are two ways:

- of a chain that looks at each rollout by itself and then takes the best k, the expectation over all choices
  of N of the n recorded rollouts, in closed form (`proof.estimates.kept_probability`);
- of any other, the n rollouts are cut by index into n / N parts of N, each part is a step that the selectors
  see, and the mean is taken over the parts.

The first part is what the very run would have sampled with N, since a rollout's seed comes from run, step,
prompt and index; the mean over all choices or parts is the better guess at a run with another seed.

Left out on purpose: what other weights would have sampled. A selection that trains on other rollouts makes
another policy, so of a step behind the first this is what would have been kept of what was there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from rs_aligner.record.ledger_row import LedgerRow, groups_of
from rs_aligner.report.alternative import PREFIX, Alternative
from rs_aligner.report.run_data import RunData
from rs_aligner.report.tally import Outcome, kept_of


def replay(run: RunData, steps: Sequence[int], alternatives: Sequence[Alternative]) -> list[Outcome]:
    """What each alternative would have kept of some steps.

    Args:
        run: of rejection sampling.
        steps: of its ledger, in order; the steps before the first are read, too, where a selector remembers.
        alternatives: what to try.

    Raises:
        ValueError: a step is not there, the ledger has fewer rollouts of a prompt than are asked for, or
            scores have no such component.
    """
    from rs_aligner.report.replayer import Replayer  # brings torch, by the selectors

    attempts = run.attempts()
    num_steps = max(attempts[-1].planned.get("steps", 1) if attempts else 1, *run.steps(), *steps)
    replayers = [Replayer(one, num_steps) for one in alternatives]
    before = [step for step in run.steps() if step < steps[0]]
    for step in before if any(one.remembers for one in replayers) else ():
        groups = groups_of(list(_sampled(run, step)))
        for replayer in replayers:
            replayer.see(groups, step, counts=False)
    for step in steps:
        groups = groups_of(list(_sampled(run, step)))
        for replayer in replayers:
            replayer.see(groups, step)
    return [replayer.outcome for replayer in replayers]


def recorded(run: RunData, steps: Sequence[int]) -> Outcome:
    """What the run itself kept of the same rollouts, from the ledger."""
    outcome = Outcome("as it was", how="the ledger")
    for step in steps:
        for _, found in groupby(_sampled(run, step), key=lambda row: row.group):
            rows = list(found)
            (group,) = groups_of(rows)
            outcome.num_rollouts = max(outcome.num_rollouts, len(rows))
            outcome.count(kept_of(group, group, [place for place, row in enumerate(rows) if row.kept]))
            outcome.explain(Counter(row.reason for row in rows if not row.kept))
    return outcome


def _sampled(run: RunData, step: int) -> Iterator[LedgerRow]:
    """What a step sampled, or read; rollouts of earlier steps that it trained on again are left out."""
    attempts = run.attempts()
    settings = attempts[-1].settings if attempts else {}
    is_all = (
        bool(settings.get(f"{PREFIX}offline")) or settings.get(f"{PREFIX}generation.sync_interval", 1) > 1
    )
    return (row for row in run.rows(step) if is_all or row.policy_version == step - 1)
