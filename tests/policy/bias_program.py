"""Run on two ranks by `test_bias_layouts.py`: a model with biases everywhere, and YaRN.

Usage: `python -m tests.policy.bias_program <folder>`, with a model in `<folder>/model`. Saves the
gradients and greedy tokens of each layout, by its name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.batches import Split
from tests.drawing import request_of
from tests.policy.layout_program import LAYOUTS, new_trainer, prompts, rows
from tests.policy.objective_cases import NoText
from tests.ranks import save_result


def run_layout(model: Path, name: str, rt: Runtime) -> dict[str, Any]:
    arch = read_architecture(model)
    trainer = new_trainer(model, rt, distributed=False, sequence_parallel=name.endswith("sp"))
    loss, _ = trainer.gradients(rows(), split=Split(2))
    grads = huggingface.gather_tensors(trainer.ddp.module, arch, rt, of=lambda p: p.main_grad)
    decoder = new_decoder(trainer.ddp.module, arch, rt, GenerationConfig())
    asked = request_of(prompts(), 1, Controls(greedy=True, max_length=12))
    tokens = {rollout.group: rollout.token_ids for rollout in generate(decoder, NoText(), asked, seed=1)}
    return {"loss": loss, "grads": grads, "tokens": tokens}


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    for name, (tp, pp) in LAYOUTS[2].items():
        store = dist.FileStore(str(folder / f"store_{name}"), 2)
        with runtime.start(tp, pp, timeout_minutes=2, store=store) as rt:
            found[name] = run_layout(folder / "model", name, rt)
    save_result(folder, found)


if __name__ == "__main__":
    main()
