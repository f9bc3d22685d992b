"""The limit that decoding on a device is measured against, on numbers worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.limits import Part, parts_of
from rs_aligner.model.architecture import Architecture, Rope

pytestmark = pytest.mark.timeout(60)


def test_bytes_and_operations_of_each_part_are_those_worked_out_by_hand() -> None:
    """Two heads of 2 that share a key, width 4: 48 + 96 weights a layer, three layers, 40 in the output."""
    arch = Architecture(
        family="llama",
        vocab_size=10,
        hidden_size=4,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        intermediate_size=8,
        max_positions=64,
        norm_eps=1e-5,
        rope=Rope(),
        tied_embeddings=True,
    )
    # A token's keys and values are 24 bytes; looking at one token takes 48 operations. Of four rollouts the
    # first token comes from the prompt; the others are three steps, at which a rollout has 1, 2 and 3 tokens.
    assert parts_of(arch, [5, 3], num_rollouts=2, max_length=4) == {
        "prompts: weights": Part(2 * 472, 2 * (8 * 432 + 2 * 40)),
        "prompts: attention": Part(8 * 24, (15 + 6) * 48),
        "steps: weights": Part(3 * 2 * 472, 3 * 2 * 4 * 472),
        "steps: attention to prompts": Part(3 * 8 * 24, 3 * 2 * 8 * 48),
        "steps: attention to own tokens": Part(4 * (1 + 2 + 3) * 24, 4 * (1 + 2 + 3) * 48),
    }


@pytest.mark.parametrize(("bandwidth", "product_rate", "seconds"), [(10, 100, 60), (10, 1, 120), (1, 1, 600)])
def test_a_part_takes_the_longer_of_reading_and_computing(
    bandwidth: float, product_rate: float, seconds: float
) -> None:
    assert Part(600, 120).seconds(bandwidth, product_rate) == seconds
