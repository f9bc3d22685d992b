"""What is measured of a trained model, and what is made of the measured curves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import curves, measuring
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.reward.judges.sentiment import sentiment

ROOT = Path(__file__).resolve().parents[1]


def row(step: int, score: float, seconds: float, tokens: int, drift: float) -> dict[str, Any]:
    return {
        "step": step,
        "held_out_score": score,
        "cross_entropy": 1.45 + drift,
        "cpu_seconds": seconds,
        "generated_tokens": tokens,
        "drift": drift,
    }


CURVE = [row(0, 0.4, 0.0, 0, 0.0), row(1, 0.6, 10.0, 100, 0.01), row(2, 0.8, 30.0, 200, 0.05)]


def test_a_level_is_reached_where_the_line_between_two_checkpoints_crosses_it() -> None:
    cost = curves.cost_of(CURVE, 0.7)
    assert cost is not None
    assert cost == pytest.approx({"cpu_seconds": 20.0, "generated_tokens": 150, "drift": 0.03})
    assert curves.cost_of(CURVE, 0.8) == pytest.approx(
        {"cpu_seconds": 30.0, "generated_tokens": 200, "drift": 0.05}
    )


def test_the_first_crossing_counts_when_a_curve_falls_and_rises_again() -> None:
    wavy = [*CURVE, row(3, 0.5, 40.0, 300, 0.06), row(4, 0.9, 50.0, 400, 0.07)]
    cost = curves.cost_of(wavy, 0.7)
    assert cost is not None
    assert cost["cpu_seconds"] == pytest.approx(20.0)


def test_a_level_that_is_never_reached_has_no_cost() -> None:
    assert curves.cost_of(CURVE, 0.81) is None
    found = curves.summary([CURVE, [*CURVE[:2], row(2, 0.9, 30.0, 200, 0.05)]], [0.81])
    assert found["to_reach"] == {"0.81": {"seeds_that_reach_it": 1, "seeds": 2}}


def test_a_summary_has_means_with_standard_errors_over_seeds() -> None:
    slower = [{**one, "cpu_seconds": 1.2 * one["cpu_seconds"]} for one in CURVE]
    found = curves.summary([CURVE, slower], [0.6])
    # Two values 10 and 12: mean 11, sample deviation sqrt(2), over sqrt(2) values.
    assert found["course"][1]["cpu_seconds"] == pytest.approx({"mean": 11.0, "se": 1.0, "seeds": 2})
    assert found["to_reach"]["0.6"]["cpu_seconds"] == pytest.approx({"mean": 11.0, "se": 1.0, "seeds": 2})
    assert "se" not in curves.summary([CURVE], [0.6])["course"][1]["cpu_seconds"]


def test_curves_of_different_steps_are_no_system() -> None:
    with pytest.raises(ValueError, match="same steps"):
        curves.summary([CURVE, CURVE[:2]], [0.6])


def test_the_script_writes_what_it_shows(tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
        (folder / "measured.jsonl").write_text("".join(json.dumps(one) + "\n" for one in CURVE))
    (folders[0] / "about.json").write_text('{"settings": {"lr": 1}}')
    out = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "curves.py"), "--levels", "0.7", "--out", str(out)]
    system = f"plain={folders[0]},{folders[1]}"
    done = subprocess.run(
        [*command, "--system", system], capture_output=True, text=True, timeout=60, check=True
    )
    assert "to reach 0.7: CPU 20.0 +- 0.0 s, tokens 150 +- 0, drift 0.0300 +- 0.0000" in done.stdout
    found = json.loads(out.read_text())["plain"]
    assert found["to_reach"]["0.7"]["drift"]["mean"] == pytest.approx(0.03)
    assert found["runs"] == [{"settings": {"lr": 1}}, {}]


def test_a_curve_that_was_not_measured_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"measuring\.py --curve"):
        curves.read(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        measuring.measure(tmp_path)


def test_a_curve_without_its_start_is_refused(tmp_path: Path) -> None:
    curve = tmp_path / "curve.jsonl"
    curve.write_text(json.dumps({"step": 1, "folder": "step_1"}) + "\n")
    with pytest.raises(ValueError, match="step 0"):
        measuring.measure_curve(curve)


def test_a_curve_is_measured_from_its_start_and_each_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(folder: Path, data: Path) -> dict[str, float]:
        measured.append(folder.name)
        entropy = 1.4 + 0.1 * len((folder / "model.safetensors").read_bytes())
        return {"held_out_score": 0.5, "held_out_se": 0.01, "cross_entropy": entropy}

    monkeypatch.setattr(measuring, "measure", measure)
    for name, weights in (("a", b""), ("b", b"12"), ("c", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    curve = tmp_path / "curve.jsonl"
    rows = [{"step": step, "folder": name, "cpu_seconds": step} for step, name in enumerate("abc")]
    curve.write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = measuring.measure_curve(curve)
    assert [one["drift"] for one in found] == pytest.approx([0.0, 0.2, 0.0])
    assert [one["cpu_seconds"] for one in found] == [0, 1, 2]
    assert measured == ["a", "b"]
    assert curves.read(tmp_path) == found
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        measuring.measure_curve(curve)


@pytest.fixture(scope="module")
def stories260k(test_data: Path) -> tuple[transformers.PreTrainedModel, Tokenizer]:
    folder = test_data / "stories260k"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Tokenizer(folder)


@pytest.mark.slow
def test_the_cross_entropy_is_that_of_the_datas_readme(
    stories260k: tuple[transformers.PreTrainedModel, Tokenizer], test_data: Path
) -> None:
    lines = (test_data / "tinystories" / "stories.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert measuring.cross_entropy(*stories260k, texts[:100]) == pytest.approx(1.357, abs=1e-3)
    assert measuring.cross_entropy(*stories260k, texts) == pytest.approx(1.456, abs=1e-3)


def test_the_cross_entropy_does_not_depend_on_the_batch(
    stories260k: tuple[transformers.PreTrainedModel, Tokenizer], test_data: Path
) -> None:
    texts = measuring.held_out_stories(test_data)[:7]
    alone = measuring.cross_entropy(*stories260k, texts, batch_size=1)
    assert measuring.cross_entropy(*stories260k, texts, batch_size=5) == pytest.approx(alone, rel=1e-5)


def test_no_measured_story_is_an_anchor(test_data: Path) -> None:
    lines = (test_data / "tinystories" / "stories.jsonl").read_text().splitlines()
    anchors = {json.loads(line)["text"] for line in lines[: measuring.NUM_ANCHORS]}
    measured = measuring.held_out_stories(test_data)
    assert len(measured) == 300
    assert anchors.isdisjoint(measured)


@pytest.mark.slow
def test_a_prompt_is_continued_alike_beside_a_longer_one(
    stories260k: tuple[transformers.PreTrainedModel, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, so that only the filling up could make a difference."""
    model, tokenizer = stories260k
    greedy, config = {"do_sample": False, "temperature": None, "top_p": None}, transformers.GenerationConfig
    monkeypatch.setattr(transformers, "GenerationConfig", lambda **given: config(**{**given, **greedy}))
    texts = ("Once", "Once upon a time, there was a little cat. The cat")
    prompts = [tokenizer.encode(text) for text in texts]
    alone = [measuring.sample(model, tokenizer, [prompt], 0)[0] for prompt in prompts]
    assert measuring.sample(model, tokenizer, prompts, 0) == alone
    assert all(len(text) > 50 for text in alone)


def test_a_completion_ends_before_the_next_story_begins(
    stories260k: tuple[transformers.PreTrainedModel, Tokenizer],
) -> None:
    _, tokenizer = stories260k
    prompt = tokenizer.encode("Once there was a cat. The end.")

    class Parrot:
        """Says the same whatever it is asked."""

        def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            said = [*tokenizer.encode(" It slept.")[1:], 1, *tokenizer.encode("Once")[1:]]
            return torch.cat([input_ids, torch.tensor([said])], dim=1)

    said = measuring.sample(Parrot(), tokenizer, [prompt], 0)  # type: ignore[arg-type]  # a stand-in
    assert [text.strip() for text in said] == ["It slept."]


@pytest.mark.slow
def test_the_seed_decides_what_is_sampled(
    stories260k: tuple[transformers.PreTrainedModel, Tokenizer],
) -> None:
    model, tokenizer = stories260k
    prompts = [tokenizer.encode("Once upon a time")] * 2
    first, second = measuring.sample(model, tokenizer, prompts, 3)
    assert first != second
    assert measuring.sample(model, tokenizer, prompts, 3) == [first, second]
    assert measuring.sample(model, tokenizer, prompts, 4) != [first, second]


@pytest.mark.slow
def test_the_start_has_the_score_that_our_decoder_samples(
    stories260k: tuple[transformers.PreTrainedModel, Tokenizer], test_data: Path
) -> None:
    """0.458 with a standard error of 0.005: 8 x 512 completions of `rs_aligner.generation`."""
    scores = [measuring.held_out_score(*stories260k, test_data, 4, seed) for seed in (0, 1)]
    assert scores[0] != scores[1]
    assert sum(score for score, _ in scores) / 2 == pytest.approx(0.458, abs=0.06)
    assert all(0.01 < error < 0.03 for _, error in scores)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_trl_trains_and_its_curve_can_be_measured(test_data: Path, tmp_path: Path) -> None:
    python = os.environ.get("RS_ALIGNER_TRL_PYTHON")
    if python is None:
        pytest.skip("needs RS_ALIGNER_TRL_PYTHON: a Python with requirements/benchmarks.txt")
    out = tmp_path / "trl"
    small = ("--prompts", "4", "--micro-batch", "16", "--save-at", "1,2")
    done = subprocess.run(
        [python, "benchmarks/trl_grpo.py", "--out", str(out), *small],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RS_ALIGNER_TEST_DATA": str(test_data)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = measuring.measure_curve(out / "curve.jsonl", data=test_data)
    assert [one["step"] for one in rows] == [0, 1, 2]
    assert rows[0]["generated_tokens"] == rows[0]["drift"] == 0
    assert 2 * 32 * 20 < rows[2]["generated_tokens"] <= 2 * 32 * 64
    assert 0 < rows[1]["cpu_seconds"] < rows[2]["cpu_seconds"]
    assert rows[1]["drift"] != 0
    assert curves.read(out)[2]["held_out_score"] == rows[2]["held_out_score"]


def test_the_space_before_a_completion_does_not_change_its_score() -> None:
    """TRL decodes a completion without its prompt, which drops the space before it."""
    text = "was so HAPPY! She hugged her mom, and they did not cry :)"
    assert sentiment(["", ""], [text, " " + text], [{}, {}]) == pytest.approx(
        [sentiment([""], [text], [{}])[0]] * 2
    )
