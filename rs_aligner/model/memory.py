"""How much memory a rank will need, before there is a model.

Exact are weights, gradients and the optimizer's state; what a step keeps is in `activations.py`. Tests hold
it to what a training allocates on a CPU, within 15 %. Left out on purpose: what is not the model's (Python, a
GPU's context, buffers of collectives), and whether there is room (`commands/fitting.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rs_aligner.config import TrainConfig, TrainRewardModelConfig, TrainRSConfig
from rs_aligner.model.activations import Lengths, Pass
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.registry import as_reward_model
from rs_aligner.model.lora_spec import ROW_PARALLEL, LoraSpec, projections
from rs_aligner.model.lora_wanted import spec_of
from rs_aligner.model.sizes import expert_parameters, stage_parameters
from rs_aligner.model.tensors import num_parameters
from rs_aligner.model.wave import wave_of
from rs_aligner.objective.terms import compares_logits

ADAM_BYTES = 8  # two running means in float32
MASTER_BYTES = 4  # of a bf16 weight: its float32 twin in the optimizer
GRADIENT_BYTES = 4  # gradients are added up in float32
PIECE = 1 << 26
"""Parameters whose states come to a GPU together, where they wait in the CPU's memory: of 768 MiB."""
_PREFILL_TOKENS = 8192  # of a pass over prompts (`generation.cohorts`)
_CHOICE_BYTES = 16  # an entry of the vocabulary while a token is chosen: logits, their order, their sums


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a rank: of the one that needs most.

    Attributes:
        weights, gradients, optimizer: as long as the run goes on, but for what is away.
        away: of gradients and optimizer what gives its memory up while rollouts are sampled.
        waiting: what is in the CPU's memory meanwhile, beside a GPU: states of the optimizer, the starting
            weights, the base of adapters.
        start: the copy of the starting weights, where it is in the same memory.
        activations: kept when a backward pass begins, at most.
        in_hand: what a layer's backward pass takes besides.
        logits: with their gradient; they are gone before.
        step: what the optimizer's step takes besides, when there are no activations.
        loading: while the model is built; without what is held later.
        cache: keys and values of all rollouts at once, or as many as there is a budget for.
        decoding: what choosing tokens takes besides.
        saving: a checkpoint on the ranks that write the optimizer's state, and on the others.
        on_gpu: whether a checkpoint is put together elsewhere, in the memory beside the device.
    """

    weights: int
    gradients: int
    optimizer: int
    away: int
    waiting: int
    start: int
    activations: int
    in_hand: int
    logits: int
    step: int
    loading: int
    cache: int
    decoding: int
    saving: tuple[int, int]
    on_gpu: bool

    @property
    def held(self) -> int:
        """As long as the run goes on; while rollouts are sampled it may be less."""
        return self.weights + self.gradients + self.optimizer + self.start

    @property
    def held_sampling(self) -> int:
        """Of it, while rollouts are sampled."""
        return self.held - self.away

    @property
    def training(self) -> int:
        """At most in an optimizer step."""
        return self.held + max(self.activations + max(self.logits, self.in_hand), self.step)

    @property
    def sampling(self) -> int:
        """At most while rollouts are sampled."""
        return self.held_sampling + self.cache + self.decoding

    @property
    def most(self) -> int:
        """At any time."""
        saving = 0 if self.on_gpu else self.saving[0]
        return max(self.loading, self.training, self.sampling, self.held + saving)


def uses_bf16(precision: str, on_gpu: bool) -> bool:
    """What `trainer.precision` means: `auto` is bf16 on a GPU."""
    return precision == "bf16" or (precision == "auto" and on_gpu)


def checkpoint_bytes(arch: Architecture, *, bf16: bool) -> int:
    """Weights and optimizer state of the whole model, as a checkpoint has them."""
    return num_parameters(arch) * ((2 + 4 if bf16 else 4) + ADAM_BYTES)


def training_bytes(arch: Architecture, config: TrainConfig, *, bf16: bool, on_gpu: bool) -> int:
    """Weights, gradients, optimizer and the starting weights of the largest rank, where it trains."""
    nothing = Lengths(1, 1, 1)
    return memory_of(arch, config, nothing, bf16=bf16, on_gpu=on_gpu).held


def memory_of(
    arch: Architecture,
    config: TrainConfig,
    lengths: Lengths,
    *,
    bf16: bool,
    on_gpu: bool,
    cached: int | None = None,
) -> Memory:
    """The memory of the rank that needs most.

    Args:
        arch: the model's.
        config: a checked config.
        lengths: of its data.
        bf16: in which type it trains; else float32.
        on_gpu: where.
        cached: bytes of a number of the decoder's cache, 0 where a rank has none; None for what our own
            engines take: float32 on a CPU, the model's type on a GPU.
    """
    element = 2 if bf16 else 4
    on_rank = (element if on_gpu else 4) if cached is None else cached
    if isinstance(config, TrainRewardModelConfig):
        arch = as_reward_model(arch)
    tp, pp = config.model.tensor_model_parallel_size, config.model.pipeline_model_parallel_size
    ep, spec = config.model.expert_model_parallel_size, spec_of(config.model.peft, arch)
    found = []
    for stage, size in enumerate(stage_parameters(arch, tp, pp, ep)):
        sizes = _Sizes(size, size, 0, expert_parameters(arch, tp, pp, stage) // ep)
        if spec is not None:
            adapters, adapted = _adapters(arch, spec, tp)
            layers = arch.num_layers // pp
            head = arch.hidden_size if arch.value_head and stage == pp - 1 else 0
            sizes = _Sizes(size + layers * adapters, layers * adapters + head, layers * adapted, 0)
        found.append(_of_stage(arch, config, lengths, stage, sizes, _Types(element, on_rank), on_gpu))
    return max(found, key=lambda memory: memory.most)


class _Sizes(NamedTuple):
    """Numbers of a rank: its weights, those that are trained, and those that adapters are merged into.

    Of those that are trained, `experts`; fewer replicas have the same where they share these out.
    """

    weights: int
    trained: int
    adapted: int
    experts: int


class _Types(NamedTuple):
    """Bytes of a number: of a weight, and of the decoder's cache."""

    weight: int
    cached: int


def _adapters(arch: Architecture, spec: LoraSpec, ranks: int) -> tuple[int, int]:
    """Of a layer on a rank: weights of its adapters, and of the matrices that have some.

    Of an adapter's two matrices the one beside the side that is split is split with it.
    """
    own = adapted = 0
    for linear, matrices in projections(arch).items():
        by_rows = linear in ROW_PARALLEL
        for name, (outputs, inputs) in matrices.items():
            if name in spec.targets:
                split, other = (inputs, outputs) if by_rows else (outputs, inputs)
                own += spec.settings.rank * (split // ranks + other)
                adapted += outputs * inputs // ranks
    return own, adapted


def _of_stage(
    arch: Architecture,
    config: TrainConfig,
    lengths: Lengths,
    stage: int,
    sizes: _Sizes,
    types: _Types,
    on_gpu: bool,
) -> Memory:
    element = types.weight
    replicas = config.data_parallel_size
    shards = replicas if config.model.optim.distributed else 1
    size, trained = sizes.weights, sizes.trained
    offload = _offloaded(config, on_gpu)
    of_experts = max(1, shards // config.model.expert_model_parallel_size)
    shared_out = sizes.experts if config.model.expert_model_parallel_size > 1 else 0
    stepped = -(-(trained - sizes.experts) // shards) - (-sizes.experts // of_experts)
    states = (ADAM_BYTES + (MASTER_BYTES if element == 2 else 0)) * stepped
    elsewhere = int(offload.fraction * states)
    cache, decoding = _sampling(arch, config, lengths, types, on_gpu=on_gpu)
    passing = Pass(arch, config, lengths, stage, element)
    start = element * trained if _needs_start(config) else 0
    keeps_start = not (on_gpu and _offloads_start(config))
    samples = isinstance(config, TrainRSConfig) and bool(lengths.prompts)
    base = element * sizes.adapted if samples else 0  # merged into; a GPU's waits in the memory beside it
    waits = states if offload.while_sampling else elsewhere
    return Memory(
        weights=element * size,
        gradients=GRADIENT_BYTES * trained,
        optimizer=states - elsewhere,
        away=GRADIENT_BYTES * trained + states - elsewhere if offload.while_sampling else 0,
        waiting=waits + (0 if keeps_start else start) + base if on_gpu else 0,
        start=start if keeps_start else 0,
        activations=passing.activations,
        in_hand=passing.in_hand,
        logits=passing.logits,
        # Torch's Adam has all roots at once on a GPU; gloo takes a second copy of the weights.
        step=_at_once(arch, config, states, stepped) if on_gpu else element * trained,
        loading=element * (size + trained) + GRADIENT_BYTES * trained,
        cache=cache,
        decoding=decoding + (0 if on_gpu else base),
        # Gathered, and laid out by parameter; with the rank's own share on the way. Others: their experts.
        saving=(_SAVED * (2 * trained + stepped), _SAVED * (2 * shared_out + stepped))
        if config.model.optim.distributed
        else (0, 0),
        on_gpu=on_gpu,
    )


class _Offloaded(NamedTuple):
    """What of the optimizer waits in the CPU's memory: while rollouts are sampled, and all the time."""

    while_sampling: bool
    fraction: float


def _offloaded(config: TrainConfig, on_gpu: bool) -> _Offloaded:
    """On a CPU nothing does: it is in that memory."""
    if not on_gpu:
        return _Offloaded(False, 0.0)
    while_sampling = isinstance(config, TrainRSConfig) and config.model.rs.offload_adam_states
    return _Offloaded(while_sampling, config.model.optim.offload_fraction)


def _at_once(arch: Architecture, config: TrainConfig, states: int, stepped: int) -> int:
    """What an update takes on a GPU: a root for each parameter stepped, and states that come in for it."""
    fraction = config.model.optim.offload_fraction
    stay = int((1 - fraction) * stepped)
    if not fraction:
        return 4 * stay
    largest = arch.hidden_size * max(arch.vocab_size, 2 * max(arch.mlp_sizes))  # what a rank has of it is
    ranks = config.model.tensor_model_parallel_size * config.data_parallel_size  # not cut any further
    piece = min(stepped - stay, PIECE + largest // ranks)
    return max(4 * stay, (4 + states // max(1, stepped)) * piece)


_SAVED = 12  # bytes of a parameter's state as a checkpoint has it: the float32 weight and Adam's two means


def _needs_start(config: TrainConfig) -> bool:
    """Whether there is a copy of the starting weights."""
    if not isinstance(config, TrainRSConfig):
        return False
    return config.model.rs.needs_start or compares_logits(config.model.rs.objective)


def _offloads_start(config: TrainConfig) -> bool:
    return isinstance(config, TrainRSConfig) and config.model.rs.objective.offload_reference


def _sampling(
    arch: Architecture, config: TrainConfig, lengths: Lengths, types: _Types, *, on_gpu: bool
) -> tuple[int, int]:
    """The decoder's cache, and what choosing tokens takes besides."""
    if not lengths.prompts or not isinstance(config, TrainRSConfig) or not types.cached:
        return 0, 0
    wave = wave_of(config, lengths.prompts, lengths.prompt)
    cache = wave.cache_bytes(arch, types.cached) // config.model_parallel_size
    budget = config.model.rs.generation.kv_cache_bytes
    rollouts = wave.prompts * wave.each
    if budget is not None and budget < cache:
        rollouts, cache = -(-rollouts * budget // cache), budget
    if not on_gpu:
        return cache, 0  # a small model's tokens are chosen a row at a time
    wide = 3 * max(arch.mlp_sizes) + 4 * arch.hidden_size
    prefill = min(_PREFILL_TOKENS, lengths.prompts * lengths.prompt) * wide * types.weight
    return cache, rollouts * arch.vocab_size * _CHOICE_BYTES + prefill // config.model_parallel_size
