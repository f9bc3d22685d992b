"""Scored rollouts as data: files of answers, ledgers of runs, and what is told of those that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands.best_of_n import answer_row
from rs_aligner.data import load_scored
from rs_aligner.record.ledger import Ledger
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Progress, build_chain, nothing_kept
from tests.data.test_prompts import BOS, EOS, Letters, ids

pytestmark = pytest.mark.timeout(60)
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(*rows: dict[str, Any]) -> str:
        path = tmp_path / "scored.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return _write


def load(*sources: str, tokenizer: Letters | None = None, max_length: int = 100, **how: Any) -> list[Group]:
    return list(load_scored(sources, tokenizer or Letters(), max_length=max_length, **how))


def row(*responses: str, rewards: Sequence[Any] | None = None, **keys: Any) -> dict[str, Any]:
    numbers = list(range(len(responses))) if rewards is None else list(rewards)
    return {"text": "ab", "responses": list(responses), "rewards": numbers, **keys}


# Files


def test_a_row_is_a_group_with_the_end_token_behind_each_answer(write: Write) -> None:
    source = {"page": 3}
    (group,) = load(write(row("c", "de", rewards=[0.5, 2], id=7, source=source)))
    assert (group.prompt.id, group.prompt.text) == ("7", "ab")
    assert group.prompt.token_ids == (BOS, *ids("ab"))
    assert group.prompt.metadata == {"text": "ab", "id": 7, "source": source}
    assert [rollout.token_ids for rollout in group.rollouts] == [(*ids("c"), EOS), (*ids("de"), EOS)]
    assert [(rollout.index, rollout.text, rollout.finish_reason) for rollout in group.rollouts] == [
        (0, "c", "stop"),
        (1, "de", "stop"),
    ]
    assert group.scores == [Score(0.5), Score(2.0)]


def test_rows_with_the_same_prompt_are_two_groups_and_may_differ_in_size(write: Write) -> None:
    one, two = load(write(row("c"), row("d", "e", "f")))
    assert (len(one.rollouts), len(two.rollouts)) == (1, 3)
    assert (one.prompt.row, two.prompt.row) == (0, 1)


def test_a_reward_of_null_is_a_failure_and_not_a_number(write: Write) -> None:
    (group,) = load(write(row("c", "d", rewards=[None, 1])))
    assert group.scores == [ScoreFailure("no reward in the file"), Score(1.0)]


def test_an_empty_answer_is_its_end_token(write: Write) -> None:
    (group,) = load(write(row("", "c")))
    assert [rollout.token_ids for rollout in group.rollouts] == [(EOS,), (*ids("c"), EOS)]
    without_end = Letters()
    without_end.eos_ids = ()  # type: ignore[assignment]  # a tokenizer without end tokens
    with pytest.raises(ValueError, match=r"scored\.jsonl:1: a response is empty, .* no end token"):
        load(write(row("", "c")), tokenizer=without_end)


def test_an_answer_that_was_cut_gets_no_end_token(write: Write) -> None:
    (group,) = load(write(row("c", "d", finish_reasons=["length", "stop"])))
    assert [rollout.token_ids for rollout in group.rollouts] == [ids("c"), (*ids("d"), EOS)]
    assert [rollout.finish_reason for rollout in group.rollouts] == ["length", "stop"]
    assert "finish_reasons" not in group.prompt.metadata


def test_what_is_too_long_is_left_out_and_counted(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    fits, too_long = "c" * 3, "c" * 4  # behind a prompt of 3 tokens, with an end token
    file = write(row(fits, too_long), row(too_long), row(too_long, fits))
    with caplog.at_level("WARNING", "rs_aligner"):
        one, two = load(file, max_length=7)
    assert "left out 3 rollouts of more than 7 tokens" in caplog.text
    assert ([r.text for r in one.rollouts], one.scores) == ([fits], [Score(0.0)])
    assert ([r.text for r in two.rollouts], two.scores) == ([fits], [Score(1.0)])
    assert [r.index for r in two.rollouts] == [1]
    assert [group.prompt.row for group in (one, two)] == [0, 1]
    with pytest.raises(ValueError, match="no rollouts to use"):
        load(write(row(too_long)), max_length=7)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_chat_has_one_begin_token_whether_its_template_was_applied_or_not(
    adds_bos: bool, write: Write
) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "responses": ["c"], "rewards": [1]}
    applied = row("c", text="<s>[user]hi[assistant]")
    one, two = load(write(chat, applied), tokenizer=Letters(adds_bos=adds_bos))
    assert one.prompt.text == two.prompt.text
    assert one.prompt.token_ids == two.prompt.token_ids == (BOS, *ids("[user]hi[assistant]"))
    assert one.rollouts[0].token_ids == two.rollouts[0].token_ids == (*ids("c"), EOS)


def test_a_template_makes_the_prompt_and_does_not_see_the_answers(write: Write) -> None:
    question = {"question": "1+1?", "responses": ["2"], "rewards": [1]}
    (group,) = load(write(question), template="Q: {question}\nA:")
    assert group.prompt.text == "Q: 1+1?\nA:"
    with pytest.raises(ValueError, match="names 'responses'"):
        load(write(question), template="{responses}")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"rewards": [1]}, "lists of the same length"),
        ({"rewards": None}, "lists of the same length"),
        ({"responses": "cd"}, "lists of the same length"),
        ({"responses": ["c", 1]}, "a response should be a text, not 1"),
        ({"rewards": [1, "2"]}, "a reward should be a finite number or null, not '2'"),
        ({"rewards": [1, True]}, "a reward should be a finite number or null, not True"),
        ({"components": [{"a": 1}]}, "'components' should be a list of objects of finite numbers"),
        ({"components": [{"a": "b"}, None]}, "'components' should be a list of objects of finite numbers"),
        ({"finish_reasons": ["stop"]}, "'finish_reasons' should be a list"),
        ({"finish_reasons": ["stop", ["length"]]}, "'finish_reasons' should be a list"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(wrong: dict[str, Any], what: str, write: Write) -> None:
    with pytest.raises(ValueError, match=rf"scored\.jsonl:2: .*{what}"):
        load(write(row("c", "d"), {**row("c", "d"), **wrong}))


def test_the_file_of_generate_is_read_back_as_it_was_sampled(write: Write) -> None:
    made = Group(
        Prompt("p", "ab", (BOS, *ids("ab")), metadata={"text": "ab", "answer": 4}),
        [
            Rollout(0, 0, (EOS,), "", "stop", log_probs=(-1.0,)),  # ended at once
            Rollout(0, 1, ids("c4"), "c4", "length", log_probs=(-1.0, -2.0)),
            Rollout(0, 2, (*ids("4"), EOS), "4", "stop", log_probs=(-1.0, -2.0)),
        ],
        [Score(0.0), ScoreFailure("timed out"), Score(1.0, {"right": 1.0})],
    )
    for how in ("best", "majority"):
        (group,) = load(write(answer_row(made, how)))  # type: ignore[arg-type]  # a parameter of the test
        assert group.prompt.token_ids == made.prompt.token_ids
        assert [r.token_ids for r in group.rollouts] == [r.token_ids for r in made.rollouts]
        assert [r.finish_reason for r in group.rollouts] == ["stop", "length", "stop"]
        assert group.scores[0] == Score(0.0)
        assert isinstance(group.scores[1], ScoreFailure)
        assert isinstance(group.scores[2], Score)
        assert (group.scores[2].reward, group.scores[2].components) == (1.0, {"right": 1.0})
        assert group.prompt.metadata["metadata"]["answer"] == 4


# Ledgers


def a_step(step: int, prompt: Prompt) -> list[Group]:
    version = step - 1
    return [
        Group(
            prompt,
            [
                Rollout(0, i, (*ids("cdef"[i]), 3), "cdef"[i], "stop", version, log_probs=(-1.0, -0.5))
                for i in range(3)
            ],
            [Score(float(i + step), judge="one") if i else ScoreFailure("timed out") for i in range(3)],
        )
    ]


def write_ledger(folder: Path, *steps: list[Group]) -> str:
    ledger = Ledger(folder)
    chain = build_chain([], top_n=1)
    for number, groups in enumerate(steps, start=1):
        ledger.append(number, groups, chain.select(groups, Progress(number, len(steps))))
    return str(folder)


def test_a_ledger_gives_back_the_very_tokens_scores_and_log_probabilities(tmp_path: Path) -> None:
    prompt = Prompt("p", "ab", (BOS, *ids("ab")), metadata={"answer": 4})
    made = [a_step(1, prompt), a_step(2, prompt)]
    found = load(write_ledger(tmp_path / "rollouts", *made))
    assert len(found) == 2  # a prompt of two steps is two groups
    for group, (expected,) in zip(found, made, strict=True):
        assert group.rollouts == expected.rollouts  # also the second end token that these ended with
        assert group.scores == expected.scores
        assert group.prompt.metadata == {"answer": 4}
    assert [group.prompt.row for group in found] == [0, 1]


def test_a_rollout_that_two_steps_trained_on_is_read_once(tmp_path: Path) -> None:
    first = a_step(1, Prompt("p", "ab", (BOS, *ids("ab"))))
    (group,) = load(write_ledger(tmp_path / "rollouts", first, first))
    assert len(group.rollouts) == 3


def test_the_ledger_of_an_offline_run_gives_all_its_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rollouts are of version 0 in every step; another epoch brings them again."""
    prompts = [Prompt(f"p{i}", "ab", (BOS, *ids("ab")), row=i) for i in range(4)]
    first, second = ([a_step(1, prompt)[0] for prompt in part] for part in (prompts[:2], prompts[2:]))
    ledger = Ledger(tmp_path / "rollouts")
    for number, groups in enumerate([first, second, first], start=1):
        ledger.append(number, groups, nothing_kept(groups, "none"), everything=True)
    with caplog.at_level("INFO", logger="rs_aligner"):
        found = load(str(tmp_path / "rollouts"))
    assert [group.prompt.id for group in found] == ["p0", "p1", "p2", "p3"]
    assert [len(group.rollouts) for group in found] == [3] * 4
    assert "6 rollouts are there again in later steps, and are taken once" in caplog.text


def test_a_step_that_a_ledger_lacks_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_ledger(
        tmp_path / "rollouts", *(a_step(n, Prompt("p", "ab", (BOS, *ids("ab")))) for n in (1, 2, 3, 4))
    )
    for step in (2, 3):
        (tmp_path / "rollouts" / f"step_{step:06d}.jsonl").unlink()
    assert len(load(folder)) == 2
    assert "has no step 2, 3: its rollouts are left out" in caplog.text


def test_a_ledger_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    theirs = write_ledger(tmp_path / "rollouts", a_step(1, Prompt("p", "ab", (5, 6))))
    with pytest.raises(ValueError, match=r"step 1: the tokens of prompt p are not those of this policy's"):
        load(theirs)


@pytest.mark.parametrize("recorded_bos", [True, False])
def test_whether_a_begin_token_was_added_makes_no_other_tokenizer(tmp_path: Path, recorded_bos: bool) -> None:
    prompt = Prompt("p", "ab", (BOS, *ids("ab")) if recorded_bos else ids("ab"))
    for adds_bos in (True, False):
        (group,) = load(
            write_ledger(tmp_path / f"rollouts_{adds_bos}", a_step(1, prompt)),
            tokenizer=Letters(adds_bos=adds_bos),
        )
        assert group.prompt.token_ids == prompt.token_ids


def test_a_folder_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a ledger"):
        load(str(tmp_path))


def test_files_and_ledgers_may_be_mixed(tmp_path: Path, write: Write) -> None:
    ledger = write_ledger(tmp_path / "rollouts", a_step(1, Prompt("p", "ab", (BOS, *ids("ab")))))
    assert [len(group.rollouts) for group in load(write(row("c")), ledger)] == [1, 3]
