"""Models that people have and that are not read, by name, with what they have that no family here has.

Left out on purpose: families that nobody has asked for; for them the message has the names of those that are
read.
"""

from __future__ import annotations

_LINEAR = "layers of linear attention beside those of softmax"
_LATENT = "latent attention and experts that every token passes"

REFUSED: dict[str, str] = {
    "gpt_oss": "attention sinks, and experts with biases and a clamped activation",
    "qwen3_next": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "kimi_linear": _LINEAR,
    "minimax": _LINEAR,
    "granitemoehybrid": "Mamba layers beside those of attention",
    "nemotron_h": "Mamba layers beside those of attention",
    "jamba": "Mamba layers beside those of attention",
    "falcon_h1": "Mamba layers beside those of attention",
    "mamba": "no attention at all",
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "kimi_k2": _LATENT,
    "glm": "heads that are turned in part, in pairs of neighbours",
    "glm4": "heads that are turned in part, in pairs of neighbours",
    "glm4_moe": "experts that every token passes, and heads that are turned in part",
    "llama4_text": "experts that every token passes, and attention in chunks",
    "gemma3": "a tower for images; its text alone is a gemma3_text",
    "gemma3n": "a tower for images and sounds, and layers that share keys and values",
    "mistral3": "a tower for images; its text alone is a mistral",
}
"""What they have, by `model_type`."""
