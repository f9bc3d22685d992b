"""The shape of a policy: sizes and switches, as all but the file of its family see it.

Left out on purpose: how it is read from a config (`families`), and numbers that nobody but one family needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

QKV_BIAS, QK_NORM = "qkv_bias", "qk_norm"
PROJECTION_BIAS, MLP_BIAS = "projection_bias", "mlp_bias"
EXPERTS = "experts"
LAYER_NORM, LEARNT_POSITIONS, PLAIN_MLP = "layer_norm", "learnt_positions", "plain_mlp"


@dataclass(frozen=True)
class Rope:
    """Rotary positions, and how their frequencies are scaled (`rotary.py` has the formulas).

    Attributes:
        theta: the base of the wavelengths.
        scaling: which frequencies are as they were, a name in `rotary.KEPT`.
        factor: by how much the others are lower.
        original_positions: the longest sequence before scaling.
        slow, fast: rotations within `original_positions`; what turns less often than `slow` is scaled, what
            turns more often than `fast` is as it was.
        whole: whether the bounds between them are whole numbers of dimensions.
        attention_factor: by how much cosines and sines are larger.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    original_positions: int = 1
    slow: float = 1.0
    fast: float = 4.0
    whole: bool = True
    attention_factor: float = 1.0


NO_POSITIONS = Rope(scaling="linear", factor=math.inf)
"""Of layers that turn nothing: wavelengths without an end, so every angle is 0."""


@dataclass(frozen=True)
class Experts:
    """What a mixture of experts has in the place of an MLP.

    Attributes:
        number: of a layer.
        per_token: those that a token goes to.
        normalises: whether what the chosen ones count adds up to 1.
        balance: the coefficient of the routers' own loss, by which experts get as much as one another.
    """

    number: int
    per_token: int
    normalises: bool = True
    balance: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """Sizes and switches of a decoder (names as in Hugging Face configs).

    Attributes:
        family: its `model_type`.
        features: what its layers have beyond RMSNorm, SwiGLU, rotary positions and grouped queries, by name.
            A decoding engine that does not know one of them declines the model.
        intermediate_size: inside an MLP, or an expert.
        max_positions: the longest sequence; the window of a model with one, where that is shorter.
        rope: its rotary positions; `NO_POSITIONS` where they are learnt.
        value_head: whether a linear head of one output, `score.weight`, takes the place of the output layer.
        experts: what its layers have in the place of MLPs, if it is a mixture.
        activation: inside an MLP, as `transformers` names it.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    rope: Rope
    tied_embeddings: bool
    features: frozenset[str] = frozenset()
    value_head: bool = False
    experts: Experts | None = None
    activation: str = "silu"

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return QKV_BIAS in self.features

    @property
    def projection_bias(self) -> bool:
        """Whether what attention puts out has a bias."""
        return PROJECTION_BIAS in self.features

    @property
    def mlp_bias(self) -> bool:
        """Whether all matrices of an MLP have biases."""
        return MLP_BIAS in self.features

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys have norms."""
        return QK_NORM in self.features

    @property
    def learnt_positions(self) -> bool:
        """Whether the embedding has a vector for each position."""
        return LEARNT_POSITIONS in self.features

    @property
    def is_gated(self) -> bool:
        """Whether an MLP has two matrices side by side, one of which gates the other."""
        return PLAIN_MLP not in self.features

    def cache_bytes_per_token(self, element: int) -> int:
        """Keys and values of a token in all layers, with numbers of `element` bytes."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element
