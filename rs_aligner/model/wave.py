"""What is decoded together on a rank, in numbers, and what its keys and values take.

Left out on purpose: which engine decodes, and what that takes besides.
"""

from __future__ import annotations

from typing import NamedTuple

from rs_aligner.config import GenerateConfig, TrainRSConfig
from rs_aligner.model.architecture import Architecture


class Wave(NamedTuple):
    """Prompts that are decoded together on a data-parallel rank.

    Attributes:
        prompts: how many.
        each: rollouts of each.
        longest_prompt: tokens.
        max_length: tokens of a rollout.
    """

    prompts: int
    each: int
    longest_prompt: int
    max_length: int

    def cache_bytes(self, arch: Architecture, element: int) -> int:
        """Most bytes that their keys and values take without a budget, all of a replica's ranks together.

        A prompt is kept once; what rounding up to pages adds is left out. A number takes `element` bytes.
        """
        tokens = self.prompts * (self.longest_prompt + self.each * self.max_length)
        return tokens * arch.cache_bytes_per_token(element)


def wave_of(config: TrainRSConfig | GenerateConfig, num_prompts: int, longest_prompt: int) -> Wave:
    """The largest wave of so many prompts.

    Args:
        config: a checked config.
        num_prompts: of a step, or of the file.
        longest_prompt: tokens.
    """
    asked = config.model.rs if isinstance(config, TrainRSConfig) else config.model.answers
    share = -(-num_prompts * config.model.model_parallel_size // config.world_size)
    prompts = min(share, asked.rollout_micro_batch_size or share)
    return Wave(prompts, asked.num_rollouts_per_prompt, longest_prompt, asked.length_params.max_length)
