"""The policy's forward pass on the CPU kernels, over pages of keys and values.

Like `network.Network` it reads the training model's own weights and runs the same operations in the same
order; activations are float32 whatever the weights are. A token's numbers do not depend on what else is in
the batch, to the last bit, so a rollout is the same in every wave (`kernels.c`).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from rs_aligner.generation.native import (
    LANES,
    MAX_SHARING,
    Batch,
    Kernels,
    Layer,
    Model,
    tile_shape,
)
from rs_aligner.generation.network import rotary_tables
from rs_aligner.generation.pages import PagePool
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.compiled import address
from rs_aligner.model.ends import finished_logits, scaled_embedding
from rs_aligner.model.runtime import Runtime


class TokenBatch:
    """Tokens that go through the model together: any number of any rows, a row's own in order.

    Args:
        positions: int32 `[R]`, each token's place in its sequence; may be changed in place.
        pages: int32 `[R, M]`, its sequence's pages.
        owners: int `[R]`: neighbours with the same one share pages.
        common: int `[R]`, how many, full ones from the start; among neighbours of an owner it does not fall.
    """

    def __init__(
        self, positions: np.ndarray, pages: np.ndarray, owners: np.ndarray, common: np.ndarray
    ) -> None:
        new = np.flatnonzero(np.diff(owners, prepend=owners[:1] - 1))
        runs = zip(new, [*new[1:], len(owners)], strict=True)
        items = np.concatenate([np.arange(start, end, MAX_SHARING) for start, end in runs])
        begin = np.append(items, len(owners)).astype(np.int32)
        self.positions = positions
        self._held = (np.ascontiguousarray(pages), begin, common[items].astype(np.int32))
        self.native = Batch(len(owners), len(items), address(positions), *map(address, self._held))


class NativeNetwork:
    """The policy on the CPU kernels.

    Args:
        model: this rank's part of the policy (Megatron's `GPTModel`), on a CPU.
        arch: its architecture.
        runtime: of this rank.
        kernels: made for the architecture's heads.
        allowed: bool `[V]`, the ids that may be sampled; None for all.
    """

    def __init__(
        self,
        model: GPTModel,
        arch: Architecture,
        runtime: Runtime,
        kernels: Kernels,
        allowed: torch.Tensor | None = None,
    ) -> None:
        self.model, self.arch, self.runtime, self.kernels = model, arch, runtime, kernels
        self.allowed = allowed
        self.num_layers = len(model.decoder.layers)
        self.num_kv_heads = arch.num_kv_heads // runtime.tp_size
        self.tp_group = parallel_state.get_tensor_model_parallel_group()
        self.pp_group = parallel_state.get_pipeline_model_parallel_group()
        self.pp_ranks = dist.get_process_group_ranks(self.pp_group)
        self.turns = [tuple(x.contiguous() for x in tables) for tables in rotary_tables(model, arch)]

    @property
    def bytes_per_page(self) -> int:
        """What a page takes in this rank's cache, all layers together."""
        return 2 * 4 * self.num_layers * self.num_kv_heads * self.arch.head_dim * LANES


class Session:
    """The weights as they are now, working memory, and a cache: what a wave needs.

    Args:
        network: the policy.
        max_rows: most tokens of a run.
        max_wanted: most logits of a run.
        num_pages: pages of the cache.
        max_pages: most pages of a sequence.
    """

    def __init__(
        self, network: NativeNetwork, max_rows: int, max_wanted: int, num_pages: int, max_pages: int
    ) -> None:
        self.network, self.arch, self.runtime = network, network.arch, network.runtime
        self.kernels = network.kernels
        arch, heads, width = network.arch, network.num_kv_heads, network.arch.hidden_size
        dim, group = arch.head_dim, arch.num_heads // arch.num_kv_heads
        self.pool = PagePool(network.num_layers, heads * dim, num_pages)
        mlp_width = arch.intermediate_size // self.runtime.tp_size
        vocab = arch.vocab_size // self.runtime.tp_size if self.runtime.is_last_stage else 0
        widths = {
            **dict.fromkeys(("hidden", "partial", "normed"), width),
            **dict.fromkeys(("queries", "mixed"), heads * group * dim),
            "qkv": heads * (group + 2) * dim,
            "gate_up": 2 * mlp_width,
            "active": mlp_width,
        }
        # Zeros: lanes behind the last row are computed, too, though nobody reads them.
        self._buffers = {name: torch.zeros(tile_shape(size, max_rows)) for name, size in widths.items()}
        for name, size in (("wanted", width), ("logits", vocab)):
            self._buffers[name] = torch.zeros(tile_shape(size, max_wanted))
        threads = network.runtime.threads.most
        self._buffers["scores"] = torch.zeros(threads * self.kernels.attend_room(max_pages))
        self._kept: list[torch.Tensor] = []  # vectors in float32, for as long as their addresses are used
        layers = network.model.decoder.layers
        self._half = layers[0].mlp.linear_fc1.weight.dtype == torch.bfloat16
        if self.runtime.is_first_stage:
            self._embedding = network.model.embedding.word_embeddings.weight
        if self.runtime.is_last_stage:
            shares = arch.tied_embeddings and self.runtime.is_first_stage
            self._head = self._embedding if shares else network.model.output_layer.weight
            self._final_norm = self._as_float(network.model.decoder.final_layernorm.weight)
        self._layers = (Layer * len(layers))(*(self._layer(number, one) for number, one in enumerate(layers)))
        used = ("hidden", "partial", "normed", "qkv", "queries", "mixed", "gate_up", "active", "scores")
        self._model = Model(
            width=width,
            kv_heads=heads,
            mlp_width=mlp_width,
            max_pages=max_pages,
            half=self._half,
            threads=threads,
            sum=self.runtime.tp_size == 1,
            eps=arch.norm_eps,
            scale=arch.score_scale,
            **{name: address(self._buffers[name]) for name in used},
        )

    def run(self, tokens: np.ndarray, batch: TokenBatch, wanted: np.ndarray | None = None) -> torch.Tensor:
        """Run tokens; their keys and values go into their pages.

        Args:
            tokens: int32 `[R]`.
            batch: where they stand.
            wanted: int32 `[W]`, the tokens whose logits are wanted; None for all.

        Returns:
            float32 logits behind the tokens, in tiles: `tile_shape(V, W)` (on the last pipeline stage; else
            empty). They are overwritten by the next run.
        """
        rows, stage = len(tokens), self.runtime.pp_rank
        network, hidden = self.network, self._buffer("hidden", rows)
        if self.runtime.is_first_stage:
            self._embed(tokens, hidden)
        else:
            dist.recv(hidden, network.pp_ranks[stage - 1], group=network.pp_group)
        self._run_layers(batch, hidden, rows)
        if not self.runtime.is_last_stage:
            dist.send(hidden, network.pp_ranks[stage + 1], group=network.pp_group)
            return torch.empty(0)
        if wanted is not None:
            rows = len(wanted)
            found = self._buffer("wanted", rows)
            self.kernels.take(address(hidden), address(wanted), address(found), self.arch.hidden_size, rows)
            hidden = found
        return self._logits(hidden, rows)

    def _run_layers(self, batch: TokenBatch, hidden: torch.Tensor, rows: int) -> None:
        halves = 2 * self.network.num_layers
        what = (self._layers, ctypes.byref(self._model), ctypes.byref(batch.native))
        if self.runtime.tp_size == 1:
            self.kernels.run(*what, 0, halves)
            return
        partial = self._buffer("partial", rows)
        for half in range(halves):
            self.kernels.run(*what, half, half + 1)
            hidden += self._sum(partial)

    def _embed(self, tokens: np.ndarray, hidden: torch.Tensor) -> None:
        count, width = self._embedding.shape
        self.kernels.embed(
            *(address(self._embedding), self._half, address(tokens), self.runtime.tp_rank * count, count),
            *(address(hidden), width, len(tokens)),
        )
        self._sum(hidden)
        if self.arch.scales.embedding != 1:
            hidden.copy_(scaled_embedding(self.arch, hidden))

    def _logits(self, hidden: torch.Tensor, rows: int) -> torch.Tensor:
        count, width = self._head.shape
        normed, logits = self._buffers["normed"], self._buffer("logits", rows)
        norm = address(self._final_norm)
        self.kernels.norm(address(hidden), norm, address(normed), width, rows, self.arch.norm_eps)
        self.kernels.linear(
            *(address(self._head), self._half, None, count, width, address(normed), address(logits)),
            *(rows, 0, self._model.threads),
        )
        logits = finished_logits(self.arch, logits)
        if self.runtime.tp_size == 1:
            return logits
        parts = [torch.empty_like(logits) for _ in range(self.runtime.tp_size)]
        dist.all_gather(parts, logits, group=self.network.tp_group)
        return torch.cat(parts, dim=1)

    def _layer(self, number: int, layer: Any) -> Layer:  # Megatron's TransformerLayer
        attention, mlp = layer.self_attention, layer.mlp
        norms = (
            (attention.q_layernorm.weight, attention.k_layernorm.weight)
            if self.arch.qk_norm
            else (None, None)
        )
        whole = self.runtime.pp_rank * self.network.num_layers + number
        turn = self.network.turns[self.arch.rope_place(whole)]
        small = [self._as_float(vector) for vector in (attention.linear_qkv.bias, *norms)]
        return Layer(
            address(self._as_float(layer.input_layernorm.weight)),
            *(address(attention.linear_qkv.weight), *map(address, small)),
            *(address(attention.linear_proj.weight), address(self._as_float(layer.pre_mlp_layernorm.weight))),
            *(address(mlp.linear_fc1.weight), address(mlp.linear_fc2.weight)),
            *(address(self.pool.keys[number]), address(self.pool.values[number])),
            *map(address, turn),
            self.arch.window(whole) or 0,
        )

    def _as_float(self, vector: torch.Tensor | None) -> torch.Tensor | None:
        """A norm's weights or a bias in float32: the few numbers that are copied where weights are bf16."""
        if vector is None or vector.dtype == torch.float32:
            return vector
        self._kept.append(vector.detach().float())
        return self._kept[-1]

    def _sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Add up what the tensor-parallel ranks each computed of a sum."""
        if self.runtime.tp_size > 1:
            dist.all_reduce(partial, group=self.network.tp_group)
        return partial

    def _buffer(self, name: str, rows: int) -> torch.Tensor:
        """The part of a buffer that is used for so many rows."""
        whole = self._buffers[name]
        return whole[: tile_shape(0, rows)[0]]
