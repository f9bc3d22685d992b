"""Run by `test_ranks_agree.py`: two tensor-parallel ranks decode, and the second one's logits are others.

Usage: `python -m tests.generation.unequal_program <folder with a model>`. Each rank saves its rollouts, by
engine, first as usual and then with logits of the opposite sign on the second rank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.native_network import Session
from rs_aligner.generation.network import Network
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from tests.drawing import request_of
from tests.generation.test_decoding import SAMPLED, NoText, prompts
from tests.ranks import fork_ranks, save_result

ENGINES = ("kernels", "torch")
FORWARD = {"kernels": Session, "torch": Network}


def rollouts(folder: Path, rt: runtime.Runtime, engine: str) -> list[Any]:
    arch = read_architecture(folder / "model")
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder / "model", model, arch, rt)
    decoder = new_decoder(model, arch, rt, GenerationConfig(engine=engine))
    found = generate(decoder, NoText(), request_of(prompts(), 4, SAMPLED), seed=1)
    return [(one.group, one.index, one.token_ids, one.log_probs, one.finish_reason) for one in found]


def opposite(forward: Any) -> None:
    """Let logits have the other sign from now on."""
    usual = forward._logits
    forward._logits = lambda self, *given: -usual(self, *given)


def on_rank(folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    with runtime.start(2, 1, accelerator="cpu", timeout_minutes=1, store=store) as rt:
        usual = {engine: rollouts(folder, rt, engine) for engine in ENGINES}
        if rt.tp_rank == 1:
            for engine in ENGINES:
                opposite(FORWARD[engine])
        save_result(folder, (usual, {engine: rollouts(folder, rt, engine) for engine in ENGINES}))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    fork_ranks(2, lambda: on_rank(where), timeout=100)
