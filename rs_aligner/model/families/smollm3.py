"""SmolLM3: every fourth layer turns nothing, and sees a window where the config asks for one."""

from __future__ import annotations

from rs_aligner.model.architecture import MLP_BIAS
from rs_aligner.model.families.base import Config
from rs_aligner.model.families.kinds import Windows
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, llama_like


def _turns_nothing(config: Config, layer: int) -> bool:
    """`no_rope_layers` has a 0 for each such layer; else every `no_rope_layer_interval`th is one."""
    turns = config.get("no_rope_layers")
    return not turns[layer] if turns is not None else (layer + 1) % config["no_rope_layer_interval"] == 0


SMOLLM3 = llama_like(
    "smollm3",
    "SmolLM3",
    switches={**ATTENTION_BIAS, "mlp_bias": frozenset({MLP_BIAS})},
    windows=Windows(_turns_nothing, "use_sliding_window"),
    no_positions=_turns_nothing,
    absent={"no_rope_layer_interval": 4, "rope_theta": 2000000.0, "tie_word_embeddings": True},
)
