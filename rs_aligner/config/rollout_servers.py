"""Servers of vLLM that sample, as the trainer sees them: how they are asked (`generation.servers`).

What they are asked for is in `generation/vllm/`. Left out on purpose: how they are started.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rs_aligner.address import Address
from rs_aligner.config.base import Count, Positive, Section, Text, authority_problems, file_problems, problem

ROLLOUTS_TOKEN = "RS_ALIGNER_ROLLOUTS_TOKEN"
"""The variable of the environment that may hold the servers' access token."""
TEMPERATURES = (0.01, 2.0)
"""What vLLM takes: it refuses what is above, and takes the lowest for what is below."""
_API = "/v1"


class RolloutServersConfig(Section):
    """How vLLM's servers are asked (`engine: vllm`)."""

    token_file: Text | None = None
    """File with the servers' access token; null takes the variable RS_ALIGNER_ROLLOUTS_TOKEN, if set."""
    ca_file: Text | None = None
    """File (PEM) of the authority that vouches for `https://` servers; null for the system's."""
    startup_timeout: Positive = 10
    """Seconds to wait for the servers to become ready before the run gives up."""
    request_timeout: Positive = 600
    """Seconds to wait for all rollouts of a prompt before the request has failed."""
    give_up_after: Positive = 600
    """Seconds to ask again after a first failure before the run stops."""
    max_in_flight: Count = 32
    """Prompts of a rank under way at once at each server; `rollout_micro_batch_size` is for all of them."""

    def problems(self, key: str) -> Iterator[str]:
        """Its files are there."""
        yield from file_problems(f"{key}.token_file", self.token_file)
        yield from authority_problems(f"{key}.ca_file", self.ca_file)


def address_problems(key: str, endpoints: Sequence[str]) -> Iterator[str]:
    """What is wrong with servers' addresses."""
    seen = set()
    for text in endpoints:
        try:
            address = Address.parse(text)
        except ValueError as error:
            yield f"{key}: {error}"
            continue
        if address.path.endswith(_API):
            yield problem(key, text, f"should end before {_API}: {str(address).removesuffix(_API)}")
        if address in seen:
            yield problem(key, list(endpoints), "names a server twice")
        seen.add(address)


def temperature_problems(key: str, temperature: float) -> Iterator[str]:
    """Temperatures that vLLM does not sample at, or takes for others."""
    lowest, highest = TEMPERATURES
    if not lowest <= temperature <= highest:
        yield problem(key, temperature, f"vLLM takes {lowest:g} to {highest:g}; other engines take any")
