"""How a policy samples: the same keys wherever a command does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal

from rs_aligner.config.base import Count, Fraction, NotNegative, Positive, Section, Size, Texts, problem
from rs_aligner.config.pools import PoolConfig
from rs_aligner.config.rollout_servers import RolloutServersConfig, address_problems, temperature_problems

_logger = logging.getLogger("rs_aligner")


class SamplingParams(Section):
    """How the next token is drawn."""

    use_greedy: bool = False
    """Takes the likeliest token; temperature, top_k and top_p then play no part."""
    temperature: NotNegative = 1.0
    """Divides the logits; above 0 unless `use_greedy`."""
    top_k: Size = 0
    """Draws among the k likeliest tokens; 0 for all."""
    top_p: Fraction = 1.0
    """Draws among the likeliest tokens that together have this probability; 1 for all."""
    repetition_penalty: Positive = 1.0
    """Divides positive and multiplies negative logits of tokens seen before; 1 for none."""
    end_strings: Texts = ()
    """A response ends at the first of these texts, as it does at the model's end token."""

    def problems(self, key: str) -> Iterator[str]:
        """Temperature 0 is greedy."""
        if self.temperature == 0 and not self.use_greedy:
            yield problem(f"{key}.temperature", 0, f"should be above 0, or {key}.use_greedy should be true")


class LengthParams(Section):
    """Tokens of a response."""

    max_length: Count = 256
    """Most tokens of a response, the ending token included."""
    min_length: Size = 1
    """No ending token before this many tokens."""

    def problems(self, key: str) -> Iterator[str]:
        """The bounds leave something between them."""
        if self.min_length > self.max_length:
            most = f"should be at most {key}.max_length = {self.max_length}"
            yield problem(f"{key}.min_length", self.min_length, most)


class GenerationConfig(Section):
    """The decoder."""

    kv_cache_bytes: Count | None = None
    """Most bytes of keys and values on a rank; rollouts that do not fit wait.

    Null: a training on a GPU takes what its plan leaves of the device, and keeps to that as long as the
    run goes on; elsewhere there is no bound.
    """
    engine: Literal["auto", "kernels", "torch", "vllm"] = "auto"
    """What decodes: kernels compiled for this CPU (a second, once), torch, or servers of vLLM.

    `auto` is the faster of the first two that can; for the last see docs/engines.md.
    """
    endpoints: Texts = ()
    """The servers of `engine: vllm`: addresses, "host:port", "[::1]:port" or URLs, that share the work."""
    servers: RolloutServersConfig = RolloutServersConfig()

    @property
    def is_served(self) -> bool:
        """Whether servers decode."""
        return self.engine == "vllm"

    def problems(self, key: str) -> Iterator[str]:
        """Servers are named where they are asked, and nowhere else."""
        yield from address_problems(f"{key}.endpoints", self.endpoints)
        if self.is_served:
            yield from self._served(key)
        elif self.endpoints:
            with_servers = f"plays a part with {key}.engine=vllm only"
            yield problem(f"{key}.endpoints", list(self.endpoints), with_servers)
        elif self.servers != RolloutServersConfig():
            _logger.warning("%s.servers has no effect: it is for %s.engine=vllm", key, key)

    def sampling_problems(self, key: str, sampling: SamplingParams) -> Iterator[str]:
        """What the engine does otherwise than the controls say, so that rollouts would be others."""
        if self.is_served and not sampling.use_greedy:
            yield from temperature_problems(f"{key}.temperature", sampling.temperature)

    def _served(self, key: str) -> Iterator[str]:
        if not self.endpoints:
            example = f"for example {key}.endpoints=[node3:8000,node4:8000]"
            yield f"{key}.endpoints must be set with {key}.engine=vllm: the servers' addresses, {example}"
        if self.kv_cache_bytes is not None:
            _logger.warning("%s.kv_cache_bytes has no effect: vLLM's servers have a cache of their own", key)
        if self.servers.ca_file is not None and not any("https://" in one.lower() for one in self.endpoints):
            _logger.warning("%s.servers.ca_file has no effect: no server is asked by https://", key)


class TrainedGenerationConfig(GenerationConfig):
    """The decoder of a policy that is trained."""

    sync_interval: Count = 1
    """Steps after which servers get the policy's weights anew; they always do before held-out prompts."""
    max_version_lag: Size = 0
    """A rollout whose policy is this many steps older than the step's is trained on, and no older one."""

    def problems(self, key: str) -> Iterator[str]:
        """What is for servers plays a part where there are some."""
        yield from super().problems(key)
        for name in ("sync_interval", "max_version_lag"):
            if not self.is_served and getattr(self, name) != type(self).model_fields[name].default:
                _logger.warning("%s.%s has no effect: it is for %s.engine=vllm", key, name, key)

    def training_problems(self, key: str, pool: PoolConfig, pool_key: str) -> Iterator[str]:
        """Servers get the weights often enough, and a step's rollouts are told from those of earlier ones."""
        if not self.is_served or self.sync_interval == 1:
            return
        if self.sync_interval - 1 > self.max_version_lag:
            yield problem(
                f"{key}.sync_interval",
                self.sync_interval,
                f"{key}.max_version_lag = {self.max_version_lag} rejects what steps sample whose servers are "
                f"further behind; set it to {self.sync_interval - 1}, or sync_interval to "
                f"{self.max_version_lag + 1}",
            )
        for name in ("improve_steps", "max_staleness"):
            if getattr(pool, name) != type(pool).model_fields[name].default:
                twice = f"{pool_key}.{name} uses older rollouts in another way; leave one of the two out"
                yield problem(f"{key}.sync_interval", self.sync_interval, twice)
