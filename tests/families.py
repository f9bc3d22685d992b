"""The table of families, each row measured on a tiny random model: `python -m tests.families`.

`logits` is the largest difference from `transformers` over 100 tokens, `round trip` whether what was read is
written to the bit, decoders and layouts (two and four ranks) whether their greedy tokens and their loss are
those of `transformers`, or why not. Takes two minutes on two cores. Started by `torch.distributed.run` it is
a rank.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.refused import REFUSED
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime, ranks_started
from rs_aligner.policy.batches import Split
from tests.drawing import request_of
from tests.policy.layout_program import new_trainer, prompts, rows
from tests.policy.objective_cases import NoText
from tests.policy.test_layouts import reference
from tests.ranks import run_ranks, save_result
from tests.tiny import FAMILIES, save_tiny

LAYOUTS = {
    2: {"TP 2": (2, 1, 1), "PP 2": (1, 2, 1), "EP 2": (1, 1, 2)},
    4: {"TP 2 x PP 2": (2, 2, 1), "TP 2 x EP 2": (2, 1, 2), "PP 2 x EP 2": (1, 2, 2)},
}
"""By the number of ranks."""
ENGINES: tuple[Literal["kernels", "torch"], ...] = ("kernels", "torch")
COLUMNS = ("family", "logits", "round trip", *ENGINES, *LAYOUTS[2], *LAYOUTS[4])


def main() -> None:
    """Print the table, or be one of the ranks that a row of it needs."""
    warnings.simplefilter("ignore")
    logging.getLogger("rs_aligner").setLevel(logging.ERROR)
    if "RANK" in os.environ:
        save_result(Path(sys.argv[1]), by_layout(Path(sys.argv[1]), sys.argv[2:]))
        return
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name in FAMILIES:
            save_tiny(name, folder / name, layers=None if name == "gpt2" else 2)
        found: dict[tuple[str, str], Any] = {}
        for number in LAYOUTS:
            found |= run_ranks("tests.families", number, folder, *FAMILIES, timeout=1800)[-1]
        print(" | ".join(COLUMNS))
        with runtime.start(accelerator="cpu", timeout_minutes=5) as rt:
            for name in FAMILIES:
                print(" | ".join([name, *on_one_rank(folder / name, rt), *beside(folder / name, found)]))
    for name, why in REFUSED.items():
        print(f"{name} | refused: it has {why}")


def on_one_rank(folder: Path, rt: Runtime) -> list[str]:
    """Logits, round trip and decoders of a model."""
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder, model, arch, rt)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(96, (2, 100), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(tokens, torch.arange(100).expand_as(tokens), None) - theirs(tokens).logits
    out = folder.with_name(f"{folder.name} out")
    huggingface.save_weights(out, model, arch, rt, folder)
    engines = [told(lambda engine=engine: decodes(model, arch, rt, theirs, engine)) for engine in ENGINES]
    return [f"{found.abs().max():.0e}", "bit-equal" if same_bits(folder, out) else "DIFFERS", *engines]


def decodes(
    model: GPTModel,
    arch: Architecture,
    rt: Runtime,
    theirs: torch.nn.Module,
    engine: Literal["kernels", "torch"],
) -> bool:
    """Whether an engine's greedy tokens are those of the full forward pass."""
    decoder = new_decoder(model, arch, rt, GenerationConfig(engine=engine))
    asked = request_of(prompts(), 1, Controls(greedy=True, max_length=12))
    for rollout in generate(decoder, NoText(), asked, seed=1):
        row = list(prompts()[rollout.group].token_ids)
        for token in rollout.token_ids:
            with torch.no_grad():
                if token != int(theirs(torch.tensor([row])).logits[0, -1].argmax()):
                    return False
            row.append(token)
    return True


def by_layout(folder: Path, names: list[str]) -> dict[tuple[str, str], Any]:
    """The loss of each model in each layout, or why it has none; and the model as the layout writes it."""
    found: dict[tuple[str, str], Any] = {}
    number = ranks_started()
    for layout, (tp, pp, ep) in LAYOUTS[number].items():
        store = dist.FileStore(str(folder / f"store {layout}"), number)
        with runtime.start(tp, pp, ep, timeout_minutes=5, store=store) as rt:
            for name in names:
                arch = read_architecture(folder / name)
                if ep > 1 and arch.experts is None:
                    found[name, layout] = "no experts"
                    continue
                try:
                    trainer = new_trainer(folder / name, rt, distributed=ep > 1)
                except ValueError as error:
                    found[name, layout] = f"refused: {error}"
                    continue
                out = folder / f"{name} {layout}"
                huggingface.save_weights(out, trainer.ddp.module, arch, rt, folder / name)
                found[name, layout] = trainer.gradients(rows(), split=Split(2))[0]
    return found


def beside(folder: Path, found: dict[tuple[str, str], Any]) -> list[str]:
    """What the ranks found of a model, beside the loss of plain torch and the bits that were read."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected, _ = reference(theirs, "sequence")
    columns = []
    for layout in (*LAYOUTS[2], *LAYOUTS[4]):
        loss = found[folder.name, layout]
        if isinstance(loss, str):
            columns.append(loss)
            continue
        alike = abs(loss - expected) < 1e-5 * abs(expected)
        alike &= same_bits(folder, folder.with_name(f"{folder.name} {layout}"))
        columns.append("yes" if alike else "DIFFERS")
    return columns


def same_bits(one: Path, other: Path) -> bool:
    """Whether two folders have the same tensors."""
    before, after = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (one, other)
    )
    return set(before) == set(after) and all(torch.equal(after[name], one) for name, one in before.items())


def told(check: Callable[[], bool]) -> str:
    """What a check says, or why it cannot be made."""
    try:
        return "yes" if check() else "DIFFERS"
    except ValueError as error:
        return "declines: " + str(error).rpartition(": ")[2]


if __name__ == "__main__":
    main()
