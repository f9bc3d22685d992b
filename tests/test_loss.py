"""The response mask and the masked loss, against oracles written as plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rs_aligner.loss import masked_nll, response_mask


def mask_of(prompts: list[int], sequences: list[int], max_length: int) -> Tensor:
    return response_mask(torch.tensor(prompts), torch.tensor(sequences), max_length)


@st.composite
def lengths(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    rows = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=5))
    sequences = [prompt + response for prompt, response in rows]
    return [prompt for prompt, _ in rows], sequences, max(sequences) + draw(st.integers(0, 4))


@given(lengths())
def test_mask_is_true_exactly_where_a_response_token_is_predicted(case):
    prompts, sequences, max_length = case
    expected = [
        [prompt <= position + 1 < sequence for position in range(max_length - 1)]
        for prompt, sequence in zip(prompts, sequences, strict=True)
    ]
    mask = mask_of(prompts, sequences, max_length)
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected
    assert mask.sum(1).tolist() == [s - p for p, s in zip(prompts, sequences, strict=True)]


def test_mask_covers_the_ending_token_and_nothing_after_it():
    # Tokens: two of the prompt, three of the response (the third ends it), two of padding.
    assert mask_of([2], [5], 7).tolist() == [[False, True, True, True, False, False]]


@pytest.mark.parametrize("end_id", [0, 2, 128001])
def test_a_batch_padded_with_its_end_token_trains_as_its_rows_do_alone(end_id):
    """Upstream pads with the end token and masks by its id; here only lengths decide."""
    torch.manual_seed(0)
    prompts, rows = [2, 3], [[7, 8, 9, 5, end_id], [6, end_id, 5, end_id]]
    model = torch.nn.Sequential(torch.nn.Embedding(128002, 4), torch.nn.Linear(4, 128002))

    def log_probs(tokens: Tensor) -> Tensor:
        return model(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)

    alone = sum(
        -log_probs(torch.tensor([row]))[0, prompt - 1 :].mean() / 2
        for prompt, row in zip(prompts, rows, strict=True)
    )
    padded = torch.tensor([row + [end_id] * (8 - len(row)) for row in rows])
    loss = masked_nll(log_probs(padded), mask_of(prompts, [len(row) for row in rows], 8), 2)
    torch.testing.assert_close(loss, alone)
    weights = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, weights), torch.autograd.grad(alone, weights))


@pytest.mark.parametrize(
    ("prompts", "sequences", "max_length", "message"),
    [
        ([1, 0], [3, 3], 4, "row 1 has a prompt length below 1"),
        ([3], [2], 4, "row 0 has a sequence length below its prompt length"),
        ([1], [5], 4, "row 0 has a sequence length above max_length 4"),
        ([1, 1], [3], 4, "must both be"),
        ([[1]], [[2]], 4, "must both be"),
        ([1.0], [2.0], 4, "must be integers"),
    ],
)
def test_mask_refuses_lengths_that_do_not_fit(prompts, sequences, max_length, message):
    with pytest.raises(ValueError, match=message):
        mask_of(prompts, sequences, max_length)


def test_mask_refuses_a_row_without_room_for_a_token():
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        response_mask(torch.ones(0, dtype=torch.long), torch.ones(0, dtype=torch.long), 0)


def loss_by_loops(log_probs: Tensor, mask: Tensor, denominator: float, normalization: str) -> float:
    total = 0.0
    for row, row_mask in zip(log_probs.tolist(), mask.tolist(), strict=True):
        kept = [value for value, is_response in zip(row, row_mask, strict=True) if is_response]
        if kept:
            total -= sum(kept) / (len(kept) if normalization == "sequence" else 1)
    return total / denominator


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Float64 `log_probs` and a mask; masked-out places hold what would spoil a sum."""
    prompts, sequences, max_length = draw(lengths())
    mask = mask_of(prompts, sequences, max_length)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    log_probs = -5 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    spoiler = draw(st.sampled_from([0.0, math.nan, math.inf, -math.inf]))
    return torch.where(mask, log_probs, spoiler), mask


@given(batches(), st.sampled_from(["sequence", "token"]), st.integers(1, 50))
def test_loss_and_gradient_are_those_of_the_formula(batch, normalization, denominator):
    log_probs, mask = batch
    log_probs.requires_grad_()
    loss = masked_nll(log_probs, mask, denominator, normalization)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(loss_by_loops(log_probs.detach(), mask, denominator, normalization))
    weight = 1 / mask.sum(1, keepdim=True).clamp(min=1) if normalization == "sequence" else 1
    torch.testing.assert_close(log_probs.grad, -(mask * weight).double() / denominator)


@given(batches(), st.sampled_from(["sequence", "token"]))
def test_loss_and_gradient_do_not_depend_on_the_split(batch, normalization):
    log_probs, mask = batch
    denominator = max(1, len(mask) if normalization == "sequence" else int(mask.sum()))
    whole = log_probs.clone().requires_grad_()
    masked_nll(whole, mask, denominator, normalization).backward()
    for size in range(1, len(mask) + 1):
        parts = log_probs.clone().requires_grad_()
        loss = torch.tensor(0.0, dtype=torch.float64)
        for start in range(0, len(mask), size):
            rows = slice(start, start + size)
            share = masked_nll(parts[rows], mask[rows], denominator, normalization)
            share.backward()
            loss += share.detach()
        torch.testing.assert_close(parts.grad, whole.grad)
        assert loss.item() == pytest.approx(masked_nll(log_probs, mask, denominator, normalization).item())


@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_gradient_of_a_model_does_not_depend_on_split_or_padding(normalization):
    """The same through a small float32 model: micro-batches of 1, 2 and 4, each padded to its own width."""
    torch.manual_seed(0)
    prompts, sequences = [2, 1, 4, 3], [6, 2, 11, 3]
    rows = [torch.randint(0, 11, (length,)) for length in sequences]
    model = torch.nn.Sequential(torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11))
    responses = [s - p for p, s in zip(prompts, sequences, strict=True)]
    denominator = len(rows) if normalization == "sequence" else sum(responses)

    def gradient(size: int, extra_padding: int) -> Tensor:
        model.zero_grad()
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            width = max(sequences[part]) + extra_padding
            tokens = torch.full((len(rows[part]), width), 10)
            for tokens_row, row in zip(tokens, rows[part], strict=True):
                tokens_row[: len(row)] = row
            log_probs = model(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)
            mask = mask_of(prompts[part], sequences[part], width)
            masked_nll(log_probs, mask, denominator, normalization).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    reference = gradient(len(rows), 0)
    assert reference.abs().max() > 0
    for size, extra_padding in itertools.product([1, 2, 4], [0, 5]):
        torch.testing.assert_close(gradient(size, extra_padding), reference, rtol=1e-5, atol=1e-7)


def test_an_empty_response_contributes_zero():
    log_probs = torch.full((2, 3), math.nan, requires_grad=True)
    loss = masked_nll(log_probs, torch.zeros(2, 3, dtype=torch.bool), 2)
    loss.backward()
    assert loss.item() == 0.0
    assert log_probs.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_an_empty_micro_batch_contributes_zero(shape):
    log_probs = torch.zeros(shape, requires_grad=True)
    loss = masked_nll(log_probs, torch.ones(shape, dtype=torch.bool), 4)
    loss.backward()
    assert loss.item() == 0.0


def test_low_precision_is_summed_in_float32():
    log_probs = torch.full((1, 4096), -1.0, dtype=torch.bfloat16)
    loss = masked_nll(log_probs, torch.ones(1, 4096, dtype=torch.bool), 4095, "token")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 / 4095, rel=1e-6)


def test_the_denominator_may_be_a_tensor():
    loss = masked_nll(torch.full((1, 2), -3.0), torch.ones(1, 2, dtype=torch.bool), torch.tensor(2))
    assert loss.item() == pytest.approx(1.5)


@pytest.mark.parametrize("denominator", [0, -1, math.nan])
def test_loss_refuses_a_denominator_not_above_zero(denominator):
    with pytest.raises(ValueError, match="denominator must be above zero"):
        masked_nll(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), denominator)


def test_loss_refuses_what_it_does_not_know():
    ones = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="normalization must be"):
        masked_nll(torch.zeros(1, 2), ones, 1, "batch")  # type: ignore[arg-type]  # a wrong value on purpose
    with pytest.raises(ValueError, match="must both be"):
        masked_nll(torch.zeros(1, 3), ones, 1)
    with pytest.raises(ValueError, match="mask must be boolean"):
        masked_nll(torch.zeros(1, 2), ones.float(), 1)
