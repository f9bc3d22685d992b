"""Rollouts attend to their prompt and to themselves as if each had a copy, in both ways of doing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from rs_aligner.generation import cache
from rs_aligner.generation.on_torch import TorchDecoder
from rs_aligner.generation.sharing import Sharing, attend_at_once, attend_in_parts
from rs_aligner.model.attending import Rule
from tests.generation.conftest import Load
from tests.generation.test_decoding import assert_same, decode, prompts
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)
HEADS, GROUP, DIM, OWN = 2, 3, 8, 5


@pytest.mark.parametrize("attend", [attend_at_once, attend_in_parts])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(6, 6, 6), (2, 9, 1)])
@pytest.mark.parametrize("counts", [(2, 2, 2), (1, 4, 2)])
def test_attention_is_that_of_each_rollout_alone(
    attend: Callable[..., torch.Tensor], dtype: torch.dtype, lengths: Sequence[int], counts: Sequence[int]
) -> None:
    torch.manual_seed(3)
    owners = [p for p, count in enumerate(counts) for _ in range(count)]
    query = torch.randn(HEADS, len(owners), GROUP, DIM).mul_(3).to(dtype)
    held = torch.randn(2, HEADS, len(counts), max(lengths), DIM).to(dtype)
    own = torch.randn(HEADS, len(owners), 2, OWN + 3, DIM).to(dtype)
    own[:, :, :, OWN:] = torch.nan  # slots not taken
    keys, values = own[:, :, :, :OWN].unbind(2)
    found = attend(query, held, keys, values, Sharing.of(owners, lengths, held), Rule(0.3))
    assert found.dtype == dtype
    for row, owner in enumerate(owners):
        prompt = held[:, :, owner, : lengths[owner]].double()
        key, value = torch.cat([prompt, own[:, row, :, :OWN].double().transpose(0, 1)], dim=2)
        expected = functional.scaled_dot_product_attention(query[:, row].double(), key, value, scale=0.3)
        tolerance = 1e-4 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(found[:, row].double(), expected, rtol=0, atol=tolerance)


def test_a_gpus_way_of_attending_decodes_the_same_rollouts(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("llama", "qwen3"):
        decoder = load(save_tiny(family, tmp_path / family))
        if not isinstance(decoder, TorchDecoder):
            pytest.skip("kernels attend in their own way")
        usual = decode(decoder, prompts())
        with monkeypatch.context() as patch:
            patch.setattr(cache, "attend_in_parts", attend_at_once)
            assert_same(decode(decoder, prompts()), usual)
