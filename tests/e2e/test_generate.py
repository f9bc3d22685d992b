"""`examples/generate.py` as users run it: with and without a judge, any checkpoint, one rank and two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rs_aligner
from tests.e2e.launch import run_script
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, seven prompts with answers, and a judge."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_with_tokenizer(folder / "policy")
    rows = ({"text": f"{n} + 1 =", "answer": n + 1, "id": f"sum{n}"} for n in range(7))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(
        "def judge(prompts, responses, metadata):\n    return [len(set(r)) for r in responses]\n"
    )
    return folder


def generate(place: Path, name: str, *overrides: str) -> tuple[str, list[dict[str, Any]]]:
    """What the script says, and the rows of the file."""
    done = run_script(
        "generate.py",
        f"output={place / name}",
        f"pretrained_checkpoint.restore_from_path={place / 'policy'}",
        f"model.data.files={place / 'prompts.jsonl'}",
        *("model.answers.num_rollouts_per_prompt=4", "model.answers.length_params.max_length=6"),
        *("model.answers.rollout_micro_batch_size=3", "trainer.accelerator=cpu", "trainer.threads=1"),
        *overrides,
        timeout=140,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, [json.loads(line) for line in (place / name).read_text().splitlines()]


def judged_by(place: Path) -> tuple[str, str]:
    return "remote_rm.in_process=true", f"remote_rm.judge.function={place / 'mine.py'}:judge"


@pytest.fixture(scope="module")
def best(place: Path) -> tuple[str, list[dict[str, Any]]]:
    """The best of four answers by the judge, in `best.jsonl`."""
    return generate(place, "best.jsonl", *judged_by(place))


def test_the_best_of_n_by_a_judge_is_the_same_on_two_ranks(
    place: Path, best: tuple[str, list[dict[str, Any]]]
) -> None:
    said, rows = best
    assert [row["id"] for row in rows] == [f"sum{n}" for n in range(7)]
    for row in rows:
        assert row["rewards"] == [float(len(set(response))) for response in row["responses"]]
        assert row["rewards"][row["chosen"]] == max(row["rewards"])
        assert row["response"] == row["responses"][row["chosen"]]
        assert row["metadata"]["answer"] == int(row["text"][0]) + 1
    assert "7 prompts, 4 answers each" in said
    assert "(28 of 28 answers scored)" in said
    assert "best of k  1: " in said
    assert "right      one answer" in said
    _, on_two = generate(place, "two.jsonl", *judged_by(place), "trainer.devices=2")
    assert on_two == rows


def test_the_file_can_be_trained_on(place: Path, best: tuple[str, list[dict[str, Any]]]) -> None:
    _, rows = best
    run = rs_aligner.train(
        config={
            "trainer": {"accelerator": "cpu", "threads": 1, "rs.val_check_interval": None},
            "model": {"global_batch_size": 7, "rs.length_params.max_length": 6},
            "model.rs.offline": str(place / "best.jsonl"),
            "model.data.data_prefix.train": [],
        },
        model_path=place / "policy",
        output_dir=place / "offline",
    )
    rewards = [reward for row in rows for reward in row["rewards"]]
    assert run.metrics[0]["rollouts/scored"] == 28
    assert run.metrics[0]["reward/mean"] == pytest.approx(sum(rewards) / 28)
    assert run.metrics[0]["reward/kept_mean"] == pytest.approx(
        sum(row["rewards"][row["chosen"]] for row in rows) / 7
    )


def test_a_vote_needs_no_judge_and_any_checkpoint_will_do(place: Path) -> None:
    run = rs_aligner.train(
        reward_fn=lambda prompts, responses, metadata: [float(len(set(r))) for r in responses],
        prompts=["1 + 1 ="],
        config={
            "trainer": {"accelerator": "cpu", "threads": 1},
            "model": {"global_batch_size": 1, "rs.length_params.max_length": 4, "optim.lr": 1e-2},
        },
        model_path=place / "policy",
        output_dir=place / "run",
    )
    voted: dict[str, list[dict[str, Any]]] = {}
    for name, folder in {
        "final": run.final,
        "checkpoint": run.folder / "checkpoints" / "step_000001",
    }.items():
        said, voted[name] = generate(
            place,
            f"{name}.jsonl",
            f"pretrained_checkpoint.restore_from_path={folder}",
            *("model.answers.choose=majority", "model.data.num_prompts=3"),
        )
        assert "3 prompts" in said
        assert "reward" not in said
    assert voted["final"] == voted["checkpoint"]
    for row in voted["final"]:
        assert row["rewards"] == [None] * 4
        if row["chosen"] is not None:
            assert row["votes"][row["answers"][row["chosen"]]] == max(row["votes"].values())


def test_answers_that_nobody_could_score_are_kept_and_the_run_fails(place: Path) -> None:
    (place / "broken.py").write_text(
        "def judge(prompts, responses, metadata):\n    return [float('nan')] * len(prompts)\n"
    )
    output = place / "unscored.jsonl"
    done = run_script(
        "generate.py",
        f"output={output}",
        f"pretrained_checkpoint.restore_from_path={place / 'policy'}",
        f"model.data.files={place / 'prompts.jsonl'}",
        *("model.answers.length_params.max_length=6", "trainer.accelerator=cpu", "trainer.threads=1"),
        *("remote_rm.in_process=true", f"remote_rm.judge.function={place / 'broken.py'}:judge"),
        timeout=140,
    )
    assert done.returncode == 1, done.stdout
    assert "scored none of 7 rollouts" in done.stdout
    assert "the answers are in" in done.stdout
    assert [json.loads(line)["rewards"] for line in output.read_text().splitlines()] == [[None]] * 7
