"""How much a forward and a backward pass keep, before there is a model: activations, and logits.

So many numbers a token, counted once on a CPU; other kernels may keep a little more or less. Rows are taken
as long as they can be, so most steps need less. Left out on purpose: what is there without a pass
(`memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rs_aligner.config import TrainConfig
from rs_aligner.model.architecture import GEGLU, NORMS_AFTER, Architecture


@dataclass(frozen=True, slots=True)
class Lengths:
    """What of the data decides how much memory a step takes.

    Attributes:
        longest: most tokens of a row that is trained on.
        shortest: fewest tokens of one.
        learnt: most tokens of a row that are learnt.
        prompts: prompts of a step that are sampled from, over all ranks; 0 where nothing is.
        prompt: tokens of the longest of them.
    """

    longest: int
    shortest: int
    learnt: int
    prompts: int = 0
    prompt: int = 0


class _Inside(NamedTuple):
    """Numbers of a token in a layer's MLP or experts.

    Attributes:
        kept: what computing it again saves.
        activation: what the activation keeps besides.
        in_hand: what its backward pass takes.
    """

    kept: float
    activation: float
    in_hand: float


class Pass:
    """What a forward and a backward pass keep on a rank of a stage, in bytes.

    Numbers of a token by layer, in multiples of the model's widths: `h` hidden, `q` and `k` of queries and of
    keys, `i` inside the MLP, or all experts of the token; counted in float32. Norms and residuals are split
    by sequence parallelism, all else by tensor parallelism.

    Attributes:
        tokens: of a micro-batch, at most.
        learnt: of them, at most.
    """

    HIDDEN, QUERIES, KEYS = 4.0, 2.0, 2.0
    GATED, PLAIN = 3.0, 2.0  # of `i`: what goes into the activation, and what comes out
    AROUND = 1.5  # of `h`, before and behind all layers
    IN_HAND = 2.0  # of `i`, gradients inside an MLP
    COPIES = 2.0  # of `h` for each expert of a token: what it gets, and what it makes of it
    LOGITS = 12.0  # bytes of an entry: logits, probabilities and their gradient in float32
    AFTER = 2.0  # of `h`, norms behind attention and MLP
    SCORES = 2.0  # of a row's length and each head: scores that are bent have no fused kernel
    BY_TORCH = 1.0  # of `i`, a gated activation that is no kernel of our own
    NORMED = 1.0  # of `q` and `k`, their norms
    BENT = 8.0  # bytes of a logit that is bent

    def __init__(
        self, arch: Architecture, config: TrainConfig, lengths: Lengths, stage: int, element: int
    ) -> None:
        model = config.model
        tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
        rows = model.micro_batch_size * (2 if arch.value_head else 1)  # a pair has two answers
        batches = max(1, model.global_batch_size // (model.micro_batch_size * config.data_parallel_size))
        self.tokens, self.longest = rows * lengths.longest, lengths.longest
        if (limit := model.max_tokens_per_microbatch) is not None:
            self.tokens, batches = max(limit, self.tokens // rows * (2 if arch.value_head else 1)), pp
            rows = -(-self.tokens // lengths.longest)
        self.learnt = min(self.tokens, rows * lengths.learnt)
        self.element, self.arch, self.recompute = element, arch, model.recompute
        self.split, self.is_last = tp, stage == pp - 1
        self.hidden = arch.hidden_size / (tp if model.sequence_parallel else 1)
        self.layers = [self._inside(one) for one in arch.stage(stage, pp)]
        self.under_way = min(pp - stage, batches)  # micro-batches whose backward pass has not begun

    def _inside(self, arch: Architecture) -> _Inside:
        """The MLP or the experts of a layer, of the architecture as that one has it."""
        experts = 0 if arch.experts is None else arch.experts.per_token
        inner = arch.intermediate_size / self.split * max(1, experts)
        copies = self.COPIES * experts * arch.hidden_size
        kept = (self.GATED if arch.is_gated else self.PLAIN) * inner + copies
        return _Inside(
            kept, self.BY_TORCH * inner if GEGLU in arch.features else 0.0, self.IN_HAND * inner + copies
        )

    def _layer(self, inside: _Inside) -> float:
        """What a layer keeps."""
        queries = self.arch.num_heads * self.arch.head_dim / self.split
        keys = self.arch.num_kv_heads * self.arch.head_dim / self.split
        scales, more = self.arch.scales, inside.activation
        if NORMS_AFTER in self.arch.features:
            more += self.AFTER * self.hidden
        if self.arch.qk_norm or self.arch.wide_qk_norm:
            more += self.NORMED * (queries + keys)
        if scales.score_cap is not None:
            more += self.SCORES * self.arch.num_heads / self.split * self.longest
        return (
            more
            + self.HIDDEN * self.hidden
            + self.QUERIES * queries
            + self.KEYS * keys
            + inside.kept
            + self.arch.num_heads / self.split * 4 / self.element
        )

    @property
    def activations(self) -> int:
        """Kept when a backward pass begins, of all micro-batches under way."""
        kept = sum(map(self._layer, self.layers))
        if self.recompute is not None and self.recompute.granularity == "selective":
            kept -= sum(inside.kept for inside in self.layers)
        elif self.recompute is not None:
            again = self.recompute.again(len(self.layers))  # the first ones
            kept = sum(map(self._layer, self.layers[again:])) + again / self._chunk * self.hidden
        return self._bytes(self.under_way * kept + self.AROUND * self.arch.hidden_size)

    @property
    def in_hand(self) -> int:
        """What one layer takes besides in its backward pass, when the logits are gone."""
        return self._bytes(max(map(self._in_hand, self.layers)))

    def _in_hand(self, inside: _Inside) -> float:
        if self.recompute is None:
            return inside.in_hand
        is_full = self.recompute.granularity == "full"
        return inside.in_hand + (self._chunk * self._layer(inside) if is_full else inside.kept)

    @property
    def logits(self) -> int:
        """On the last stage, at the tokens that are learnt."""
        if not self.is_last or self.arch.value_head:
            return 0
        entry = self.LOGITS + (self.BENT if self.arch.scales.logit_cap is not None else 0)
        return int(entry * self.learnt * self.arch.vocab_size / self.split)

    @property
    def _chunk(self) -> int:
        """Layers that are computed again together."""
        assert self.recompute is not None
        return self.recompute.num_layers if self.recompute.method == "uniform" else 1

    def _bytes(self, numbers: float) -> int:
        return int(numbers * self.tokens * self.element)
