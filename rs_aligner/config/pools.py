"""`model.rs.pool` and `.until`: which rollouts a step chooses from, and how many are sampled.

Left out on purpose: what relates them to the rest of a step (`rs.py`), and trlX's names for them (`trlx.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from rs_aligner.config.base import Count, Real, Section, Size, problem


class PoolConfig(Section):
    """Which rollouts a step chooses from."""

    improve_steps: Count = 1
    """Steps that train on the same rollouts before new ones are sampled (grow and improve)."""
    max_staleness: Size = 0
    """Later steps for which a kept rollout stays a candidate (a bank of the best); 0: each is used once."""
    restart: bool = False
    """Each cycle trains the starting weights anew, on what the policy before it sampled (ReST-EM)."""
    passes: Count = 1
    """Passes over the kept rollouts of a step."""

    def problems(self, key: str) -> Iterator[str]:
        """Rollouts are used again in one way."""
        if self.improve_steps > 1 and self.max_staleness:
            keep = "keep one of the two: a cycle's pool is trained on again as it is"
            instead = f"with pool.improve_steps, {keep}"
            yield problem(f"{key}.max_staleness", self.max_staleness, instead)


class UntilConfig(Section):
    """Samples in rounds, until each prompt has so many accepted rollouts or the budget is spent.

    The budget of a step is `num_rollouts_per_prompt` for each of its prompts, in all: what easy prompts leave
    goes to hard ones.
    """

    accepted: Count
    """Accepted rollouts after which a prompt is sampled no further."""
    at_least: Real
    """The reward from which a rollout is accepted."""
    rollouts_a_round: Count | None = None
    """Rollouts that a prompt gets in a round; then the judge is asked.

    Null: first as many as are wanted, then a quarter of those tried so far, at least one. Fewer are sampled
    in vain than with rounds of a fixed size, in fewer rounds.
    """
    max_rollouts: Count = 64
    """Most rollouts of one prompt."""
    max_tokens: Count | None = None
    """A prompt whose rollouts have this many tokens together gets no further round; null for no bound."""
    tokens_per_prompt: Count | None = None
    """Tokens that a step may sample, for each of its prompts; no round begins beyond it. Null: no bound."""

    def problems(self, key: str) -> Iterator[str]:
        """A prompt can have as many as are wanted of it."""
        if self.accepted > self.max_rollouts:
            most = f"should be at most {key}.max_rollouts = {self.max_rollouts}"
            yield problem(f"{key}.accepted", self.accepted, most)
