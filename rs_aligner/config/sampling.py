"""How a policy samples: the same keys wherever a command does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rs_aligner.config.base import Count, Fraction, NotNegative, Positive, Section, Size, Texts, problem


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
    engine: Literal["auto", "kernels", "torch"] = "auto"
    """What decodes: kernels compiled for this CPU (a second, once), or torch; auto: the faster that can."""
