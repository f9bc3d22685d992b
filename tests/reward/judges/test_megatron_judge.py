"""A Megatron reward model as a judge: its scores, whatever the layout and neighbours, and its processes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rs_aligner.config import JudgeConfig
from rs_aligner.reward.judges import TokenJudge, load_judge
from rs_aligner.reward.judges.megatron import MegatronJudge
from rs_aligner.rollout import ScoreFailure
from tests.reward.reward_models import (
    PROMPTS,
    RESPONSES,
    rewards_by_transformers,
    save_reward_model,
    token_rows,
)
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(180)
ON_CPU = {"accelerator": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    return rewards_by_transformers(folder)


@pytest.fixture
def judge(folder: Path) -> Iterator[Callable[..., MegatronJudge]]:
    """Makes judges, and closes them."""
    made: list[MegatronJudge] = []

    def make(**settings: Any) -> MegatronJudge:
        made.append(MegatronJudge(folder=str(folder), **{**ON_CPU, **settings}))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert one._ranks.processes == []


def scored(judge: MegatronJudge, rows: slice = slice(None)) -> list[Any]:
    prompts, responses = PROMPTS[rows], RESPONSES[rows]
    return list(judge.score_texts(prompts, responses, [{} for _ in prompts]))


@pytest.mark.slow
def test_texts_and_tokens_get_the_rewards_that_transformers_gives(
    judge: Callable[..., MegatronJudge], folder: Path, expected: list[float]
) -> None:
    one = judge(batch_size=2)
    assert isinstance(one, TokenJudge)
    rewards = scored(one)
    assert rewards == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len(set(rewards)) == len(rewards)
    rows = token_rows(folder)
    tokens = np.full((len(rows), 128), 5, dtype=np.int64)  # padding may be anything
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    assert list(one.score_tokens(tokens, np.array([len(ids) for ids in rows]))) == rewards
    # Alone, repeated, in another order: not a bit changes, since the shapes are fixed.
    assert [scored(one, slice(i, i + 1))[0] for i in range(4)] == rewards
    assert list(one.score_texts(PROMPTS[::-1] * 5, RESPONSES[::-1] * 5, [{}] * 20)) == rewards[::-1] * 5
    assert one.score_texts([], [], []) == []


@pytest.mark.slow
def test_a_row_that_cannot_be_scored_fails_alone(
    judge: Callable[..., MegatronJudge], expected: list[float]
) -> None:
    one = judge()
    found = one.score_texts([PROMPTS[0], "x" * 300], [RESPONSES[0], "y"], [{}, {}])
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1] == ScoreFailure("the row has 302 tokens, the reward model was made for 128")
    tokens = np.array([[1, 2, 3], [1, 258, 3], [1, 2, 258]])
    found = one.score_tokens(tokens, np.array([0, 3, 2]))
    assert found[0] == ScoreFailure("the row has no tokens")
    assert isinstance(found[1], ScoreFailure)
    assert "vocabulary of 258" in found[1].reason
    assert isinstance(found[2], float)


@pytest.mark.slow
def test_rewards_do_not_depend_on_the_layout_and_a_rank_that_dies_is_started_again(
    judge: Callable[..., MegatronJudge], expected: list[float]
) -> None:
    copies = judge(data_parallel_size=2, batch_size=1)
    assert len(copies._ranks.processes) == 2
    rewards = scored(copies)
    assert rewards == pytest.approx(expected, rel=1e-4, abs=1e-5)
    victim = copies._ranks.processes[1]
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=10)
    assert scored(copies) == rewards
    assert victim.pid not in [process.pid for process in copies._ranks.processes]
    for layout in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        split = judge(**{layout: 2})
        assert scored(split) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert len(split._ranks.processes) == 2
        split.close()
    with pytest.raises(ChildProcessError, match="closed"):
        scored(split)


@pytest.mark.slow
def test_a_mixtures_experts_are_shared_out_over_ranks_that_share_the_rows(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "mixture", "qwen3 moe dense")
    judge = MegatronJudge(folder=str(folder), expert_model_parallel_size=2, batch_size=2, **ON_CPU)
    try:
        assert len(judge._ranks.processes) == 2
        assert scored(judge) == pytest.approx(rewards_by_transformers(folder), rel=1e-4, abs=1e-5)
        assert scored(judge, slice(1)) == pytest.approx(scored(judge)[:1], rel=1e-6)  # one rank has no row
    finally:
        judge.close()


@pytest.mark.slow
def test_experts_that_a_judge_does_not_have_are_not_shared_out(judge: Callable[..., MegatronJudge]) -> None:
    with pytest.raises(ValueError, match="expert_model_parallel_size=2 is for mixtures of experts"):
        judge(expert_model_parallel_size=2)


@pytest.mark.slow
def test_ranks_that_cannot_be_started_again_are_not_tried_for_every_row(
    judge: Callable[..., MegatronJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, tried = judge(), []

    def start() -> None:
        tried.append("start")
        raise ChildProcessError("no GPU")

    one._ranks.processes[0].kill()
    one._ranks.processes[0].wait(timeout=10)
    monkeypatch.setattr(one._ranks, "start", start)
    for _ in range(3):
        with pytest.raises(ChildProcessError, match="cannot be started again: no GPU"):
            scored(one)
    assert tried == ["start"]
    monkeypatch.undo()
    one._not_before = 0.0  # the pause is over
    assert len(scored(one)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folder": "nowhere"}, "judge.kwargs.folder is 'nowhere': is not there"),
        ({"tensor_model_parallel_size": 0}, "judge.kwargs.tensor_model_parallel_size is 0"),
        ({"data_parallel_size": True}, "judge.kwargs.data_parallel_size is True"),
        ({"precision": "fp16"}, "judge.kwargs.precision is 'fp16': should be auto, bf16 or fp32"),
        ({"tensor_parallel": 2}, "unexpected keyword argument 'tensor_parallel'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_process_is_started(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    config = JudgeConfig(name="megatron_reward_model", kwargs={"folder": str(folder), **ON_CPU, **settings})
    with pytest.raises(ValueError, match=message):
        load_judge(config)


def test_a_language_model_or_a_classifier_of_two_labels_is_no_reward_model(
    folder: Path, tmp_path: Path
) -> None:
    save_tiny_with_tokenizer(tmp_path / "policy")
    with pytest.raises(ValueError, match="policy is no reward model"):
        MegatronJudge(folder=str(tmp_path / "policy"))
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"]
    (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a classifier of 2 labels is no reward model"):
        MegatronJudge(folder=str(tmp_path / "policy"))


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_one_message(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be served: .*=3 does not divide the model's num_"):
        MegatronJudge(folder=str(folder), tensor_model_parallel_size=3, **ON_CPU)
    with pytest.raises(ValueError, match=r"not ready after 0.1 s \(start_timeout\)"):
        MegatronJudge(folder=str(folder), start_timeout=0.1, **ON_CPU)
