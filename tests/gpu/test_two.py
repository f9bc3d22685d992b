"""Two ranks, with NCCL on two GPUs: replicas, and layers that are shared, learn and write what one rank does.

The same programs run with gloo on a CPU, which holds them. Left out on purpose: pipeline and sequence
parallelism, and more than one machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.model import runtime
from rs_aligner.rollout import Prompt
from tests.gpu import two_program
from tests.gpu.conftest import COPY, ON_TWO_GPUS
from tests.policy.layout_program import prompts
from tests.ranks import run_ranks
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(300)
LAYOUTS = list(two_program.LAYOUTS)


@pytest.fixture(
    scope="module", params=[pytest.param("cpu", marks=COPY), pytest.param("gpu", marks=ON_TWO_GPUS)]
)
def accelerator(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    save_tiny("llama", folder / "model")
    return folder


@pytest.fixture(scope="module")
def by_rank(accelerator: str, work: Path) -> list[dict[str, Any]]:
    """What each of two ranks found, by layout."""
    return run_ranks("tests.gpu.two_program", 2, work, accelerator, timeout=240)


@pytest.fixture(scope="module")
def one(accelerator: str, by_rank: Any, work: Path) -> dict[str, Any]:
    """What one rank finds; it begins when the others have ended."""
    (work / "one").mkdir()
    with runtime.start(accelerator=accelerator, timeout_minutes=1) as rt:
        return two_program.run(work / "model", work / "one", rt)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_has_a_device_of_its_own(
    by_rank: list[dict[str, Any]], accelerator: str, layout: str
) -> None:
    found = [rank[layout] for rank in by_rank]
    assert [one["layout"] for one in found] == [(2, 1) if layout == "dp2" else (1, 2)] * 2
    assert {one["backend"] for one in found} == {"nccl" if accelerator == "gpu" else "gloo"}
    assert [one["device"] for one in found] == (["cuda:0", "cuda:1"] if accelerator == "gpu" else ["cpu"] * 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_learn_what_one_learns(
    by_rank: list[dict[str, Any]], one: dict[str, Any], layout: str
) -> None:
    for rank in by_rank:
        assert rank[layout]["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert one["losses"][1] < one["losses"][0]
    assert_close(by_rank[0][layout]["weights"], one["weights"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_goes_on_in_either_layout(
    by_rank: list[dict[str, Any]], one: dict[str, Any], layout: str
) -> None:
    """That of two replicas in their own layout, and then where the layers are shared."""
    for rank in by_rank:
        assert rank[layout]["counters"] == {"steps": 1}
        assert rank[layout]["losses resumed"] == pytest.approx(one["losses"][1:], rel=1e-4)
    assert_close(by_rank[0][layout]["weights resumed"], one["weights"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_rollouts_have_the_log_probs_of_the_exported_model(
    by_rank: list[dict[str, Any]], work: Path, layout: str, way: str
) -> None:
    found = by_rank[0][layout][way]
    assert by_rank[1][layout][way] == found, "every rank has the rollouts of all"
    assert sorted(found) == [(group, index) for group in range(len(prompts())) for index in range(2)]
    model = transformers.AutoModelForCausalLM.from_pretrained(work / layout / "final").eval()
    for (group, _), (token_ids, log_probs) in found.items():
        every = log_probs_of(model, prompts()[group], token_ids)
        taken = every.gather(-1, torch.tensor(token_ids)[:, None]).squeeze(-1)
        assert log_probs == pytest.approx(taken.tolist(), abs=1e-4)
        if way == "greedy":
            assert log_probs == pytest.approx(every.max(-1).values.tolist(), abs=1e-4)


def log_probs_of(model: Any, prompt: Prompt, token_ids: tuple[int, ...]) -> torch.Tensor:
    """Of every token at each place of a response, [tokens, vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt.token_ids + token_ids])).logits
    found: torch.Tensor = logits.float().log_softmax(-1)[0, len(prompt.token_ids) - 1 : -1]
    return found


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Two steps of 0.01 each, in float32."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
