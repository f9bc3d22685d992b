"""The shape of a policy: sizes and switches, as all but the file of its family see it.

What layers of one model differ in is a table, a `Kind` a layer. Left out on purpose: how it is read from a
config (`families`), and numbers that nobody but one family needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

QKV_BIAS, QK_NORM = "qkv_bias", "qk_norm"
PROJECTION_BIAS, MLP_BIAS = "projection_bias", "mlp_bias"
EXPERTS = "experts"
LAYER_NORM, LEARNT_POSITIONS, PLAIN_MLP = "layer_norm", "learnt_positions", "plain_mlp"
WINDOW = "sliding_window"
RESIDUAL_SCALE = "residual_multiplier"
WIDE_QK_NORM = "norms over all queries and all keys"
NORMS_AFTER = "norms behind attention and MLP"
PART_TURNED = "heads that are turned in part"
SCORE_CAP = "a cap of scores"
UNIT_NORMS = "norms that multiply by one and a weight"
GEGLU = "GEGLU"


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
        turned: the first so many numbers of a head are turned, and not the rest; None for all.
        divisors: of each frequency, where a model has one for each.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    original_positions: int = 1
    slow: float = 1.0
    fast: float = 4.0
    whole: bool = True
    attention_factor: float = 1.0
    turned: int | None = None
    divisors: tuple[float, ...] = ()


NO_POSITIONS = Rope(scaling="linear", factor=math.inf)
"""Of layers that turn nothing: wavelengths without an end, so every angle is 0."""


@dataclass(frozen=True)
class Kind:
    """What layers of one model may differ in.

    Attributes:
        window: how many tokens a token sees, itself among them; None for all before it.
        rope: its rotary positions; None for the model's.
        mlp: how large it is inside its MLP, where a mixture's layer has one in the place of experts.
    """

    window: int | None = None
    rope: Rope | None = None
    mlp: int | None = None


@dataclass(frozen=True)
class Scales:
    """Numbers by which a model multiplies, 1 where it does not, and those that it keeps others below.

    Attributes:
        embedding: what comes out of the embedding.
        residual: what attention and MLP add to the residual stream.
        logits: what comes out of the output layer.
        scores: products of queries and keys; None for one over the root of a head's size.
        score_cap, logit_cap: scores and logits are bent so that they stay below; None where they are not.
    """

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    scores: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None


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
        max_positions: the longest sequence.
        rope: its rotary positions, but of layers that have others; `NO_POSITIONS` where they are learnt.
        kinds: of each layer; none where all are alike, see all before them and have the model's positions.
        scales: what it multiplies by.
        value_head: whether a linear head of one output, `score.weight`, takes the place of the output layer.
        experts: what its layers have in the place of MLPs, if it is a mixture; but for those that are none.
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
    kinds: tuple[Kind, ...] = ()
    scales: Scales = Scales()
    value_head: bool = False
    experts: Experts | None = None
    activation: str = "silu"

    def at(self, layer: int) -> Architecture:
        """The model as a layer has it: without experts, where a mixture has none there."""
        size = self.kinds[layer].mlp if self.kinds else None
        if size is None:
            return self
        return replace(self, experts=None, intermediate_size=size, features=self.features - {EXPERTS})

    def stage(self, number: int, stages: int) -> list[Architecture]:
        """The model as each layer of a pipeline stage has it."""
        own = self.num_layers // stages
        return [self.at(layer) for layer in range(number * own, (number + 1) * own)]

    @property
    def mlp_sizes(self) -> tuple[int, ...]:
        """How large it is inside its MLPs, or experts: each size once."""
        return tuple(dict.fromkeys(one.intermediate_size for one in self.stage(0, 1)))

    def window(self, layer: int) -> int | None:
        """How many tokens a token of a layer sees; None for all before it."""
        return self.kinds[layer].window if self.kinds else None

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The rotary positions that its layers have, each once."""
        return tuple(dict.fromkeys(self._rope(layer) for layer in range(self.num_layers)))

    def rope_place(self, layer: int) -> int:
        """Which of `ropes` are a layer's."""
        return self.ropes.index(self._rope(layer))

    def _rope(self, layer: int) -> Rope:
        return (self.kinds[layer].rope if self.kinds else None) or self.rope

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.head_dim**-0.5 if self.scales.scores is None else self.scales.scores

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
        """Whether each head's queries and keys have norms."""
        return QK_NORM in self.features

    @property
    def learnt_positions(self) -> bool:
        """Whether the embedding has a vector for each position."""
        return LEARNT_POSITIONS in self.features

    @property
    def is_gated(self) -> bool:
        """Whether an MLP has two matrices side by side, one of which gates the other."""
        return PLAIN_MLP not in self.features

    @property
    def wide_qk_norm(self) -> bool:
        """Whether a norm goes over all queries of a token together, and one over all keys."""
        return WIDE_QK_NORM in self.features

    def cache_bytes_per_token(self, element: int) -> int:
        """Keys and values of a token in all layers, with numbers of `element` bytes."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element
