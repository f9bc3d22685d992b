"""The Megatron model of a Llama-family architecture: `GPTModel` with modules of our own.

Megatron's local layer spec needs no further package. Its attention materialises the scores and
its norm refuses sequence parallelism, so both are replaced: attention by torch's fused kernel
(flash attention on a GPU), the norm by one that marks its weight as sequence-parallel. A reward
model has a value head in the place of the output layer.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch.nn import functional

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.runtime import Runtime


class RMSNorm(torch.nn.Module):
    """Root mean square norm over the last dimension (Zhang and Sennrich, 2019), sequence-parallel aware."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class FusedAttention(torch.nn.Module):
    """Causal attention by `scaled_dot_product_attention`, without dropout.

    Rows are padded on the right, so the causal mask alone keeps padding out of every real token.
    """

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        """`[S, B, heads, dim]` each; returns `[S, B, heads * dim]`."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3).flatten(2)


class ValueHead(torch.nn.Module):
    """One number for each position, `[S, B, 1]`: a linear map without bias, whole on every rank.

    Called as Megatron calls an output layer. Every tensor-parallel rank computes all of it from the
    same hidden states, so each has the whole gradient and nothing needs to be summed.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))

    def initialise(self, seed: int) -> None:
        """Draw new weights, the same on every rank: normal with variance 1 / (width + 1).

        Source: Stiennon et al., "Learning to summarize from human feedback" (2020), appendix B.1.
        """
        numbers = torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.weight.copy_(numbers / (self.weight.shape[1] + 1) ** 0.5)

    def forward(
        self, hidden: torch.Tensor, weight: None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, None]:
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        # In float32: bf16 has 8 bits for a number, and answers that differ would get the same reward.
        return functional.linear(hidden.float(), self.weight.float()), None


def transformer_config(
    arch: Architecture, runtime: Runtime, *, dtype: torch.dtype, sequence_parallel: bool = False
) -> TransformerConfig:
    """Megatron's config for an architecture in this layout.

    `calculate_per_token_loss` keeps Megatron from dividing by micro-batches and ranks: the loss
    that it is handed already has the denominator of the whole global batch.

    Raises:
        ValueError: a size that the layout does not divide.
    """
    for name, size, parts in (
        ("num_attention_heads", arch.num_heads, runtime.tp_size),
        ("num_key_value_heads", arch.num_kv_heads, runtime.tp_size),
        ("vocab_size", arch.vocab_size, runtime.tp_size),
        ("intermediate_size", arch.intermediate_size, runtime.tp_size),
    ):
        if size % parts:
            raise ValueError(
                f"model.tensor_model_parallel_size={parts} does not divide the model's {name}, {size}"
            )
    if arch.num_layers % runtime.pp_size:
        raise ValueError(
            f"model.pipeline_model_parallel_size={runtime.pp_size} does not divide the model's "
            f"{arch.num_layers} layers"
        )
    return TransformerConfig(
        num_layers=arch.num_layers,
        hidden_size=arch.hidden_size,
        num_attention_heads=arch.num_heads,
        num_query_groups=arch.num_kv_heads,
        kv_channels=arch.head_dim,
        ffn_hidden_size=arch.intermediate_size,
        normalization="RMSNorm",
        layernorm_epsilon=arch.norm_eps,
        gated_linear_unit=True,
        activation_func=functional.silu,
        add_bias_linear=False,
        add_qkv_bias=arch.qkv_bias,
        qk_layernorm=arch.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=runtime.tp_size,
        pipeline_model_parallel_size=runtime.pp_size,
        sequence_parallel=sequence_parallel,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # there are no experts, but the line above insists on it
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        calculate_per_token_loss=True,
        use_cpu_initialization=runtime.device.type == "cpu",
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
    )


def build_model(arch: Architecture, config: TransformerConfig, runtime: Runtime) -> GPTModel:
    """This rank's part of the model, randomly initialised, on the rank's device."""
    layer = get_gpt_layer_local_spec(qk_layernorm=arch.qk_norm, normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = FusedAttention
    if arch.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    block = TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=ModuleSpec(module=RMSNorm)
    )
    with runtime.cuda_stand_in():
        model = GPTModel(
            config,
            block,
            vocab_size=arch.vocab_size,
            max_sequence_length=arch.max_positions,
            pre_process=runtime.is_first_stage,
            post_process=runtime.is_last_stage,
            share_embeddings_and_output_weights=arch.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=arch.rope_theta,
            rope_scaling=arch.rope_scaling_factor is not None,
            rope_scaling_factor=arch.rope_scaling_factor or 8.0,
        )
    if arch.value_head and runtime.is_last_stage:
        model.output_layer = ValueHead(config)
    return model.to(runtime.device)
