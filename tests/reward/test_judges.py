"""The built-in judges, the user's own function, and what happens when one of them fails."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from rs_aligner.config import JudgeConfig
from rs_aligner.reward.judges import BUILT_IN, BadResult, exact_answer, load_judge, score_rows, smoke_test


@pytest.mark.parametrize(
    ("response", "reference", "reward"),
    [
        ("42", "42", 1.0),
        ("43", "42", 0.0),
        ("", "42", 0.0),
        ("  42\n", "42", 1.0),
        ("so it is 42", "42", 0.0),
        ("6 * 7 = 42\n#### 42", "There are 6.\n#### 42", 1.0),
        ("#### 41\n#### 42", "42", 1.0),
        ("#### 42\n#### 41", "42", 0.0),
        ("1,234.50", "1234.5", 1.0),
        ("-7.0", "-7", 1.0),
        ("042", "42", 1.0),
        ("42", 42, 1.0),
        ("12345678901234567891", "12345678901234567890", 0.0),
        ("nan", "nan?", 0.0),
        ("inf", "1e999", 0.0),
        ("4_2", "42", 0.0),
        ("New   York", "New York", 1.0),
        ("new york", "New York", 0.0),
    ],
)
def test_exact_answer_compares_final_answers(response: str, reference: object, reward: float) -> None:
    assert exact_answer([""], [response], [{"answer": reference}]) == [reward]


def test_exact_answer_reads_the_key_it_is_told_and_names_a_row_that_lacks_it() -> None:
    judge = load_judge(JudgeConfig(name="exact_answer", kwargs={"answer_key": "target"}))
    assert judge(["", ""], ["1", "2"], [{"target": "1"}, {"target": "1"}]) == [1.0, 0.0]
    for row in ({"id": "row-7", "answer": "1"}, {"id": "row-7", "target": None}):
        with pytest.raises(ValueError, match=r"row-7.*'target'.*judge\.kwargs\.answer_key"):
            judge([""], ["1"], [row])


def test_exact_answer_finds_the_answers_of_gsm8k_right(test_data: Path) -> None:
    rows = [json.loads(line) for line in (test_data / "gsm8k" / "test.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]
    assert exact_answer(answers, answers, rows) == [1.0] * len(rows)
    wrong = [answer + "1" for answer in answers]
    assert exact_answer(wrong, wrong, rows) == [0.0] * len(rows)


def test_sentiment_prefers_the_happy_story() -> None:
    pytest.importorskip("vaderSentiment")
    happy, sad = load_judge(JudgeConfig(name="sentiment"))(
        ["", ""], ["They were happy and loved the sun.", "He was sad, lost and afraid."], [{}, {}]
    )
    assert happy > 0.5
    assert sad < -0.5


def test_sentiment_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rs_aligner.reward import judges

    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    judges._vader.cache_clear()
    with pytest.raises(ValueError, match=r"rs-aligner\[sentiment\]"):
        load_judge(JudgeConfig(name="sentiment"))


def test_the_config_knows_exactly_the_judges_that_there_are() -> None:
    names = get_args(JudgeConfig.model_fields["name"].annotation)
    assert {name for part in names for name in get_args(part)} == set(BUILT_IN)


def write_judge(folder: Path, body: str) -> str:
    folder.joinpath("my_judge.py").write_text(body)
    return str(folder / "my_judge.py")


def test_a_users_function_is_loaded_from_a_file_that_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "my_neighbour.py").write_text("FACTOR = 3\n")
    path = write_judge(
        tmp_path,
        "from my_neighbour import FACTOR\n"
        "def judge(prompts, responses, metadata, plus=0):\n"
        "    return [FACTOR * len(r) + plus for r in responses]\n",
    )
    judge = load_judge(JudgeConfig(function=f"{path}:judge", kwargs={"plus": 1}))
    assert judge(["", ""], ["ab", ""], [{}, {}]) == [7.0, 1.0]


def test_a_users_function_is_loaded_from_a_module() -> None:
    judge = load_judge(JudgeConfig(function="rs_aligner.reward.judges:exact_answer"))
    assert judge([""], ["1"], [{"answer": "1"}]) == [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("{path}", "must look like"),
        ("{folder}/absent.py:judge", "there is no file .*absent.py"),
        ("{path}:absent", "has no 'absent'"),
        ("{path}:number", "is a int, not a function"),
        ("{path}:two_arguments", "cannot be called as f.prompts, responses, metadata.*too many positional"),
        ("{folder}/broken.py:judge", "importing .*broken.py failed: ZeroDivisionError"),
        (
            "no_such_package.module:judge",
            r"importing no_such_package.module failed \(is its folder on PYTHONPATH",
        ),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, function: str, message: str
) -> None:
    path = write_judge(tmp_path, "number = 3\ndef two_arguments(prompts, responses): ...\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    spec = function.format(path=path, folder=tmp_path)
    with pytest.raises(ValueError, match=f"(?s)judge.function: .*{message}"):
        load_judge(JudgeConfig(function=spec))


def test_keyword_arguments_that_the_judge_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"judge\.name: exact_answer .*unexpected keyword argument 'key'"):
        load_judge(JudgeConfig(name="exact_answer", kwargs={"key": "answer"}))


def test_a_judge_has_to_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"exactly one of judge\.function"):
        load_judge(JudgeConfig())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[0.0, 1.0, 2.0]", "3 results for 2 rows"),
        ("1.0", "returned a float, not a list"),
        ("['1.0', '2.0']", "returned '1.0' for a row"),
        ("[None, 1.0]", "returned None for a row"),
        ("np.zeros((2, 3))", "for a row, not a number"),
    ],
)
def test_a_result_that_is_not_one_number_a_row_is_an_error(
    tmp_path: Path, returned: str, message: str
) -> None:
    path = write_judge(tmp_path, f"import numpy as np\ndef judge(p, r, m): return {returned}\n")
    judge = load_judge(JudgeConfig(function=f"{path}:judge"))
    with pytest.raises(BadResult, match=message):
        judge(["", ""], ["", ""], [{}, {}])
    with pytest.raises(ValueError, match="the judge is broken"):
        smoke_test(judge)


@pytest.mark.parametrize("returned", ["[True, 2]", "np.array([1, 2])", "torch.tensor([1.0, 2.0])"])
def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path, returned: str) -> None:
    path = write_judge(tmp_path, f"import numpy as np, torch\ndef judge(p, r, m): return {returned}\n")
    judge = load_judge(JudgeConfig(function=f"{path}:judge"))
    assert judge(["", ""], ["", ""], [{}, {}]) == [1.0, 2.0]


def test_the_smoke_test_tells_a_broken_judge_from_one_that_needs_real_rows() -> None:
    def needs_more(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [row["answer"]["steps"][3] for row in metadata]

    def misspelt(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [no_such_name(r) for r in responses]  # type: ignore[name-defined]  # noqa: F821

    assert smoke_test(load_judge(JudgeConfig(name="exact_answer", kwargs={"answer_key": "gold"}))) is None
    assert "TypeError" in str(smoke_test(needs_more))
    with pytest.raises(ValueError, match=r"NameError.*no_such_name"):
        smoke_test(misspelt)


def picky(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    if "bad" in responses:
        raise KeyError("no such thing")
    return [{"nan": math.nan, "huge": 1e300}.get(r, float(len(r))) for r in responses]


def test_a_row_that_fails_does_not_touch_the_scores_of_its_neighbours() -> None:
    responses = ["a", "bad", "abc", "nan", "huge", "ab"]
    rewards, reasons = score_rows(picky, [""] * 6, responses, [{}] * 6, max_rows=4)
    np.testing.assert_array_equal(rewards, np.array([1, np.nan, 3, np.nan, np.nan, 2], dtype=np.float32))
    assert "KeyError: 'no such thing'" in reasons[1]
    assert "nan" in reasons[3]
    assert "1e+300" in reasons[4]
    assert [bool(reason) for reason in reasons] == np.isnan(rewards).tolist()


def test_a_judge_never_sees_more_rows_than_allowed() -> None:
    sizes: list[int] = []

    def judge(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        sizes.append(len(responses))
        return [0.0] * len(responses)

    score_rows(judge, [""] * 10, [""] * 10, [{}] * 10, max_rows=4)
    assert sizes == [4, 4, 2]
