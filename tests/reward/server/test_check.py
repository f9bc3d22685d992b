"""`check=true` finds what a judge does that it should not, and says what it does."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import ServeRewardConfig
from rs_aligner.reward.judges import load_judge
from rs_aligner.reward.judges.functions import FunctionJudge
from rs_aligner.reward.server import check as checking
from rs_aligner.reward.server.check import check
from tests.e2e.launch import run_script
from tests.reward.judges.test_huggingface import save_llama, save_tokenizer

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "TIMING_SECONDS", 0.05)


def report(function: Any, **settings: Any) -> tuple[bool, str]:
    """What the check says of a judge function, or of the judge that the settings name."""
    config = ServeRewardConfig.model_validate({"check": True, "judge": {"name": "length"}, **settings})
    judge = load_judge(config.judge) if function is None else FunctionJudge(function, "abc")
    lines: list[str] = []
    passed = check(config, judge, lines.append)
    return passed, "\n".join(lines)


def test_a_judge_of_each_row_by_itself_passes() -> None:
    passed, text = report(lambda p, r, m: [float(len(x)) for x in r])
    assert passed
    assert len(re.findall("identical", text)) == 5
    assert "rows: 24 (made up; name real ones with check_data=rows.jsonl), 24 of them scored" in text
    assert "fingerprint abc" in text


def test_a_score_that_depends_on_the_batch_is_found_and_measured() -> None:
    passed, text = report(lambda p, r, m: [float(len(x)) + 0.25 * (len(r) > 1) for x in r])
    assert not passed
    assert re.search(r"in a batch +24 of 24 differ, by 0.25 at most  <- more than rounding", text)
    assert re.search(r"alone again +identical", text)


def test_a_score_that_depends_on_padding_alone_is_found() -> None:
    def padded(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        return [len(r) + 9.0 * (max(map(len, responses)) > 900) for r in responses]

    passed, text = report(padded)
    assert not passed
    assert re.search(r"in a batch +identical", text)
    assert re.search(r"beside a text 4 times as long +24 of 24 differ", text)


def test_rounding_is_reported_and_passes() -> None:
    passed, text = report(lambda p, r, m: [1.0 + len(x) + 1e-6 * (len(r) > 1) for x in r])
    assert passed
    assert re.search(r"in a batch +24 of 24 differ, by 1e-06 at most$", text, re.MULTILINE)


def test_a_judge_that_is_not_the_same_twice_is_found() -> None:
    calls = iter(range(10**9))
    passed, text = report(lambda p, r, m: [float(next(calls)) for _ in r])
    assert not passed
    assert re.search(r"alone again +24 of 24 differ", text)


def test_rewards_that_are_all_the_same_are_said_to_prove_little() -> None:
    passed, text = report(lambda p, r, m: [0.0] * len(r))
    assert passed
    assert "<- all the same" in text


def test_a_judge_that_scores_nothing_does_not_pass_and_says_why() -> None:
    def broken(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        raise RuntimeError("no such model")

    passed, text = report(broken)
    assert not passed
    assert "no row has a score: the judge raised RuntimeError: no such model" in text


def test_rows_of_a_file_are_judged_with_their_metadata(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "2+2=", "response": "4", "answer": "4"},
        {"prompt": "2+3=", "response": "4", "answer": 5},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    passed, text = report(None, judge={"name": "exact_answer"}, check_data=str(file))
    assert passed
    assert "rows: 2 (" in text
    assert "rewards from 0 to 1, mean 0.5" in text
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"check_data: .*rows.jsonl:1: should have a \"response\" beside"):
        report(None, check_data=str(file))
    file.write_text('{"prompt": "a", "response": }\n')
    with pytest.raises(ValueError, match=r"check_data: .*rows.jsonl:1: not valid JSON"):
        report(None, check_data=str(file))


def test_check_data_may_be_of_any_format_and_shape(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="it comes with requirements/cpu.txt")
    asked = [{"role": "user", "content": "2+2="}]
    rows = [
        {"prompt": "2+2=", "response": "4", "answer": "4"},
        {"prompt": "2+3=", "completion": "4", "answer": "5"},
        {"messages": [*asked, {"role": "assistant", "content": "4"}], "answer": "4"},
        {"prompt": asked, "completion": [{"role": "assistant", "content": "4"}], "answer": "5"},
        {"prompt": asked, "response": "4", "reward_model": {"ground_truth": "4"}},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    pandas.DataFrame(rows[:1]).to_parquet(tmp_path / "frame.parquet")
    judge = {"name": "exact_answer"}
    _, text = report(None, judge=judge, check_data=str(tmp_path / "list.json"))
    assert "5 of them scored" in text
    assert "rewards from 0 to 1, mean 0.6" in text
    _, text = report(None, judge=judge, check_data=str(tmp_path / "frame.parquet"))
    assert "1 of them scored" in text
    _, text = report(None, judge={"name": "final_answer"}, check_data=str(tmp_path / "list.json"))
    assert "judge final_answer: 5 references (answer)" in text


def test_a_chat_that_is_checked_is_judged_without_its_answer(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    seen = []

    def judge(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        seen.extend(zip(responses, metadata, strict=True))
        return [0.0] * len(responses)

    report(judge, check_data=str(tmp_path / "chat.jsonl"))
    assert seen[0] == ("4", {"messages": turns[:1]})


def test_the_time_of_a_row_and_of_a_batch_is_measured() -> None:
    def slow(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        time.sleep(0.01)
        return [0.0] * len(responses)

    _, text = report(slow, inference={"inference_micro_batch_size": 8})
    (one, batch) = (float(ms) for ms in re.findall(r"median ([\d.]+) ms", text))
    assert 10 <= one < 60
    assert 10 <= batch < 60
    (rate,) = re.findall(r"8 rows: .*, ([\d,]+) rows a second", text)
    assert 100 < int(rate.replace(",", "")) <= 800


@pytest.mark.slow
def test_the_script_checks_a_classifier_against_a_policy(tmp_path: Path, test_data: Path) -> None:
    model, same = save_llama(tmp_path / "model"), tmp_path / "same"
    save_tokenizer(same, bert=False)
    overrides = ["check=true", "judge.name=huggingface", f"judge.kwargs={{folder: {model}}}"]
    done = run_script("serve_reward.py", *overrides, f"check_policy={same}", timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "takes texts and token ids" in done.stdout
    assert f"tokenizer: the same token ids as in {model} for all 24 texts" in done.stdout
    assert "chat template: the same text for a chat" in done.stdout
    assert "more than rounding" not in done.stdout
    other = test_data / "stories260k"
    done = run_script("serve_reward.py", *overrides, f"check_policy={other}", timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "tokenizer: 24 of 24 texts have other token ids" in done.stdout
    assert "remote_rm.mode=text" in done.stdout
    assert "chat template: they differ" in done.stdout
    assert "policy has none" in done.stdout


def test_references_that_are_no_numbers_are_counted_by_how_they_are_read(tmp_path: Path) -> None:
    answers = ["#### 18", "7", r"7\sqrt{11}", r"\pi", "x > 3", "(4, 9)", "Paris", r"\int_0^1 f"]
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "", "response": r"\boxed{7}", "gold": answer} for answer in answers * 20]
    file.write_text("\n".join(map(json.dumps, rows)))
    judge = {"name": "final_answer", "kwargs": {"answer_key": "gold"}}
    _, text = report(None, judge=judge, check_data=str(file))
    assert "judge final_answer: 160 references (gold)" in text
    assert "120 of them are no numbers:" in text
    assert rf"40 expressions, compared by value, the first at {file}:3: 7\sqrt{{11}}" in text
    assert f"20 inequalities, compared as they are or turned round, the first at {file}:5: x > 3" in text
    assert (
        f"20 intervals and points, compared with brackets and in order, the first at {file}:6: (4, 9)" in text
    )
    assert f"40 texts that are compared word by word, the first at {file}:7: Paris" in text
    _, text = report(None, judge={"parts": {"right": judge}}, check_data=str(file))
    assert "judge.parts.right final_answer: 160 references (gold)" in text
