"""A reward that equals its bar reaches it, in whatever type the judge answers and by whatever way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from rs_aligner.commands.best_of_n import answer_row
from rs_aligner.config import EndpointConfig, RemoteRMConfig
from rs_aligner.data.scored import load_scored
from rs_aligner.precision import as_meant, rounded
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import groups_of
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.reward.judges import score_rows
from rs_aligner.reward.judges.combined import StandardisedJudge, WeightedJudge
from rs_aligner.reward.judges.functions import FunctionJudge
from rs_aligner.rollout import Score
from rs_aligner.selection import Progress, build_chain
from tests.bars import BARS, beaten, group_of
from tests.data.test_prompts import Letters
from tests.reward.fake_judge import fake_judge, rewards
from tests.reward.rows import row


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def number_of(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[Any]:
    """The number that the response is."""
    return [{"reward": float(r or 0), "twice": 2 * float(r or 0)} for r in responses]


def asked(client: RemoteGPTRMClient, texts: list[str]) -> list[Any]:
    futures = [client.submit(*row(text)) for text in texts]
    client.flush()
    return [future.result(timeout=20) for future in futures]


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16"])
def test_a_reward_that_equals_its_bar_reaches_it_over_http(stack: ExitStack, datatype: str) -> None:
    """The server says of each output what type it has, and the client reads that."""
    judge = stack.enter_context(fake_judge(lambda rows: rewards(BARS[:rows], datatype)))
    config = RemoteRMConfig(
        reward_model=EndpointConfig(ip="127.0.0.1", port=judge.port), max_batch_size=99, max_wait_seconds=9
    )
    client = stack.enter_context(RemoteGPTRMClient(config))
    scores = asked(client, [str(bar) for bar in BARS])
    assert judge.batches == [99]
    assert beaten(scores) == {}
    exact = {"FP64": np.float64, "FP32": np.float32, "FP16": np.float16}[datatype]
    assert [score.reward for score in scores] == [float(exact(bar)) for bar in BARS]


def test_a_reward_that_equals_its_bar_reaches_it_in_this_process(stack: ExitStack) -> None:
    client = stack.enter_context(RemoteGPTRMClient(RemoteRMConfig(), FunctionJudge(number_of, "f")))
    scores = asked(client, [str(bar) for bar in BARS])
    assert beaten(scores) == {}
    assert [score.reward for score in scores] == BARS
    assert [score.components["twice"] for score in scores] == [2 * bar for bar in BARS]


@pytest.mark.parametrize(
    "made",
    [
        lambda bars: np.array(bars, dtype=np.float32),
        torch.tensor,
        lambda bars: [np.float16(bar) for bar in bars],
        lambda bars: [{"reward": np.float32(bar)} for bar in bars],
    ],
)
def test_a_function_that_answers_in_single_precision_means_the_number_it_wrote(made: Any) -> None:
    scores = score_rows(lambda *_: made(BARS), ([""] * 99, [""] * 99, [{}] * 99), max_rows=99)
    assert beaten(scores) == {}
    assert [score.reward for score in scores if isinstance(score, Score)] == BARS


def test_single_precision_that_means_no_short_number_stays_what_it_is() -> None:
    third = float(np.float32(1 / 3))
    assert as_meant(third, "float32") == third
    assert as_meant(1023.984375, "float32") == 1023.984375
    assert as_meant(0.1 + 0.2, "float64") == 0.1 + 0.2
    assert rounded(1e300, "float32") == float("inf")


def test_a_bar_of_many_digits_is_met_in_the_judges_type() -> None:
    ninth = Score(float(np.float32(1 / 9)), precision="float32")
    assert ninth.reaches(1 / 9)
    assert not ninth.exceeds(1 / 9)
    assert not Score(float(np.float32(1 / 9)) - 1e-6, precision="float32").reaches(1 / 9)
    assert not Score(0.7).reaches(0.70000001)  # which only float64 can tell


def test_single_precision_is_still_known_when_rollouts_are_read_back(tmp_path: Any) -> None:
    """From the ledger of the run, for a pool or another run, and from a file of answers."""
    scores = [Score(float(np.float32(bar)), precision="float32") for bar in BARS]
    groups = [group_of(score) for score in scores]
    chain = build_chain([], top_n=1, min_reward=0.5)
    ledger = Ledger(tmp_path / "rollouts")
    ledger.append(1, groups, chain.select(groups, Progress(1, 1)))
    assert beaten([group.scores[0] for group in groups_of(ledger.read(1))]) == {}

    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(answer_row(group, "best")) + "\n" for group in groups))
    read = load_scored([str(file)], Letters(), max_length=99)
    assert beaten([group.scores[0] for group in read]) == {}
    file.write_text(file.read_text().replace('"float32"', '"single"'))
    with pytest.raises(ValueError, match=r"answers\.jsonl:1: 'reward_dtype' is 'single'; known are float16"):
        load_scored([str(file)], Letters(), max_length=99)


def test_weights_that_add_up_to_one_make_a_perfect_answer_one() -> None:
    def perfect(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        return [1.0] * len(prompts)

    parts = {f"part {i}": (weight, FunctionJudge(perfect, "")) for i, weight in enumerate((0.7, 0.1, 0.2))}
    (score,) = WeightedJudge(parts).score_texts([""], [""], [{}])
    assert isinstance(score, Score)
    assert score.reward == 1.0  # 0.7 + 0.1 + 0.2 is 0.9999999999999999


def test_a_standardised_reward_is_not_rounded_on_the_way(stack: ExitStack) -> None:
    judge = StandardisedJudge(FunctionJudge(number_of, "f"), mean=0.3, std=0.1)
    client = stack.enter_context(RemoteGPTRMClient(RemoteRMConfig(), judge))
    scores = asked(client, [str(bar) for bar in BARS])
    assert [score.reward for score in scores] == [(bar - 0.3) / 0.1 for bar in BARS]
    assert [score.components["raw"] for score in scores] == BARS
