"""Checkpoints and model folders damaged in every way: each damage is found, or does no harm by proof.

In one process, by the functions that load, with a fixed seed. What is made of a run's other damaged files is
tested where they are read.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt import GPTModel

from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.folder import fingerprint, read_model_folder
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import checkpoint
from rs_aligner.policy.adam_states import torchs_adams
from rs_aligner.policy.batches import Split
from rs_aligner.policy.training import Trainer
from rs_aligner.record.manifest import BrokenCheckpoint
from tests.policy.layout_program import new_trainer, rows
from tests.tiny import save_tiny_with_tokenizer

ZEROS = 4096

Damage = tuple[str, Callable[[], None]]


def paths_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths_below(folder)}


def restore(folder: Path, before: dict[Path, bytes]) -> None:
    for path in paths_below(folder):
        if path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def zero(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(max(len(content) - ZEROS, 1))
    content[start : start + ZEROS] = bytes(len(content[start : start + ZEROS]))
    path.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def damages(folder: Path, other: Path, rng: random.Random, counts: dict[str, int]) -> Iterator[Damage]:
    """`counts` random damages of each kind over the files, and each that there is of the other kinds."""
    paths = paths_below(folder)
    weights = [1 + path.stat().st_size // 100_000 for path in paths]
    for kind, damage in (("flip", flip), ("truncate", truncate), ("zeros", zero)):
        for _ in range(counts[kind]):
            path = rng.choices(paths, weights)[0]
            yield f"{kind} {path.name}", lambda damage=damage, path=path: damage(path, rng)
    for path in paths:
        yield f"missing {path.name}", path.unlink
        yield f"emptied {path.name}", lambda path=path: path.write_bytes(b"")
        if (twin := other / path.relative_to(folder)).is_file():
            yield f"of another step {path.name}", lambda path=path, twin=twin: shutil.copy(twin, path)
        for second in paths:
            if path < second:
                yield (
                    f"swapped {path.name} and {second.name}",
                    lambda path=path, second=second: swap(path, second),
                )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def trainer(model: Path, rt: Runtime) -> Trainer:
    return new_trainer(model, rt, distributed=True)


def state(trainer: Trainer) -> list[torch.Tensor]:
    """Weights and the optimizer's averages."""
    found = [
        tensor for tensor in trainer.ddp.module.state_dict().values() if isinstance(tensor, torch.Tensor)
    ]
    for part in torchs_adams(trainer.optimizer):
        found += [tensor for one in part.optimizer.state.values() for tensor in one.values()]
    return [tensor.clone() for tensor in found]


@pytest.mark.slow
def test_no_damaged_checkpoint_loads_as_good(
    tmp_path: Path, model: Path, trainer: Trainer, rt: Runtime
) -> None:
    states = {}
    for step in (3, 4):
        trainer.step(rows(), split=Split(4), learning_rate=1e-2)
        states[step] = state(trainer)
        checkpoint.save(tmp_path / f"step_{step:06d}", trainer, rt, {"steps": step}, model)
    folder, other = tmp_path / "step_000004", tmp_path / "step_000003"
    before, rng, found = contents(folder), random.Random(0), Counter[str]()
    extra = [
        (f"extra {name}", lambda name=name: (folder / name).write_bytes(b"x"))
        for name in (
            "__1_0.distcp",
            ".metadata.tmp",
            "common.pt.bak",
            "huggingface/added_tokens.json",
            "rank",
        )
    ]
    all_of_it = ("all of another step", lambda: shutil.copytree(other, folder, dirs_exist_ok=True))
    for name, damage in (
        *damages(folder, other, rng, {"flip": 360, "truncate": 140, "zeros": 140}),
        *extra,
        all_of_it,
    ):
        damage()
        if contents(folder) == before:  # zeros where there were zeros
            found["no change"] += 1
        else:
            with pytest.raises(BrokenCheckpoint, match="step_000004 is no good checkpoint: ") as error:
                checkpoint.load(folder, trainer, rt)
            assert "\n" not in str(error.value), name
            found[name.split()[0]] += 1
        restore(folder, before)
    assert found.total() >= 650
    assert found["no change"] <= 20
    assert all(
        torch.equal(*pair) for pair in zip(state(trainer), states[4], strict=True)
    )  # nothing was touched
    assert checkpoint.load(other, trainer, rt) == {"steps": 3}
    assert all(torch.equal(*pair) for pair in zip(state(trainer), states[3], strict=True))
    assert checkpoint.load(folder, trainer, rt) == {"steps": 4}
    assert all(torch.equal(*pair) for pair in zip(state(trainer), states[4], strict=True))


def weights_of(folder: Path, rt: Runtime) -> list[torch.Tensor]:
    """What training would start from."""
    _, arch = read_model_folder(str(folder), "pretrained_checkpoint.restore_from_path")
    model: GPTModel = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt)
    huggingface.load_weights(folder, model, arch, rt)
    return [parameter.detach().clone() for parameter in model.parameters()]


def refusal(folder: Path, rt: Runtime) -> str | None:
    """What is said of a model folder that is not taken; None if it is."""
    try:
        weights_of(folder, rt)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_no_damaged_model_folder_is_taken_for_the_one_before(
    tmp_path: Path, model: Path, rt: Runtime
) -> None:
    """At a first start what can't be a model is refused in a line; at a later one whatever has changed is."""
    folder = shutil.copytree(model, tmp_path / "model")
    other = save_tiny_with_tokenizer(tmp_path / "other", seed=1)
    before, known, rng, found = contents(folder), fingerprint(folder), random.Random(1), Counter[str]()
    good = weights_of(folder, rt)
    for name, damage in damages(folder, other, rng, {"flip": 90, "truncate": 60, "zeros": 60}):
        damage()
        if contents(folder) == before:
            found["no change"] += 1
            continue
        try:
            changed = fingerprint(folder) != known
        except ValueError:
            changed = True
        assert changed, name
        said = refusal(folder, rt)
        assert said is None or "\n" not in said, name
        found["noticed at a later start" if said is None else "refused at the first start"] += 1
        restore(folder, before)
    assert found.total() >= 200
    assert found["refused at the first start"] > 120
    assert all(torch.equal(*pair) for pair in zip(weights_of(folder, rt), good, strict=True))
    assert fingerprint(folder) == known
