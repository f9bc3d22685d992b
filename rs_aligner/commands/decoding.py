"""Which engine rollouts will come from, and what it will hold: lines of a plan, before any model is loaded.

What a rank holds is in its memory (`fitting.py`); here is what servers hold. Left out on purpose: what they
have, since they are on other machines and perhaps not started.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rs_aligner.config import GenerationConfig
from rs_aligner.config.plan_parts import Line, in_gib
from rs_aligner.generation.decoder import Ahead
from rs_aligner.generation.engines import Chosen, choose
from rs_aligner.generation.vllm.folder import KEPT
from rs_aligner.model.tensors import num_parameters
from rs_aligner.model.wave import Wave

_GIB = 1 << 30


class Decoding(NamedTuple):
    """What decodes.

    Attributes:
        config: the config's section.
        key: of that section.
        ahead: the model.
        chosen: the engine.
    """

    config: GenerationConfig
    key: str
    ahead: Ahead
    chosen: Chosen

    @classmethod
    def of(cls, config: GenerationConfig, key: str, ahead: Ahead) -> Decoding:
        """Of a model, before it is there.

        Raises:
            ValueError: no engine can decode it, or not the one that was asked for.
        """
        return cls(config, key, ahead, choose(ahead, config))

    @property
    def cached(self) -> int:
        """Bytes of a number of the cache on a rank; 0 where it has none."""
        return self.chosen.engine.cached_bytes(self.ahead)

    def line(self) -> Line:
        """Which it is, and why."""
        if self.config.is_served:
            return "engine", f"{self.chosen.engine.name}, of servers at {', '.join(self.config.endpoints)}"
        why = f", as {self.key}.engine says"
        if self.config.engine == "auto":
            why = "".join(f" (not {name}: {why})" for name, why in self.chosen.others.items())
        return "engine", f"{self.chosen.engine.name}{why}"

    def server_lines(self, wave: Wave, gpu: int | None, *, trains: bool) -> Iterator[Line]:
        """What each server will hold.

        Args:
            wave: what is sampled.
            gpu: bytes of a GPU that a server may have for itself; None where that is not known.
            trains: whether it gets new weights.
        """
        if not self.config.is_served:
            return
        arch, element = self.ahead.arch, self.ahead.own_bytes
        weights, token = num_parameters(arch) * element, arch.cache_bytes_per_token(element)
        rollout = token * (wave.longest_prompt + wave.max_length)
        fits = f"{_GIB // rollout:,} of them in each GiB of its cache"
        if gpu is not None:
            fits = f"{max(0, gpu - weights) // rollout:,} of them beside the weights on a GPU like this one"
        yield (
            "  each holds",
            f"weights {in_gib(weights)}, if in {'bf16' if self.ahead.bf16 else 'float32'}; keys and values "
            f"{token / 1024:,.1f} KiB a token, {in_gib(rollout)} a rollout with its prompt: {fits}",
        )
        if trains:
            yield "  new weights", f"up to {KEPT + 1} versions in the run's folder, {in_gib(weights)} each"
