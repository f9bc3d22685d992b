"""Adapters give the loss, gradient and logits of `peft` in every layout, and leave the base as it is.

The reference is the real `peft` on `transformers`, a row at a time, from the folder that was exported. The
ranks run once for all; the cases are in `lora_program.py`.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rs_aligner.files import read_json_object
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.lora_spec import num_adapter_parameters, num_trainable_parameters
from rs_aligner.model.lora_wanted import spec_of
from rs_aligner.model.tensors import num_parameters
from rs_aligner.policy.checkpoint_files import read_metadata
from tests.policy.layout_program import prompts, rows
from tests.policy.lora_program import ALL_KINDS, KINDS, LAYOUTS, policy_config
from tests.ranks import run_program
from tests.tiny import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OTHERS = [name for name in LAYOUTS if name != "one"]
CASES = [
    (layout, kind) for layout in LAYOUTS for kind in KINDS if layout in ALL_KINDS or kind == "distributed"
]
Found = dict[str, dict[str, Any]]
Gradients = dict[str, torch.Tensor]
Right = dict[tuple[str, str], tuple[float, Gradients]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    save_tiny("llama", folder / "model", layers=2)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    """By layout: what each case of `lora_program.py` gave."""
    run_program("tests.policy.lora_program", folder, timeout=800)
    return {name: pickle.loads((folder / f"{name}.pickle").read_bytes()) for name in LAYOUTS}


def with_peft(folder: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    return peft.PeftModel.from_pretrained(base, str(adapter), is_trainable=True).to(dtype)


@pytest.fixture(scope="module")
def right(found: Found, folder: Path) -> Right:
    """Loss and gradient of `peft` from each layout's export: so export and start are the same in all, too.

    In float64: two computations in float32 are farther from each other than each is from what is right.
    """
    return {
        (layout, adapters): loss_and_gradient(with_peft(folder, folder / layout / adapters, torch.float64))
        for layout in found
        for adapters in ("everywhere", "some")
    }


def loss_and_gradient(model: torch.nn.Module) -> tuple[float, Gradients]:
    total = 0.0
    for row in rows():
        tokens = torch.tensor([row.prompt + row.response])
        log_probs = model(tokens).logits[0].log_softmax(-1)[len(row.prompt) - 1 : -1]
        loss = -log_probs.gather(1, torch.tensor(row.response)[:, None]).mean() / len(rows())
        loss.backward()
        total += loss.item()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total, {name.replace(".default", ""): grad for name, grad in found.items()}


def far(grads: Gradients, expected: Gradients) -> dict[str, float]:
    """How far each gradient is from the expected one, as a share of its length."""
    assert set(grads) == set(expected)
    assert all(grad.norm() > 0 for grad in expected.values())
    return {name: float((grads[name] - grad).norm() / grad.norm()) for name, grad in expected.items()}


@pytest.mark.parametrize("adapters", ["everywhere", "some"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_are_those_of_peft(found: Found, right: Right, layout: str, adapters: str) -> None:
    loss, grads = found[layout][f"gradient {adapters}"]
    total, expected = right[layout, adapters]
    assert loss == pytest.approx(total, rel=1e-6)
    assert max(far(grads, expected).values()) < 3e-6
    norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    assert found[layout][f"norm {adapters}"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_the_same_where_activations_are_computed_again(
    found: Found, right: Right, layout: str
) -> None:
    """A frozen embedding gives layers an input without a gradient, which Megatron would leave out."""
    loss, grads = found[layout]["gradient recomputed"]
    total, expected = right[layout, "everywhere"]
    assert loss == pytest.approx(total, rel=1e-6)
    assert max(far(grads, expected).values()) < 3e-6


@pytest.mark.parametrize("layout", OTHERS)
def test_gradients_of_a_reward_model_are_those_of_one_rank(found: Found, layout: str) -> None:
    loss, grads = found[layout]["pairs gradient"]
    expected_loss, expected = found["one"]["pairs gradient"]
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(grads) == set(expected)
    assert "base_model.model.score.weight" in grads
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() < 1e-5 * grad.norm(), name


@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_steps_agree_with_those_of_one_rank(found: Found, layout: str, kind: str) -> None:
    one = found["one"][f"two steps {kind}"]
    for case in ("two steps", "continued"):
        for name, weights in found[layout].get(f"{case} {kind}", {}).items():
            error = (weights.float() - one[name].float()).norm() / one[name].float().norm()
            assert error < (0.05 if kind == "bf16" else 1e-4), (case, name, float(error))


@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_resumed_and_restarted_are_to_the_last_bit_what_was_not_stopped(
    found: Found, layout: str, kind: str
) -> None:
    through = found[layout][f"two steps {kind}"]
    for case in ("resumed", "two steps again"):
        for name, weights in found[layout][f"{case} {kind}"].items():
            assert torch.equal(weights, through[name]), (case, name)
    assert found[layout][f"restarted {kind}"]


@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_the_reference_is_the_start_and_the_base_stays_as_it_is(found: Found, layout: str, kind: str) -> None:
    """The base through sampling, which merges, training and a look at the reference; to the last bit."""
    assert found[layout][f"reference {kind}"]
    assert found[layout][f"trained again {kind}"]
    assert found[layout][f"base {kind}"]


def test_the_base_is_the_same_to_the_last_bit_after_1000_times_merged_and_taken_out(found: Found) -> None:
    assert found["one"]["base after many merges"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rollouts_are_those_of_base_and_adapter_together(found: Found, folder: Path, layout: str) -> None:
    model = with_peft(folder, folder / "one" / "some")
    for group, prompt in enumerate(prompts()):
        tokens, log_probs = list(prompt.token_ids), []
        for _ in range(8):
            with torch.no_grad():
                last = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(last.argmax()))
            log_probs.append(float(last.max()))
        got, got_log_probs = found[layout]["greedy"][group, 0]
        assert list(got) == tokens[len(prompt.token_ids) :]
        assert got_log_probs == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.parametrize(("layout", "kind"), CASES)
def test_optimizer_and_gradients_take_memory_for_what_is_trained_only(
    found: Found, folder: Path, layout: str, kind: str
) -> None:
    arch = read_architecture(folder / "model")
    spec = spec_of(policy_config("everywhere", sequence_parallel=False).peft, arch)
    assert spec is not None
    trained = num_trainable_parameters(arch, spec)
    assert trained == num_adapter_parameters(arch, spec) < num_parameters(arch) / 4
    states, gradients = found[layout][f"optimizer bytes {kind}"]
    ranks, tp, pp = LAYOUTS[layout]
    replicas = ranks // tp // pp if kind != "ordinary" else 1
    # On tensor-parallel ranks the half that is not cut is there twice; buffers are rounded up to 64 numbers.
    most = 1.0 if tp == 1 else 1.5
    assert 8 * trained / (tp * pp * replicas) <= states <= most * 8 * trained / (pp * replicas) + 64
    assert 4 * trained / (tp * pp) <= gradients <= most * 4 * trained / pp + 4 * 64 * 2 * replicas


def test_a_checkpoint_has_adapters_and_optimizer_only(found: Found, folder: Path) -> None:
    arch = read_architecture(folder / "model")
    spec = spec_of(policy_config("everywhere", sequence_parallel=False).peft, arch)
    assert spec is not None
    for layout in LAYOUTS:
        saved = folder / layout / "distributed" / "one_step"
        held = read_metadata(saved).state_dict_metadata
        tensors = {name: one for name, one in held.items() if isinstance(one, TensorStorageMetadata)}
        assert all(".adapter." in name for name in tensors)
        sizes = [one.size.numel() * one.properties.dtype.itemsize for one in tensors.values()]
        assert sum(sizes) == 16 * num_adapter_parameters(arch, spec)
        config = read_json_object(saved / "huggingface" / "adapter_config.json")
        assert config["base_model_name_or_path"] == str(folder / "model")
        assert config["r"] == 4
