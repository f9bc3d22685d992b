"""Fused parts of others for a GPU: which are used is chosen when a model is built and logged; none is needed.

- Attention of a line's rows: flash-attn's kernel for rows of any lengths, in one call, where it can be
  imported and the weights are of 16 bits; else torch's, a call for each length (`attention.py`).
- Adam: Transformer Engine's, else Apex's, else torch's; Megatron chooses (`policy/adam_states.py`).
- Linear layers and norms are Megatron's and our own, also where Transformer Engine is installed: its layers
  join a norm with the product behind it and name their weights otherwise, and adapters, the decoder, the
  checkpoints and the export read them by name.

Nobody has run this on a GPU: tests hold it with a stand-in of flash-attn's function on a CPU. Left out on
purpose: fp8, and settings for any of it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig

from rs_aligner.model.attending import Rule
from rs_aligner.model.line import Line

_logger = logging.getLogger("rs_aligner")
Varlen = Callable[..., torch.Tensor]
MAX_HEAD_DIM = 256
_FUNCTION = "flash_attn_varlen_func"
_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def varlen_of(config: TransformerConfig) -> tuple[Varlen | None, str]:
    """Flash-attn's function for rows of any lengths; None where torch's is used, and why."""
    if config.use_cpu_initialization:
        return None, "it is for GPUs"
    if config.params_dtype not in _SIXTEEN_BITS:
        return None, "flash-attn is for weights of 16 bits"
    if config.kv_channels > MAX_HEAD_DIM:
        return None, f"flash-attn is for heads of at most {MAX_HEAD_DIM} numbers"
    if (capability := _capability()) is not None and capability < (8, 0):
        return None, "flash-attn is for GPUs of compute capability 8 or more"
    try:
        found: Varlen | None = getattr(importlib.import_module("flash_attn"), _FUNCTION, None)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "flash_attn":
            return None, "flash-attn is not installed"
        return None, f"flash-attn cannot be used ({error})"  # built for another torch, perhaps
    if found is None:
        return None, f"flash-attn cannot be used (no {_FUNCTION})"
    return found, " ".join(filter(None, ("flash-attn", _version("flash-attn"))))


def attend(
    varlen: Varlen, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, line: Line, rule: Rule
) -> torch.Tensor:
    """Causal attention of a line's rows in one call, `[T, 1, heads, dim]` to `[T, 1, heads * dim]`.

    Keys and values may have fewer heads. Its backward pass adds up in one order, so that it can be repeated.
    """
    ends = line.ends(query.device)
    more: dict[str, Any] = {}
    if rule.window is not None:
        more["window_size"] = (rule.window - 1, 0)  # before, and behind
    if rule.cap is not None:
        more["softcap"] = rule.cap
    out = varlen(
        *(x[:, 0] for x in (query, key, value)),
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=line.rows.longest,
        max_seqlen_k=line.rows.longest,
        dropout_p=0.0,
        softmax_scale=rule.scale,
        causal=True,
        deterministic=True,
        **more,
    )
    return out.flatten(1).unsqueeze(1)


def tell(config: TransformerConfig) -> None:
    """Say what was chosen for a GPU."""
    if config.use_cpu_initialization:
        return
    varlen, why = varlen_of(config)
    _logger.info(
        "attention: %s", f"{why}, a call for all rows" if varlen else f"torch's, a call a length: {why}"
    )
    if (version := _version("transformer-engine")) is not None:
        _logger.info("layers: Megatron's; Transformer Engine %s is used for Adam only", version)


def _capability() -> tuple[int, int] | None:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
