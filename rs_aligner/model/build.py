"""The Megatron model of an architecture: `GPTModel` with the layers that its family says.

A reward model has a value head in the place of the output layer.
"""

from __future__ import annotations

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from rs_aligner.config.recompute import Recompute
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.modules import ValueHead
from rs_aligner.model.runtime import Runtime


def transformer_config(
    arch: Architecture,
    runtime: Runtime,
    *,
    dtype: torch.dtype,
    sequence_parallel: bool = False,
    recompute: Recompute | None = None,
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
        layernorm_epsilon=arch.norm_eps,
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
        **(recompute.settings if recompute is not None else {}),
        **family_of(arch).megatron(arch),
    )


def build_model(arch: Architecture, config: TransformerConfig, runtime: Runtime) -> GPTModel:
    """This rank's part of the model, randomly initialised, on the rank's device."""
    family = family_of(arch)
    block = TransformerBlockSubmodules(
        layer_specs=[family.spec(arch)] * get_num_layers_to_build(config),
        layer_norm=ModuleSpec(module=family.final_norm()),
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
            **family.gpt(arch),
        )
    if arch.value_head and runtime.is_last_stage:
        model.output_layer = ValueHead(config)
    if config.recompute_granularity == "full" and runtime.is_first_stage:
        model.embedding.register_forward_hook(_let_gradients_through)
    return model.to(runtime.device)


def _let_gradients_through(embedding: object, tokens: object, hidden: torch.Tensor) -> None:
    """Megatron computes layers again for an input with a gradient only; a frozen embedding's has none."""
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()
