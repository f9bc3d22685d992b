"""What a run does beside sampling and learning: checkpoints, export, adapters, and a judge of its texts.

On a GPU no two orders of a sum are promised to give the same bits, so bits are compared where nothing is
computed anew (what was saved, what is put back), and what is computed within a bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from rs_aligner.model import huggingface
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.batches import Split
from rs_aligner.policy.offload import NOTHING
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reference import response_log_probs
from rs_aligner.reward.judges.huggingface import HuggingFaceJudge
from tests.gpu.conftest import BOUND, TYPE
from tests.policy.layout_program import rows
from tests.policy.offloaded import new, same, sampled, states, weights
from tests.reward.reward_models import rewards_by_transformers, save_reward_model, token_rows

pytestmark = pytest.mark.timeout(300)
LORA = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 2}}


def log_probs(policy: MegatronPolicy) -> list[float]:
    return [one for row in response_log_probs(policy.trainer, rows(), Split(2)) for one in row]


def by_transformers(model: Any, rt: Runtime) -> list[float]:
    """Those of a model of `transformers`, a row at a time."""
    model, found = model.to(rt.device).eval(), []
    for row in rows():
        tokens = torch.tensor([row.prompt + row.response], device=rt.device)
        with torch.no_grad():
            every = model(tokens).logits.float().log_softmax(-1)[0, :-1]
        found += every.gather(-1, tokens[0, 1:, None]).squeeze(-1)[-len(row.response) :].tolist()
    return found


def loaded(folder: Path, precision: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=TYPE[precision])


def optimizer_of(policy: MegatronPolicy) -> dict[str, list[torch.Tensor]]:
    found = states(policy)
    return {name: [one.detach().clone() for one in found[name]] for name in ("averages", "masters")}


def test_a_run_goes_on_from_its_checkpoint(folder: Path, rt: Runtime, precision: str, tmp_path: Path) -> None:
    policy = new(folder, rt, NOTHING, precision=precision)
    policy.train(rows())
    policy.save(tmp_path / "step_000001", {"seen": 7})
    kept, optimizer, sure = weights(policy), optimizer_of(policy), log_probs(policy)
    after = policy.train(rows())

    later = new(folder, rt, NOTHING, precision=precision)
    assert not same(weights(later), kept)
    assert later.load(tmp_path / "step_000001") == {"seen": 7}
    assert {one.dtype for one in weights(later).values()} == {TYPE[precision]}
    assert same(weights(later), kept)
    assert all(optimizer.values()) or precision == "fp32", "in bf16 Adam has weights of its own"
    assert same(optimizer_of(later), optimizer)
    assert log_probs(later) == pytest.approx(sure, abs=BOUND[precision])
    again = later.train(rows())
    assert [one.loss for one in again] == pytest.approx([one.loss for one in after], abs=BOUND[precision])
    assert not same(weights(later), kept)


def test_transformers_loads_what_is_exported(
    folder: Path, rt: Runtime, precision: str, tmp_path: Path
) -> None:
    policy = new(folder, rt, NOTHING, precision=precision)
    policy.train(rows())
    policy.export(tmp_path / "final")
    gathered = huggingface.gather_tensors(policy.model, policy.arch, rt)
    files = load_file(tmp_path / "final" / "model.safetensors")
    assert files.keys() == gathered.keys()
    assert all(torch.equal(one.float(), gathered[name].cpu().float()) for name, one in files.items())
    exported = by_transformers(loaded(tmp_path / "final", precision), rt)
    assert exported == pytest.approx(log_probs(policy), abs=BOUND[precision])
    begun = by_transformers(loaded(folder, precision), rt)
    assert exported != pytest.approx(begun, abs=BOUND[precision]), "nothing was learnt"


def test_adapters_go_into_the_weights_and_out_again(
    folder: Path, rt: Runtime, precision: str, tmp_path: Path
) -> None:
    policy = new(folder, rt, NOTHING, precision=precision, peft={**LORA, "export": "adapter"})
    adapters = policy.adapters
    assert adapters is not None
    base = weights(policy)
    for _ in range(3):
        policy.train(rows())
    learnt = weights(policy)
    assert {name for name, one in learnt.items() if not torch.equal(one, base[name])} <= {
        name for name in learnt if ".adapter." in name
    }
    beside = log_probs(policy)
    for _ in range(2):  # the copy of the base is made once
        with adapters.merged():
            assert log_probs(policy) == pytest.approx(beside, abs=BOUND[precision])
            changed = [name for name, one in weights(policy).items() if not torch.equal(one, learnt[name])]
            assert changed
            assert all("linear_" in name for name in changed)
        assert same(weights(policy), learnt)
    assert len(sampled(policy)) == 10
    policy.put_beside()
    assert same(weights(policy), learnt)
    policy.export(tmp_path / "adapter")
    with_peft = peft.PeftModel.from_pretrained(loaded(folder, precision), str(tmp_path / "adapter"))
    assert by_transformers(with_peft, rt) == pytest.approx(beside, abs=BOUND[precision])
    adapters.is_exported_alone = False
    policy.export(tmp_path / "merged")
    merged = by_transformers(loaded(tmp_path / "merged", precision), rt)
    assert merged == pytest.approx(beside, abs=BOUND[precision])


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


def test_a_judge_gives_the_rewards_of_transformers(
    reward_model: Path, accelerator: str, precision: str
) -> None:
    device = "cuda" if accelerator == "gpu" else "cpu"
    judge = HuggingFaceJudge(str(reward_model), precision=precision, device=device, batch_size=3)
    try:
        found = {(one.device.type, one.dtype) for one in judge._model.parameters()}
        assert found == {(device, TYPE[precision])}
        sequences = [row[:-1] for row in token_rows(reward_model)]  # this judge adds no end token
        tokens = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
        for place, sequence in enumerate(sequences):
            tokens[place, : len(sequence)] = sequence
        lengths = np.array(list(map(len, sequences)))
        together = judge.score_tokens(tokens, lengths)
        expected = rewards_by_transformers(reward_model, sequences)
        spread = max(expected) - min(expected)
        assert together == pytest.approx(expected, abs=max(1e-4, 0.05 * spread * (precision == "bf16")))
        alone = [judge.score_tokens(tokens[i : i + 1], lengths[i : i + 1])[0] for i in range(len(lengths))]
        assert alone == pytest.approx(together, abs=1e-3 * spread)
    finally:
        judge.close()
