"""The config tree of `serve_rollouts.yaml`: a vLLM server of rollouts.

Left out on purpose: how it is asked, which is `model.rs.generation` of a training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rs_aligner.config.base import (
    Count,
    Fraction,
    Port,
    Positive,
    Section,
    Size,
    Text,
    Texts,
    file_problems,
    problem,
)
from rs_aligner.model_folder import problem_with

_logger = logging.getLogger("rs_aligner")
OURS = {
    **dict.fromkeys(("--model", "--model-tag"), "pretrained_checkpoint.restore_from_path"),
    "--host": "inference.host",
    "--port": "inference.port",
    "--api-key": "inference.token_file",
    "--served-model-name": "inference.model_name",
    "--dtype": "vllm.dtype",
    "--max-model-len": "vllm.max_length",
    "--max-num-seqs": "vllm.max_num_seqs",
    **dict.fromkeys(("--tensor-parallel-size", "-tp"), "vllm.tensor_parallel_size"),
    "--gpu-memory-utilization": "vllm.gpu_memory_utilization",
    "--seed": "vllm.seed",
    **dict.fromkeys(("--enable-lora", "--max-lora-rank"), "lora_rank"),
    **dict.fromkeys(("--middleware", "--root-path", "--uds", "--trust-remote-code", "--config"), ""),
    **dict.fromkeys(("--generation-config", "--logprobs-mode", "--api-server-count"), ""),
    **dict.fromkeys(("--worker-extension-cls", "--logits-processors"), ""),
}
"""Switches of vLLM that are not given by hand, with the key that sets them; "" where nothing may."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.32 takes for the highest rank of adapters; those below it fit, too."""


class ServedModel(Section):
    """What the server starts with."""

    restore_from_path: Text
    """The model's Hugging Face folder."""

    def problems(self, key: str) -> Iterator[str]:
        """It is a folder that vLLM reads, too."""
        why = problem_with(self.restore_from_path)
        if why is None and not (Path(self.restore_from_path) / "config.json").is_file():
            why = "is a checkpoint, which vLLM does not read; name the folder that the run began with"
        if why is not None:
            yield problem(f"{key}.restore_from_path", self.restore_from_path, why)


class RolloutInferenceConfig(Section):
    """Where the server listens."""

    host: Text = "127.0.0.1"
    """Address to listen at, IPv4 or IPv6; the default can be reached from this machine only."""
    port: Port = 8000
    """Port of its HTTP service."""
    model_name: Text = "policy"
    """The name that clients ask for."""
    token_file: Text | None = None
    """File with the access token that clients must have; null takes the variable RS_ALIGNER_ROLLOUTS_TOKEN.

    An address that other machines can reach needs one. With one, every route wants it.
    """

    def problems(self, key: str) -> Iterator[str]:
        """The file of the token is there."""
        yield from file_problems(f"{key}.token_file", self.token_file)


class VllmConfig(Section):
    """How vLLM runs the model."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of weights and sums; auto: float32 on a CPU, bfloat16 on a GPU."""
    max_length: Count | None = None
    """Most tokens of prompt and response together; null for as many as the model was made for, with LongRoPE
    those before it."""
    max_num_seqs: Count = 128
    """Most rollouts that are decoded at once."""
    tensor_parallel_size: Count = 1
    """GPUs that share each layer."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of a GPU's memory that the server takes, weights and cache."""
    cpu_cache_gib: Count = 4
    """GiB of keys and values on a CPU."""
    threads: Count | None = None
    """Threads on a CPU; null for as many as the process may use."""
    seed: Size = 1
    """Seed of what is asked without one; rollouts bring theirs."""
    arguments: Texts = ()
    """Further switches of vLLM's own, as on its command line."""

    def problems(self, key: str) -> Iterator[str]:
        """No switch of vLLM is given in two ways."""
        for one in self.arguments:
            name = one.partition("=")[0].replace("_", "-")
            if (ours := OURS.get(name)) is not None:
                why = (
                    f"{name} is set by {ours}" if ours else f"{name} may not be given: the guard relies on it"
                )
                yield problem(f"{key}.arguments", one, why)


class ServeRolloutsConfig(Section):
    """Everything that `serve_rollouts.py` reads."""

    pretrained_checkpoint: ServedModel
    inference: RolloutInferenceConfig = RolloutInferenceConfig()
    weights_root: Text = "."
    """The folder below which new weights lie: that of the run, or one above it; `.` is the working folder."""
    lora_rank: Count | None = None
    """The highest rank of adapters that it takes beside its weights; null for none.

    vLLM knows some ranks only: it is started with the next one above, 512 at most.
    """
    vllm: VllmConfig = VllmConfig()
    startup_timeout: Positive = 600
    """Seconds until vLLM must be ready."""
    log_dir: Text | None = None
    """Folder of vLLM's own log; null for a temporary file, which is kept if the server fails."""

    def problems(self, key: str) -> Iterator[str]:
        """Weights have a place, and adapters a size that vLLM knows."""
        if (self.lora_rank or 0) > LORA_RANKS[-1]:
            yield problem(
                "lora_rank",
                self.lora_rank,
                f"vLLM takes adapters up to {LORA_RANKS[-1]}; leave it out, and whole weights travel",
            )
        if not Path(self.weights_root).is_dir():
            yield problem(
                "weights_root", self.weights_root, f"there is no such folder (relative to {Path.cwd()})"
            )
