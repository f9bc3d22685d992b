"""The built-in judges, the user's own function, and what happens when one of them fails."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import pytest

from rs_aligner.config import JudgeConfig
from rs_aligner.reward.judges import BUILT_IN, ServedJudge, TokenJudge, load_judge, score_rows
from rs_aligner.reward.judges.combined import StandardisedJudge
from rs_aligner.reward.judges.functions import FunctionJudge, smoke_test, users_judge
from rs_aligner.rollout import Score, ScoreFailure
from tests.conftest import ROOT


def test_exact_answer_reads_the_key_it_is_told_and_names_a_row_that_lacks_it() -> None:
    judge = load_judge(JudgeConfig(name="exact_answer", kwargs={"answer_key": "target"}))
    rows = [{"target": "1"}, {"target": "1"}]
    assert judge.score_texts(["", ""], ["1", "2"], rows) == [1.0, 0.0]
    for row in ({"id": "row-7", "answer": "1"}, {"id": "row-7", "target": None}):
        with pytest.raises(ValueError, match=r"row-7.*'target'.*judge\.kwargs\.answer_key"):
            judge.score_texts([""], ["1"], [row])


def test_sentiment_prefers_the_happy_story() -> None:
    pytest.importorskip("vaderSentiment", reason="requirements/dev.txt has it")
    happy, sad = load_judge(JudgeConfig(name="sentiment")).score_texts(
        ["", ""], ["They were happy and loved the sun.", "He was sad, lost and afraid."], [{}, {}]
    )
    assert isinstance(happy, float)
    assert isinstance(sad, float)
    assert happy > 0.5
    assert sad < -0.5


def test_sentiment_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rs_aligner.reward.judges.sentiment import _vader

    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    _vader.cache_clear()
    with pytest.raises(ValueError, match=r"rs-aligner\[sentiment\]"):
        load_judge(JudgeConfig(name="sentiment"))


def test_the_config_knows_exactly_the_judges_that_there_are() -> None:
    names = get_args(JudgeConfig.model_fields["name"].annotation)
    assert {name for part in names for name in get_args(part)} == set(BUILT_IN)


def test_every_judge_is_told_of() -> None:
    pages = "".join((ROOT / page).read_text() for page in ("docs/guides/one_machine.md", "docs/judge.md"))
    assert [
        name for name in BUILT_IN if f"`{name}`" not in pages and f"judge.name={name}`" not in pages
    ] == []


def write_judge(folder: Path, body: str) -> str:
    folder.joinpath("my_judge.py").write_text(body)
    return str(folder / "my_judge.py")


def in_process(function: str, **kwargs: Any) -> ServedJudge:
    """What the judge's own process loads, in this one."""
    judge, warning = users_judge(function, kwargs)
    assert warning is None
    return judge


def test_a_users_function_is_loaded_from_a_file_that_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "my_neighbour.py").write_text("FACTOR = 3\n")
    path = write_judge(
        tmp_path,
        "from my_neighbour import FACTOR\n"
        "def judge(prompts, responses, metadata, plus=0):\n"
        "    return [FACTOR * len(r) + plus for r in responses]\n",
    )
    judge = in_process(f"{path}:judge", plus=1)
    assert judge.score_texts(["", ""], ["ab", ""], [{}, {}]) == [7.0, 1.0]


def test_a_users_function_is_loaded_from_a_module() -> None:
    judge = in_process("rs_aligner.reward.judges.verifiers:exact_answer")
    assert judge.score_texts([""], ["1"], [{"answer": "1"}]) == [1.0]


def test_a_users_class_is_made_with_its_settings_and_may_take_tokens(tmp_path: Path) -> None:
    path = write_judge(
        tmp_path,
        "class Judge:\n"
        "    def __init__(self, factor): self.factor = factor\n"
        "    def score_texts(self, p, responses, m): return [self.factor * len(r) for r in responses]\n"
        "    def score_tokens(self, tokens, lengths): return lengths.tolist()\n"
        "class TextJudge:\n"
        "    def score_texts(self, p, responses, m): return [0.0] * len(p)\n"
        "class NoJudge: ...\n",
    )
    judge = in_process(f"{path}:Judge", factor=2)
    assert judge.score_texts([""], ["abc"], [{}]) == [6]
    assert isinstance(judge, TokenJudge)
    assert judge.score_tokens(np.ones((2, 3), np.int64), np.array([3, 1])) == [3, 1]
    assert not isinstance(in_process(f"{path}:TextJudge"), TokenJudge)
    with pytest.raises(ValueError, match="a class without score_texts"):
        in_process(f"{path}:NoJudge")
    with pytest.raises(ValueError, match=r"making .*my_judge.py:Judge\(other=...\) failed: TypeError"):
        in_process(f"{path}:Judge", other=2)


def test_a_fingerprint_tells_code_and_settings_apart_and_not_their_place(tmp_path: Path) -> None:
    code = "def judge(prompts, responses, metadata, plus=0): return [plus] * len(prompts)\n"
    for folder, text in (("a", code), ("b", code), ("c", code + "# other\n")):
        (tmp_path / folder).mkdir()
        write_judge(tmp_path / folder, text)

    def fingerprint(folder: str, **kwargs: Any) -> str:
        return in_process(f"{tmp_path}/{folder}/my_judge.py:judge", **kwargs).fingerprint

    assert fingerprint("a") == fingerprint("b")
    assert len({fingerprint("a"), fingerprint("c"), fingerprint("a", plus=1)}) == 3
    exact = load_judge(JudgeConfig(name="exact_answer")).fingerprint
    assert exact != load_judge(JudgeConfig(name="exact_answer", kwargs={"answer_key": "x"})).fingerprint
    assert len(exact) == 16


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
        in_process(spec)


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
        ("[{'score': 1.0}] * 2", "{'score': 1.0} for a row, without the key 'reward'"),
        ("[{'reward': 1.0, 'other': 'x'}] * 2", "returned 'x' for a row, not a number"),
    ],
)
def test_a_result_that_is_not_one_value_a_row_is_an_error(
    tmp_path: Path, returned: str, message: str
) -> None:
    path = write_judge(tmp_path, f"import numpy as np\ndef judge(p, r, m): return {returned}\n")
    with pytest.raises(ValueError, match=f"the judge is broken: BadResult: .*{message}"):
        in_process(f"{path}:judge")


@pytest.mark.parametrize("returned", ["[True, 2]", "np.array([1, 2])", "torch.tensor([1.0, 2.0])"])
def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path, returned: str) -> None:
    path = write_judge(tmp_path, f"import numpy as np, torch\ndef judge(p, r, m): return {returned}\n")
    judge = in_process(f"{path}:judge")
    assert score_rows(judge.score_texts, (["", ""], ["", ""], [{}, {}]), max_rows=64) == [
        Score(1.0),
        Score(2.0),
    ]


def test_a_dict_of_numbers_is_a_reward_with_components() -> None:
    def judge(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[Any]:
        return [{"reward": 1, "right": np.float64(0.5)}, {"reward": 1.0, "right": math.nan}]

    scores = score_rows(judge, (["", ""], ["", ""], [{}, {}]), max_rows=2)
    assert scores[0] == Score(1.0, {"right": 0.5})
    assert scores[1] == ScoreFailure("the judge's right is nan, not a finite number")


def test_the_smoke_test_tells_a_broken_judge_from_one_that_needs_real_rows() -> None:
    def needs_more(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [row["answer"]["steps"][3] for row in metadata]

    def misspelt(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [no_such_name(r) for r in responses]  # type: ignore[name-defined]  # noqa: F821 (on purpose)

    assert smoke_test(load_judge(JudgeConfig(name="exact_answer", kwargs={"answer_key": "gold"}))) is None
    assert "TypeError" in str(smoke_test(FunctionJudge(needs_more, "")))
    with pytest.raises(ValueError, match=r"NameError.*no_such_name"):
        smoke_test(FunctionJudge(misspelt, ""))


def picky(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    if "bad" in responses:
        raise KeyError("no such thing")
    return [{"nan": math.nan, "huge": math.inf}.get(r, float(len(r))) for r in responses]


def test_a_row_that_fails_does_not_touch_the_scores_of_its_neighbours() -> None:
    responses = ["a", "bad", "abc", "nan", "huge", "ab"]
    scores = score_rows(picky, ([""] * 6, responses, [{}] * 6), max_rows=4)
    assert [scores[i] for i in (0, 2, 5)] == [Score(1.0), Score(3.0), Score(2.0)]
    reasons = [score.reason for score in scores if isinstance(score, ScoreFailure)]
    assert len(reasons) == 3
    assert "KeyError: 'no such thing'" in reasons[0]
    assert "nan" in reasons[1]
    assert "inf" in reasons[2]


def test_a_judge_never_sees_more_rows_than_allowed() -> None:
    sizes: list[int] = []

    def judge(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        sizes.append(len(responses))
        return [0.0] * len(responses)

    score_rows(judge, ([""] * 10, [""] * 10, [{}] * 10), max_rows=4)
    assert sizes == [4, 4, 2]


def test_a_judge_without_its_settings_or_with_wrong_ones_is_refused() -> None:
    with pytest.raises(ValueError, match=r"judge\.name: regex .*missing a required .*'pattern'"):
        load_judge(JudgeConfig(name="regex"))
    for name, kwargs, message in (
        ("regex", {"pattern": "("}, r"judge\.kwargs\.pattern is '\('.*unterminated"),
        ("length", {"unit": "bytes"}, r"judge\.kwargs\.unit is 'bytes': should be one of words"),
        ("length", {"at_least": 3, "at_most": 2}, r"judge\.kwargs\.at_most is 2: should be at least"),
        ("format", {}, r"judge\.kwargs: set what the format demands"),
        ("final_answer", {"match": "loose"}, r"judge\.kwargs\.match is 'loose'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_judge(JudgeConfig(name=name, kwargs=kwargs, time_limit=None))


def judged(name: str, *responses: str, **kwargs: Any) -> list[Score | ScoreFailure]:
    n = len(responses)
    judge = load_judge(JudgeConfig(name=name, kwargs=kwargs, time_limit=None))
    return score_rows(judge.score_texts, ([""] * n, list(responses), [{}] * n), max_rows=n)


def test_a_regular_expression_is_found_or_matches_the_whole() -> None:
    assert judged("regex", "say 42", "no", pattern=r"\d+") == [Score(1.0), Score(0.0)]
    assert judged("regex", "4\n2", "say 42", pattern=r"\d.\d", full=True) == [Score(1.0), Score(0.0)]
    assert judged("regex", "YES", pattern="yes", ignore_case=True) == [Score(1.0)]


def test_a_length_is_counted_in_words_characters_or_lines() -> None:
    responses = ["", "one two", "one two three"]
    assert [
        s.reward for s in judged("length", *responses, at_least=1, at_most=2) if isinstance(s, Score)
    ] == [
        0.0,
        1.0,
        0.0,
    ]
    assert judged("length", "abc", "abcd", at_most=3, unit="characters") == [Score(1.0), Score(0.0)]
    assert judged("length", "a\n\nb\n", at_least=2, at_most=2, unit="lines") == [Score(1.0)]


def test_a_format_is_met_when_all_its_demands_are_and_each_is_a_component() -> None:
    tags = {"tags": ["think", "answer"], "ends_with": "</answer>"}
    good = "<think>a</think> <answer>4</answer>\n"
    for response, met in (
        (good, 1.0),
        (good + good, 0.0),
        ("<answer>4</answer><think>a</think>", 0.0),
        ("<think>a <answer>4</think></answer>", 0.0),
        ("<think>a</think><answer>4", 0.0),
    ):
        (score,) = judged("format", response, **tags)
        assert isinstance(score, Score)
        assert (score.reward, score.components["tags"]) == (met, met), response
    assert judged("format", '{"a": 1}', "{", is_json=True) == [
        Score(1.0, {"is_json": 1.0}),
        Score(0.0, {"is_json": 0.0}),
    ]
    assert judged("format", "I am an AI", "Yes.", starts_with="Yes", without=["an AI"]) == [
        Score(0.0, {"starts_with": 0.0, "without": 0.0}),
        Score(1.0, {"starts_with": 1.0, "without": 1.0}),
    ]


def parts(**parts: dict[str, Any]) -> ServedJudge:
    return load_judge(JudgeConfig.model_validate({"parts": parts}))


def test_a_weighted_sum_returns_every_component() -> None:
    judge = parts(
        right={"name": "final_answer", "weight": 2.0},
        form={"name": "format", "weight": -0.5, "kwargs": {"ends_with": "."}},
    )
    rows = ([""] * 3, ["It is 4.", "4", "5."], [{"answer": "4"}] * 3)
    assert score_rows(judge.score_texts, rows, max_rows=3) == [
        Score(1.5, {"right": 1.0, "form": 1.0, "form/ends_with": 1.0}),
        Score(2.0, {"right": 1.0, "form": 0.0, "form/ends_with": 0.0}),
        Score(-0.5, {"right": 0.0, "form": 1.0, "form/ends_with": 1.0}),
    ]
    assert not isinstance(judge, TokenJudge)


def test_a_row_that_a_part_cannot_score_has_no_score_and_says_which_part() -> None:
    judge = parts(right={"name": "final_answer"}, short={"name": "length", "kwargs": {"at_most": 3}})
    rows = (["", ""], ["4", "4"], [{}, {"answer": "4"}])
    failed, scored = score_rows(judge.score_texts, rows, max_rows=2)
    assert isinstance(failed, ScoreFailure)
    assert failed.reason.startswith("right: the judge raised ValueError: row (no id) has no 'answer'")
    assert scored == Score(2.0, {"right": 1.0, "short": 1.0})


def test_a_part_that_cannot_be_loaded_is_named_and_the_others_are_closed(tmp_path: Path) -> None:
    path = write_judge(tmp_path, "def judge(p, r, m): return [0.0] * len(p)\n")
    with pytest.raises(ValueError, match=r"judge\.parts\.bad: .*missing a required .*'pattern'"):
        parts(good={"function": f"{path}:judge"}, bad={"name": "regex"})
    assert not [p for p in psutil.Process().children() if "judges.limit" in " ".join(p.cmdline())]


def test_weights_and_parts_change_the_fingerprint() -> None:
    def fingerprint(weight: float, name: str) -> str:
        return parts(a={"name": name, "weight": weight}, b={"name": "length"}).fingerprint

    assert fingerprint(1.0, "exact_answer") == fingerprint(1.0, "exact_answer")
    found = {fingerprint(w, n) for w in (1.0, 2.0) for n in ("exact_answer", "final_answer")}
    assert len(found) == 4


def test_a_standardised_reward_keeps_the_raw_one_beside_it() -> None:
    judge = StandardisedJudge(load_judge(JudgeConfig(name="length", kwargs={"at_most": 1})), 0.5, 0.25)
    rows = (["", ""], ["a", "a b"], [{}, {}])
    assert score_rows(judge.score_texts, rows, max_rows=2) == [
        Score(2.0, {"raw": 1.0}),
        Score(-2.0, {"raw": 0.0}),
    ]
    assert judge.fingerprint != load_judge(JudgeConfig(name="length", kwargs={"at_most": 1})).fingerprint
