"""Each term's loss and figures on one micro-batch: which rows it is for, and what figures are divided by.

What the losses are is in `tests/test_loss.py` and `tests/test_objective_losses.py`, and that layouts add up
to the same in `tests/policy/test_objective_layouts.py`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rs_aligner.config import ObjectiveConfig
from rs_aligner.loss import clipped_surrogate, kl_to_reference, masked_nll
from rs_aligner.objective.terms import TERMS, Inputs, Logits, Share, Term, terms_of
from rs_aligner.rollout import TrainingRow

NAN = math.nan
LOG_PROBS = torch.tensor([[-1.0, -2.0, NAN], [-0.5, -0.2, -3.0]])
MASK = torch.tensor([[True, True, False], [True, True, True]])
SAMPLED = torch.tensor([[NAN, NAN, NAN], [-1.0, -0.2, -2.0]])
REFERENCE = torch.tensor([[-1.5, -2.0, NAN], [NAN, NAN, NAN]])
WEIGHTS = torch.tensor([1.5, -0.5])
ROWS = [
    TrainingRow((1,), (2, 3), 1.5, reference_log_probs=(-1.5, -2.0)),
    TrainingRow((1,), (2, 3, 4), -0.5, sampled_log_probs=(-1.0, -0.2, -2.0)),
    TrainingRow((1,), (2, 3, 4), 2.0, sampled_log_probs=(-1.0, -0.2, -2.0)),  # in another micro-batch
]
OBJECTIVE = ObjectiveConfig(advantage="group", clip=0.2, kl=0.3)


def shares(objective: ObjectiveConfig = OBJECTIVE, **changes: Any) -> list[Share]:
    terms = terms_of(objective)
    counts = {name: count for term in terms for name, count in term.counts(ROWS).items()}
    given: dict[str, Any] = {
        "weights": WEIGHTS,
        "sampled_log_probs": SAMPLED,
        "reference_log_probs": REFERENCE,
        **changes,
    }
    return [term.share(Inputs(LOG_PROBS, MASK, 3, "sequence", counts, **given)) for term in terms]


def test_each_row_is_learnt_by_what_it_brings() -> None:
    nll, clipped, kl = shares()
    only_first, only_second = MASK.clone(), MASK.clone()
    only_first[1], only_second[0] = False, False
    assert nll.loss == masked_nll(LOG_PROBS, only_first, 3, weights=WEIGHTS)
    surrogate = clipped_surrogate(LOG_PROBS, SAMPLED, WEIGHTS, only_second, 3, clip_low=0.2, clip_high=0.2)
    assert clipped.loss == surrogate
    assert kl.loss == 0.3 * kl_to_reference(LOG_PROBS, REFERENCE, only_first, 3)


def test_figures_are_divided_by_what_the_whole_global_batch_has() -> None:
    _, clipped, kl = shares()
    # Row 1 has a negative weight: clipped where its ratio is below 0.8, which exp(-3 + 2) is.
    assert clipped.figures == {"clip_fraction": pytest.approx(1 / 6)}
    assert kl.figures == {"kl": pytest.approx((math.exp(-0.5) + 0.5 - 1) / 2)}


def test_a_term_adds_nothing_where_no_row_is_for_it() -> None:
    nll, clipped, kl = shares(sampled_log_probs=None, reference_log_probs=None)
    assert nll.loss == masked_nll(LOG_PROBS, MASK, 3, weights=WEIGHTS)
    assert clipped == kl == Share()


def test_a_reference_without_a_weight_is_only_measured() -> None:
    _, _, kl = shares(ObjectiveConfig(advantage="group", clip=0.2))
    assert kl.loss is None
    assert set(kl.figures) == {"kl"}


def test_rows_with_ratios_need_bounds() -> None:
    with pytest.raises(ValueError, match=r"set model\.rs\.objective\.clip"):
        shares(ObjectiveConfig())


def test_a_further_term_is_a_line_and_may_play_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Term):
        needs_logits = True

    assert not any(term.needs_logits for term in terms_of(OBJECTIVE))
    monkeypatch.setattr("rs_aligner.objective.terms.TERMS", [*TERMS, lambda o: Mine() if o.kl else None])
    assert isinstance(terms_of(OBJECTIVE)[-1], Mine)
    assert len(terms_of(ObjectiveConfig())) == 3


def test_logits_of_one_rank_are_those_of_plain_torch() -> None:
    """Far from 0, where an exponential without the maximum would be infinite."""
    columns = (100 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))).requires_grad_()
    logits = Logits(columns)
    assert torch.allclose(logits.log_softmax(), columns.log_softmax(-1), atol=1e-4)
    assert torch.allclose(logits.total(columns), columns.sum(-1), atol=1e-4)
