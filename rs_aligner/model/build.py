"""The Megatron model of an architecture: `GPTModel` with the layers that its family says.

A reward model has a value head in the place of the output layer. The output layer works only where a line of
rows asks for something: most tokens of a prompt have logits that nobody looks at.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch.nn import functional

from rs_aligner.config.recompute import Recompute
from rs_aligner.model import installed
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.balance import Balance
from rs_aligner.model.ends import finished_logits, scaled_embedding
from rs_aligner.model.experts import mixtures
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.line import Line
from rs_aligner.model.modules import BiasedMLP, ValueHead
from rs_aligner.model.rotary import Rotary
from rs_aligner.model.runtime import Runtime

# Megatron 0.19 says at every build that GPTModel gives way to HybridModel: that is for us (docs/design.md).
logging.getLogger(GPTModel.__module__).addFilter(lambda record: "DEPRECATED" not in record.getMessage())


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
    for name, size in (
        ("num_attention_heads", arch.num_heads),
        ("num_key_value_heads", arch.num_kv_heads),
        ("vocab_size", arch.vocab_size),
        *(("intermediate_size", size) for size in arch.mlp_sizes),
    ):
        if size % runtime.tp_size:
            raise ValueError(
                f"model.tensor_model_parallel_size={runtime.tp_size} does not divide the model's {name}, "
                f"{size}"
            )
    experts = 1 if arch.experts is None else arch.experts.number
    if experts % runtime.ep_size:
        raise ValueError(
            f"model.expert_model_parallel_size={runtime.ep_size} "
            + (
                f"does not divide the model's {experts} experts"
                if arch.experts
                else "is for mixtures of experts"
            )
        )
    if arch.num_layers % runtime.pp_size:
        raise ValueError(
            f"model.pipeline_model_parallel_size={runtime.pp_size} does not divide the model's "
            f"{arch.num_layers} layers"
        )
    of_family = {"ffn_hidden_size": arch.intermediate_size, **family_of(arch).megatron(arch)}
    return TransformerConfig(
        num_layers=arch.num_layers,
        hidden_size=arch.hidden_size,
        num_attention_heads=arch.num_heads,
        num_query_groups=arch.num_kv_heads,
        kv_channels=arch.head_dim,
        layernorm_epsilon=arch.norm_eps,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=runtime.tp_size,
        pipeline_model_parallel_size=runtime.pp_size,
        expert_model_parallel_size=runtime.ep_size,
        sequence_parallel=sequence_parallel,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # the line above insists on it; ours needs none
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
        **of_family,
    )


class LineModel(GPTModel):
    """Megatron's model, whose output layer works only at the places that a line asks for."""

    def _postprocess(
        self, hidden_states: torch.Tensor, *args: Any, packed_seq_params: Line | None = None, **kwargs: Any
    ) -> torch.Tensor:
        places = None if packed_seq_params is None else packed_seq_params.places
        if not self.post_process or places is None:
            return super()._postprocess(hidden_states, *args, packed_seq_params=packed_seq_params, **kwargs)
        head, was_parallel = self.output_layer, self.output_layer.sequence_parallel
        if was_parallel:
            # The places lie anywhere in the sequence. The output layer then sums the gradient over the ranks,
            # so each only has to take its part of it here.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False
            )
        # The layer looks at this as it is called, and keeps to it in its backward pass.
        head.sequence_parallel = False
        try:
            return super()._postprocess(
                hidden_states.flatten(0, 1).index_select(0, places).unsqueeze(1),
                *args,
                packed_seq_params=packed_seq_params,
                **kwargs,
            )
        finally:
            head.sequence_parallel = was_parallel

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The negative log-probability of each label, `[B, S]` in float32, from `logits` `[S, B, V_rank]`."""
        if self.config.tensor_model_parallel_size > 1:
            losses: torch.Tensor = super().compute_language_model_loss(labels, logits)
            return losses
        # What Megatron has for a vocabulary that is shared out passes over the logits twice as often.
        nll = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.transpose(0, 1).flatten(), reduction="none"
        )
        return nll.view(logits.shape[:2]).transpose(0, 1)


def build_model(arch: Architecture, config: TransformerConfig, runtime: Runtime) -> GPTModel:
    """This rank's part of the model, randomly initialised, on the rank's device."""
    family = family_of(arch)
    if runtime.rank == 0:
        installed.tell(config)
    block = TransformerBlockSubmodules(
        layer_specs=[_layer(one) for one in arch.stage(runtime.pp_rank, runtime.pp_size)],
        layer_norm=ModuleSpec(module=family.final_norm()),
    )
    with runtime.cuda_stand_in():
        model = LineModel(
            config,
            block,
            vocab_size=arch.vocab_size,
            max_sequence_length=arch.max_positions,
            pre_process=runtime.is_first_stage,
            post_process=runtime.is_last_stage,
            share_embeddings_and_output_weights=arch.tied_embeddings,
            **family.gpt(arch),
        )
    model.rotary_pos_emb = Rotary(arch.ropes, arch.head_dim, runtime.device)
    model.position_embedding_type = "rope"  # asks for that table; what the embedding adds is in it already
    if arch.learnt_positions and runtime.is_first_stage:
        model.embedding.position_embeddings.to(
            config.params_dtype
        )  # Megatron's are float32, whatever that is
    if arch.value_head and runtime.is_last_stage:
        model.output_layer = ValueHead(config)
    elif runtime.is_last_stage:
        model.output_layer.register_forward_hook(partial(_scale_logits, arch))
    if runtime.is_first_stage and arch.scales.embedding != 1:
        model.embedding.register_forward_hook(partial(_scale_embedding, arch))
    if arch.experts is not None and arch.experts.balance and not arch.value_head:
        model.balance = Balance(arch.experts)
        for mixture in mixtures(model):
            mixture.router.balance = model.balance
    if config.recompute_granularity == "full" and runtime.is_first_stage:
        model.embedding.register_forward_hook(_let_gradients_through)
    return model.to(runtime.device)


def _layer(arch: Architecture) -> ModuleSpec:
    layer = family_of(arch).spec(arch)
    if arch.mlp_bias:
        layer.submodules.mlp = BiasedMLP.in_place_of(layer.submodules.mlp)
    return layer


def _scale_embedding(
    arch: Architecture, embedding: object, tokens: object, hidden: torch.Tensor
) -> torch.Tensor:
    return scaled_embedding(arch, hidden)


def _scale_logits(
    arch: Architecture, head: object, hidden: object, output: tuple[torch.Tensor, None]
) -> tuple[torch.Tensor, None]:
    return finished_logits(arch, output[0]), output[1]


def _let_gradients_through(embedding: object, tokens: object, hidden: torch.Tensor) -> None:
    """Megatron computes layers again for an input with a gradient only; a frozen embedding's has none."""
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()
