"""Settings near to those of a training that need less memory, those that cost least first.

Left out on purpose: which of them fit (`fitting.py`), and settings that change what is learnt, but for LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rs_aligner.config import TrainConfig, TrainRSConfig
from rs_aligner.config.base import Section

_MOST_NODES = 64
_S = TypeVar("_S", bound=Section)


def settings(config: TrainConfig, *, others: bool, experts: int = 1) -> Iterator[dict[str, Any]]:
    """Changes, those that cost least first; `others`: to other layouts and numbers of nodes.

    To offload the optimizer costs copies of its states in each step: it comes where no layout of as many
    nodes does without. LoRA, which learns otherwise, comes where the layout allows nothing else. `experts`
    are those of a layer; where there are several, ranks may share them out.
    """
    adapted: list[dict[str, Any]] = [{}]
    if not others and not config.model.peft.is_lora:
        adapted.append({"model.peft.peft_scheme": "lora"})
    layouts: Iterable[list[dict[str, Any]]] = _layouts(config, experts) if others else [[{}]]
    for scheme in adapted:
        for same_nodes in layouts:
            for offload in _offloads(config):
                for layout in same_nodes:
                    for inner in _within(config):
                        if scheme or layout or inner or offload:
                            yield {**scheme, **layout, **inner, **offload}


def _layouts(config: TrainConfig, experts: int) -> Iterator[list[dict[str, Any]]]:
    """Other layouts, those of as many nodes together."""
    model, trainer = config.model, config.trainer
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    held = tensor, pipeline, model.expert_model_parallel_size
    powers = [1 << power for power in range(7)]
    widest = max(trainer.devices, tensor)
    shares = [one for one in powers if experts % one == 0] if model.optim.distributed else [1]
    sizes = {(tp, pp, ep) for tp in powers for pp in powers for ep in shares if tp <= widest} | {held}
    for nodes in (trainer.num_nodes * power for power in powers):
        if nodes > max(_MOST_NODES, trainer.num_nodes):
            return
        yield [
            {
                "model.tensor_model_parallel_size": tp,
                "model.pipeline_model_parallel_size": pp,
                **({"model.expert_model_parallel_size": ep} if experts > 1 else {}),
                **({"trainer.num_nodes": nodes} if nodes != trainer.num_nodes else {}),
            }
            for tp, pp, ep in sorted(sizes, key=lambda size: (math.prod(size), size[0] * size[1], size[1]))
            if tp * pp * ep <= nodes * trainer.devices
            and (nodes != trainer.num_nodes or (tp, pp, ep) != held)
        ]


def _offloads(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """What may wait in the memory beside a GPU."""
    yield {}
    gives_way, stays = {"model.rs.offload_adam_states": True}, {"model.optim.offload_fraction": 1}
    can_give_way = isinstance(config, TrainRSConfig) and not config.model.rs.offload_adam_states
    can_stay = config.model.optim.distributed and config.model.optim.offload_fraction < 1
    if can_give_way:
        yield gives_way
    if can_stay:
        yield stays
    if can_give_way and can_stay:
        yield {**gives_way, **stays}


def _within(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Changes that leave the layout as it is."""
    yield {}
    recompute, name = "model.activations_checkpoint_granularity", "model.micro_batch_size"
    least, micro = 1, config.model.micro_batch_size
    if config.model.max_tokens_per_microbatch is not None:
        name, least, micro = "model.max_tokens_per_microbatch", 512, config.model.max_tokens_per_microbatch
    is_now = config.model.recompute
    further = ["selective", "full"]
    if is_now is not None:
        further = further[further.index(is_now.granularity) + 1 :]
    sizes = []
    while micro > least:
        micro //= 2
        sizes.append(micro)
    yield from ({recompute: one} for one in further)
    for size in sizes:
        yield {name: size}
        yield from ({name: size, recompute: one} for one in further)


def changed(section: _S, values: Mapping[str, Any]) -> _S:
    """A section with other values, by dotted keys."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        new = changed(getattr(section, name), {rest: value}) if rest else value
        section = section.model_copy(update={name: new})
    return section
