"""`model.rs`: one step of rejection sampling.

What is sampled and how, and what the parts of a step ask of each other. The choices that make a recipe have
files of their own: who is kept (`selection.py`), what is minimised (`objective.py`), from which rollouts
(`pools.py`). Left out on purpose: the run around it (`train_rs.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rs_aligner.config.base import Count, Real, Section, Size, Texts, problem
from rs_aligner.config.chain import most_kept
from rs_aligner.config.objective import ObjectiveConfig
from rs_aligner.config.pools import PoolConfig, UntilConfig
from rs_aligner.config.sampling import LengthParams, SamplingParams, TrainedGenerationConfig
from rs_aligner.config.selection import SelectorConfig
from rs_aligner.config.trlx import RFTConfig, expand_rft

_logger = logging.getLogger("rs_aligner")


class RSConfig(Section):
    """One step of rejection sampling."""

    num_rollout_samples: Count = 512
    """Prompts of a step, over all ranks."""
    rollout_micro_batch_size: Count | None = None
    """Prompts decoded together on one data-parallel rank; null for all of the step's on that rank."""
    num_rollouts_per_prompt: Count = 4
    """Responses sampled for a prompt."""
    top_n_rollouts: Count = 1
    """Best responses of a prompt to train on."""
    min_reward: Real | None = None
    """Rejects what scores below it, before the best are taken; null for no bar. Not beside `selection`."""
    passed_above: Real = 0.0
    """A rollout has passed if its reward is above this; for the figures `pass_at/k` and `groups/...` only."""
    selection: tuple[SelectorConfig, ...] = ()
    """Who is kept: selectors, each narrowing what the one before it left; docs/selection.md has them all.

    Empty is the plain recipe: `min_reward` as a bar, then the best `top_n_rollouts`.
    """
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is minimised over what was kept."""
    pool: PoolConfig = PoolConfig()
    """Which rollouts a step chooses from."""
    until: UntilConfig | None = None
    """Samples until enough are accepted, within a budget; null: `num_rollouts_per_prompt` for each prompt."""
    offline: Texts = ()
    """Scored rollouts to train on instead of sampling: files, or the `rollouts/` folder of a run."""
    rft: RFTConfig | None = None
    """trlX's rejection fine-tuning by its own names, which set the keys above; null: not used."""
    offload_adam_states: bool = False
    """Lets the optimizer's states wait in the CPU's memory while rollouts are sampled, and gradients go.

    On a GPU: 12 and 4 bytes a trained parameter (in bf16) are room for keys and values, for 24 moved a step.
    """
    kl_samples: Size = 64
    """Rollouts of a step by which the KL to the starting policy is measured; 0: it is not."""
    num_val_samples: Count | None = None
    """The first so many validation prompts; null for all."""
    num_val_rollouts_per_prompt: Count = 1
    """Responses sampled for a validation prompt."""
    sampling_params: SamplingParams = SamplingParams()
    val_sampling_params: SamplingParams = Field(default_factory=dict, validate_default=True)
    """The same keys for validation. Greedy by default; `end_strings` are those of training unless set."""
    length_params: LengthParams = LengthParams()
    generation: TrainedGenerationConfig = TrainedGenerationConfig()

    @property
    def most_rollouts(self) -> tuple[str, int] | None:
        """The key that bounds the rollouts of a prompt, and its value; None where `offline` tells."""
        if self.offline:
            return None
        if self.until is not None:
            return "model.rs.until.max_rollouts", self.until.max_rollouts
        return "model.rs.num_rollouts_per_prompt", self.num_rollouts_per_prompt

    @property
    def brings_all(self) -> bool:
        """Whether all rollouts of a step are its own, whatever version they are of.

        So it is with those of a file, and with servers that get the weights less often than each step.
        """
        return bool(self.offline) or (self.generation.is_served and self.generation.sync_interval > 1)

    @property
    def judges(self) -> tuple[str, ...]:
        """Components of the scores that the selectors take for judges of the same thing."""
        return tuple(dict.fromkeys(name for selector in self.selection for name in selector.judges))

    @property
    def needs_start(self) -> bool:
        """Whether the starting weights are asked for again: for the KL, trained or measured, or a restart."""
        return self.objective.kl > 0 or self.pool.restart or self.measures_distance

    @property
    def measures_distance(self) -> bool:
        """Whether a step measures its KL to the starting policy: not on rollouts that others sampled."""
        return self.kl_samples > 0 and not self.offline

    def most_kept(
        self, drawn: Sequence[int], *, num_prompts: int | None = None, largest: int | None = None
    ) -> int:
        """Most rollouts that a step can keep: a bound, as if all passed every bar.

        Args:
            drawn: prompts of each draw whose rollouts are candidates: the step's own, and those in the bank.
            num_prompts: of the files, since a prompt that is drawn again is still one; None if not known.
            largest: most rollouts of a prompt, where the files of `offline` tell.
        """
        each = largest or self.num_rollouts_per_prompt
        most = min(self.until.max_rollouts, each * max(drawn)) if self.until is not None else each
        prompts = sum(drawn)
        return most_kept(
            self.selection,
            top_n=self.top_n_rollouts,
            num_prompts=prompts if num_prompts is None else min(prompts, num_prompts),
            num_rollouts=most * len(drawn),
            num_candidates=each * prompts,
        )

    def problems(self, key: str) -> Iterator[str]:
        """A prompt has as many rollouts as are asked of it, and what is set plays a part."""
        yield from self._counts(key)
        yield from self._selection(key)
        yield from self._offline(key)
        for name in ("sampling_params", "val_sampling_params"):
            yield from self.generation.sampling_problems(f"{key}.{name}", getattr(self, name))
        yield from self.generation.training_problems(f"{key}.generation", self.pool, f"{key}.pool")
        if self.rft is not None and self.selection != self.rft.selection:
            names = [selector.name for selector in self.selection]
            own = f"{key}.rft brings a selection of its own; leave one of the two out"
            yield problem(f"{key}.selection", names, own)
        if self.until is not None and self.sampling_params.use_greedy:
            yield problem(f"{key}.sampling_params.use_greedy", True, f"{key}.until samples: set it to false")
        for name, sampling, number in (
            ("num_rollouts_per_prompt", self.sampling_params, self.num_rollouts_per_prompt),
            ("num_val_rollouts_per_prompt", self.val_sampling_params, self.num_val_rollouts_per_prompt),
        ):
            if sampling.use_greedy and number > 1:
                equal = "but greedy rollouts of a prompt are all equal"
                _logger.warning("%s.%s is %d, %s", key, name, number, equal)

    def _counts(self, key: str) -> Iterator[str]:
        """What asks for more rollouts of a prompt than it can have."""
        if self.most_rollouts is None:
            return
        bound, most = self.most_rollouts
        if self.top_n_rollouts > most:
            yield problem(f"{key}.top_n_rollouts", self.top_n_rollouts, f"should be at most {bound} = {most}")
        for i, selector in enumerate(self.selection):
            yield from selector.beyond(f"{key}.selection.{i}", bound, most)
        if self.objective.advantage != "none" and most < 2:
            compares = f"compares the rollouts of a prompt: {bound} should be at least 2"
            yield problem(f"{key}.objective.advantage", self.objective.advantage, compares)

    def _selection(self, key: str) -> Iterator[str]:
        """The keys of the plain recipe play no part beside a chain."""
        if not self.selection:
            return
        if self.min_reward is not None:
            instead = f"{key}.selection=[{{name: threshold, at_least: {self.min_reward:g}}}, ...]"
            beside = f"has no place beside a chain; write {instead}"
            yield problem(f"{key}.min_reward", self.min_reward, beside)
        if self.top_n_rollouts != 1 and not any(selector.reads_top_n for selector in self.selection):
            without = f"{key}.selection has no topk without k"
            _logger.warning("%s.top_n_rollouts has no effect: %s", key, without)

    def _offline(self, key: str) -> Iterator[str]:
        """Rollouts that are read have to be there, and cannot do all that sampled ones can."""
        for name in self.offline:
            if not Path(name).exists():
                there = "is not there; name files, or the rollouts folder of a run"
                yield problem(f"{key}.offline", name, f"{there} (relative to {Path.cwd()})")
            elif self.objective.clip is not None and Path(name).is_file():
                what = f"needs the sampling policy's log-probabilities, which the file {name} does not have"
                instead = f"set it to null, or name a run's rollouts folder in {key}.offline"
                yield problem(f"{key}.objective.clip", self.objective.clip, f"{what}; {instead}")
        if self.offline and self.pool.max_staleness:
            again = f"the rollouts of {key}.offline come again in every epoch; set it to 0"
            yield problem(f"{key}.pool.max_staleness", self.pool.max_staleness, again)
        if self.offline and self.until is not None:
            nothing = f"nothing is sampled; leave {key}.until out"
            yield problem(f"{key}.offline", list(self.offline), nothing)

    @model_validator(mode="before")
    @classmethod
    def _expand_rft(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("rft") is None:
            return value
        return expand_rft(dict(value), cls.model_fields["num_rollouts_per_prompt"].default)

    @field_validator("val_sampling_params", mode="before")
    @classmethod
    def _complete_val_sampling(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return value
        completed = {"use_greedy": True, **value}
        if completed.get("end_strings") is None and "sampling_params" in info.data:
            completed["end_strings"] = info.data["sampling_params"].end_strings
        return completed
