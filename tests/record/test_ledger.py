"""What is written to the ledger is read back, and a step is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import groups_of
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Progress, Selection, build_chain, nothing_kept

AWKWARD = 'a "quote"\n\r\t\\ 日本語 😀 \u2028 \x85 \x00 end'


def make_groups(text: str = "Once", num_groups: int = 2, num_rollouts: int = 2) -> list[Group]:
    return [
        Group(
            prompt=Prompt(f"prompts.jsonl:{g + 1}", text, (1, 2), {"text": text, "answer": g}, position=g),
            rollouts=[
                Rollout(g, n, (5, 6 + n), f"{text} {n}", "stop" if n else "length", 3, 100 + n, (-0.5, -1.25))
                for n in range(num_rollouts)
            ],
            scores=[
                Score(float(n), {"fluency": 0.5}) if g else ScoreFailure("timed out")
                for n in range(num_rollouts)
            ],
        )
        for g in range(num_groups)
    ]


def selected(groups: list[Group]) -> Selection:
    return build_chain((), top_n=1).select(groups, Progress(1, 1))


def write(ledger: Ledger, step: int, groups: list[Group]) -> None:
    ledger.append(step, groups, selected(groups))


def test_a_step_is_read_back_as_it_was(tmp_path):
    ledger, groups = Ledger(tmp_path / "rollouts"), make_groups(AWKWARD)
    write(ledger, 4, groups)
    rows = Ledger(tmp_path / "rollouts").read(4)
    assert [(row.group, row.index) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row in rows:
        group = groups[row.group]
        rollout = group.rollouts[row.index]
        assert (row.step, row.prompt_id, row.prompt) == (4, group.prompt.id, AWKWARD)
        assert (row.response, row.token_ids, row.log_probs) == (
            rollout.text,
            rollout.token_ids,
            rollout.log_probs,
        )
        assert (row.finish_reason, row.seed, row.policy_version) == (
            rollout.finish_reason,
            rollout.seed,
            rollout.policy_version,
        )
        assert row.score == group.scores[row.index]
        assert row.metadata == group.prompt.metadata
    assert [row.kept for row in rows] == [False, False, False, True]
    assert [row.reason for row in rows] == ["not scored", "not scored", "not in the top n", "kept"]
    assert (rows[0].reward, rows[0].failure, rows[3].failure) == (None, "timed out", None)


def test_everything_that_is_known_of_a_rollout_comes_back(tmp_path):
    prompt = Prompt("p", "text", (1, 2), {"answer": 3}, row=7)
    rollouts = [
        Rollout(0, 0, (5,), "a", "stop", 3, 100, (-0.5,), by_design=False),
        Rollout(0, 1, (6, 7), "b", "length", 4, 101, (-1.0, -2.0)),
    ]
    scores = [Score(0.25, {"style": 0.5}, "judge-1", "float16"), ScoreFailure("timed out")]
    watched = [Score(9.0), ScoreFailure("timed out, too")]
    group, other = Group(prompt, rollouts, scores, watched), make_groups(num_groups=1)[0]
    write(Ledger(tmp_path), 4, [group, other])
    rows = Ledger(tmp_path).read(4)
    first, second = groups_of(rows)
    assert (first.prompt, first.rollouts, first.scores) == (prompt, rollouts, scores)
    assert first.watched == watched
    assert [row.judge for row in rows] == ["judge-1", "", "", ""]
    assert [row.reward_dtype for row in rows] == ["float16", "float64", "float64", "float64"]
    assert [row.by_design for row in rows] == [False, True, True, True]
    assert [row.prompt_row for row in rows] == [7, 7, -1, -1]
    assert [row.watched for row in rows] == [9.0, None, None, None]
    assert (second.prompt.id, len(second.rollouts), second.watched) == ("prompts.jsonl:1", 2, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [lines[0].replace(b"0.5", b"0.7"), *lines[1:]], r":1: .*checksum"),
        (lambda lines: lines[:-1], ":4: missing; 4 rows were written"),
        (lambda lines: [], ":1: missing; some rows were written"),
        (lambda lines: [*lines, lines[-1]], ":5: there should be 4 rows only"),
        (lambda lines: [lines[0], b"\0" * len(lines[1]), *lines[2:]], r":2: not a row of a ledger"),
        (lambda lines: [lines[0][: len(lines[0]) // 2] + b"\n", *lines[1:]], r":1: not a row of a ledger"),
        (lambda lines: [lines[0].rstrip(b"\n") + lines[1], *lines[2:]], r":1: not a row of a ledger"),
    ],
    ids=["a digit", "its last line", "all lines", "a line twice", "zeros", "half a line", "a newline"],
)
def test_a_file_that_is_not_as_it_was_written_is_named_with_its_line(tmp_path, change, said):
    write(Ledger(tmp_path), 1, make_groups())
    path = tmp_path / "step_000001.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    for read in (Ledger(tmp_path).read, Ledger(tmp_path).kept):
        with pytest.raises(ValueError, match=rf"step_000001\.jsonl{said}"):
            read(1)


@given(st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, data):
    """Or it changes nothing: it is the newline at the end."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    write(ledger, 1, make_groups(AWKWARD))
    path, rows = ledger.folder / "step_000001.jsonl", ledger.read(1)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert ledger.read(1) == rows


def test_a_file_of_another_step_is_named(tmp_path):
    write(Ledger(tmp_path), 1, make_groups())
    (tmp_path / "step_000001.jsonl").rename(tmp_path / "step_000002.jsonl")
    with pytest.raises(ValueError, match=r"step_000002\.jsonl:1: a row of step 1"):
        Ledger(tmp_path).read(2)


def test_a_step_that_trains_on_nothing_of_before_has_one_of_it_as_a_witness(tmp_path):
    """An empty file could not be told from one that has lost all its lines."""
    ledger, groups = Ledger(tmp_path), make_groups()
    ledger.append(9, groups, nothing_kept(groups, "not good enough"))
    [row] = ledger.read(9)
    assert (row.index, row.kept, row.reason) == (0, False, "not good enough")
    assert ledger.kept(9) == []


def test_what_was_kept_is_read_without_its_tokens(tmp_path):
    ledger = Ledger(tmp_path)
    write(ledger, 4, make_groups())
    [group] = ledger.kept(4)
    assert (group.prompt.id, group.prompt.row) == ("prompts.jsonl:2", -1)
    assert [(r.index, r.text, r.policy_version, r.token_ids) for r in group.rollouts] == [
        (1, "Once 1", 3, ())
    ]


def test_what_an_earlier_policy_sampled_is_written_again_where_it_is_trained_on(tmp_path):
    groups = make_groups(num_groups=2)  # of the policy after three steps; the last of them is kept
    for step, everything, expected in [(4, False, 4), (5, False, 1), (5, True, 4)]:
        Ledger(tmp_path).append(step, groups, selected(groups), everything=everything)
        assert len(Ledger(tmp_path).read(step)) == expected


def test_a_ledger_is_made_where_there_is_none_and_read_only_where_there_is_one(tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="is not a ledger: it has no step_000001"):
        Ledger.existing(folder)
    ledger = Ledger(folder)
    Ledger(folder)
    with pytest.raises(ValueError, match="has no step 1; it has none"):
        ledger.read(1)
    write(ledger, 1, make_groups())
    (folder / "step_1.jsonl").touch()
    assert Ledger.existing(folder).steps() == [1]


def test_groups_of_different_sizes_have_a_row_for_each_rollout(tmp_path):
    ledger, groups = Ledger(tmp_path), make_groups()
    del groups[0].rollouts[1:], groups[0].scores[1:]
    write(ledger, 1, groups)
    assert [(row.group, row.index, row.kept) for row in ledger.read(1)] == [
        (0, 0, False),
        (1, 0, False),
        (1, 1, True),
    ]


def test_a_file_is_one_readable_json_object_per_rollout(tmp_path):
    write(Ledger(tmp_path), 1, make_groups("größer 日本"))
    text = (tmp_path / "step_000001.jsonl").read_text(encoding="utf-8")
    assert "größer 日本 1" in text
    assert [json.loads(line)["index"] for line in text.splitlines()] == [0, 1, 0, 1]


def test_half_a_surrogate_pair_survives_in_a_file_that_is_valid_utf8(tmp_path):
    ledger, text = Ledger(tmp_path), "half \ud83d of a smile"
    write(ledger, 1, make_groups(text))
    assert ledger.read(1)[0].prompt == text
    (tmp_path / "step_000001.jsonl").read_text(encoding="utf-8")


@given(st.lists(st.floats(width=32, max_value=0, allow_infinity=False), max_size=8))
def test_float32_log_probs_survive_unchanged(tmp_path_factory, log_probs):
    ledger, groups = Ledger(tmp_path_factory.mktemp("ledger")), make_groups(num_groups=1, num_rollouts=1)
    groups[0].rollouts[0] = Rollout(0, 0, (), "", "stop", log_probs=tuple(log_probs))
    write(ledger, 1, groups)
    [row] = ledger.read(1)
    assert row.log_probs == tuple(log_probs)


def test_a_step_made_again_replaces_the_old_one(tmp_path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, make_groups("old", num_groups=2))
    write(ledger, 1, make_groups("new", num_groups=1))
    assert {row.prompt for row in ledger.read(1)} == {"new"}
    assert len(ledger.read(1)) == 2


def test_a_step_that_fails_half_way_leaves_the_old_file(tmp_path):
    ledger, groups = Ledger(tmp_path), make_groups("new")
    write(ledger, 1, make_groups("old"))
    groups[1].scores.pop()
    with pytest.raises(ValueError, match="zip"):
        ledger.append(1, groups, selected(make_groups()))
    assert {row.prompt for row in ledger.read(1)} == {"old"}
    assert ledger.steps() == [1]


def test_a_wide_step_number_keeps_its_place(tmp_path):
    ledger = Ledger(tmp_path)
    for step in (1_000_000, 999_999):
        write(ledger, step, make_groups())
    assert ledger.steps() == [999_999, 1_000_000]


def test_a_selection_made_again_is_held_against_the_file(tmp_path):
    ledger, groups = Ledger(tmp_path), make_groups()
    write(ledger, 4, groups)
    path = ledger.path("step_000004")
    assert ledger.difference(4, groups, selected(groups)) is None
    other = make_groups()
    other[1].rollouts[0] = replace(other[1].rollouts[0], text="Twice 0")
    told = ledger.difference(4, other, selected(other))
    assert told == f"{path}:3 is another rollout than the step chooses from now"
    told = ledger.difference(4, groups, nothing_kept(groups, "below min_reward"))
    assert told == (
        f"{path}:4 says of rollout 1 of prompt prompts.jsonl:2: 'kept'; "
        "the selection now says 'below min_reward'"
    )
    for number in (1, 3):
        other = make_groups(num_groups=number)
        told = ledger.difference(4, other, selected(other))
        assert told == f"{path} has 4 rollouts, and the step now comes to {2 * number}"


def test_a_missing_step_and_a_broken_line_are_named(tmp_path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, make_groups())
    with pytest.raises(ValueError, match=r"no step 2; it has \[1\]"):
        ledger.read(2)
    path = Path(tmp_path / "step_000001.jsonl")
    for broken in (b"{", b"[]", b"{}", b'{"token_ids": [], "log_probs": [], "other": 1}'):
        path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n" + broken)
        with pytest.raises(ValueError, match=r"step_000001\.jsonl:2: not a row of a ledger"):
            ledger.read(1)


def test_refuses_a_step_below_one_and_a_selection_of_another_size(tmp_path):
    ledger, groups = Ledger(tmp_path), make_groups()
    with pytest.raises(ValueError, match="count from 1"):
        ledger.append(0, groups, selected(groups))
    with pytest.raises(ValueError, match="zip"):
        ledger.append(1, groups, selected(make_groups(num_groups=3)))
    assert ledger.steps() == []
