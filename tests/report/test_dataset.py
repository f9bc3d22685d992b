"""A run's rollouts as data: each text once, in the shapes of others, and read back by our own trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rs_aligner
from rs_aligner.commands import train_reward_model, train_sft
from rs_aligner.config import TrainRewardModelConfig, TrainSFTConfig, load_config
from rs_aligner.data import load_pairs, load_scored, load_sft_rows
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.report.dataset import Wanted, write_dataset
from rs_aligner.report.run_data import RunData, open_run
from rs_aligner.rollout import PREFILLED, Prompt, Rollout, Score, ScoreFailure
from tests.chat_models import CHATML, SPECIAL, THINK, save_tokenizer
from tests.command import status_of
from tests.fake_run import FakeRun, Result

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ledger_rows(run: RunData) -> Iterator[LedgerRow]:
    return (row for step in run.steps() for row in run.rows(step))


# Which rows


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Three steps whose answers are a few texts that come again; some have no score."""

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        if rollout.text == "0":
            return ScoreFailure("no idea")
        return Score(int(rollout.text, 16) / 4)

    run = FakeRun(tmp_path_factory.mktemp("repeated"))
    run.start(score, steps=6, interval=None, text_length=1, num_rollouts_per_prompt=6)
    return open_run(run.folder)


@pytest.mark.parametrize("content", ["kept", "all"])
def test_each_text_is_there_once_and_kept_if_it_ever_was(
    content: str, repeated: RunData, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    # A parameter of the test.
    written = write_dataset(repeated, path, Wanted(content))  # type: ignore[arg-type]  # from a parameter
    ledger = [row for row in ledger_rows(repeated) if content == "all" or row.kept]
    kept = {(row.prompt, row.response) for row in ledger if row.kept}
    rows = rows_of(path)
    texts = [(row["prompt"], row["completion"]) for row in rows]
    assert len(set(texts)) == len(texts) == written.rows < len(ledger)
    assert set(texts) == {(row.prompt, row.response) for row in ledger}
    assert written.rows + written.duplicates == len(ledger)
    assert {(row["prompt"], row["completion"]) for row in rows if row["kept"]} == kept
    by_place = {(row.step, f"{row.step}/{row.group}", row.index): row for row in ledger}
    for row in rows:
        of = by_place[row["step"], row["group"], row["index"]]
        assert (row["score"], row["reason"], row["kept"]) == (of.reward, of.reason, of.kept)
        assert (row["failure"], row["finish_reason"]) == (of.failure, of.finish_reason)
        assert (row["completion"], row["num_tokens"]) == (of.response, len(of.token_ids))


def test_pairs_are_a_kept_answer_and_a_rejected_one_of_its_prompt_that_scores_less(
    repeated: RunData, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    groups: dict[str, list[LedgerRow]] = {}
    for row in ledger_rows(repeated):
        if row.reward is not None:
            groups.setdefault(f"{row.step}/{row.group}", []).append(row)
    write_dataset(repeated, path, Wanted("pairs"))
    for row in rows_of(path):
        group = groups[row["group"]]
        rejected = min(one.reward or 0.0 for one in group)
        assert row["chosen_score"] == max(one.reward or 0.0 for one in group)
        assert row["rejected_score"] == rejected
        assert row["chosen"] in [one.response for one in group if one.kept]
    texts = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows_of(path)]
    assert len(set(texts)) == len(texts)
    several = write_dataset(repeated, path, Wanted("pairs", pairs_per_group=3))
    assert several.rows > len(texts)
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows_of(path))


def test_parquet_holds_the_same_and_bare_rows_are_of_the_shape_alone(
    repeated: RunData, tmp_path: Path
) -> None:
    from datasets import load_dataset  # slow to import

    for shape, columns in (
        ("trl", {"prompt", "completion", "label"}),
        ("openai", {"messages"}),
        ("sharegpt", {"conversations"}),
    ):
        lines, table, bare = (tmp_path / name for name in ("a.jsonl", "a.parquet", "bare.jsonl"))
        for path, is_bare in ((lines, False), (table, False), (bare, True)):
            # A parameter of the test.
            write_dataset(repeated, path, Wanted("all", shape, is_bare))  # type: ignore[arg-type]  # from a parameter
        loaded = load_dataset("parquet", data_files=str(table), cache_dir=str(tmp_path))["train"]
        assert loaded.to_list() == rows_of(lines)
        as_json = load_dataset("json", data_files=str(lines), cache_dir=str(tmp_path))["train"]
        assert as_json.to_list() == rows_of(lines)
        assert {key for row in rows_of(bare) for key in row} == columns


def test_what_cannot_be_written_is_told(
    repeated: RunData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, told in (
        (["--kept", "--out", "a.csv"], "a.csv should end in .jsonl or .parquet"),
        ([str(tmp_path), "--kept", "--out", "a.jsonl"], "is not the folder of a run: it has no run.json"),
    ):
        folder = [] if str(tmp_path) in arguments else [str(repeated.folder)]
        assert status_of(["dataset", *folder, *arguments]) == 2
        assert told in capsys.readouterr().err
    path = tmp_path / "pairs.jsonl"
    assert status_of(["dataset", str(repeated.folder), "--pairs", "--out", str(path)]) == 0
    assert f"{path}: {len(rows_of(path))} pairs; " in capsys.readouterr().out


# Shapes


def a_row(response: str, *, kept: bool, metadata: dict[str, Any], reward: float) -> LedgerRow:
    from rs_aligner.record.ledger_row import Judged, Stamp, row_of

    rollout = Rollout(0, int(not kept), (1,), response, "stop", 0, 1, (-1.0,))
    prompt = Prompt("p", "rendered", (1,), metadata)
    return row_of(
        prompt, Judged(rollout, Score(reward, {"half": reward / 2}), None), Stamp(1), kept=kept, reason="kept"
    )


@pytest.mark.parametrize("shape", ["trl", "openai", "sharegpt"])
@pytest.mark.parametrize("prefilled", ["", "<think>\n"])
def test_a_chat_stays_one_and_is_read_back_as_it_was(
    shape: str, prefilled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = THINK if prefilled else CHATML
    folder = save_tokenizer(tmp_path / "model", SPECIAL["think"], template=template, eos="<|im_end|>")
    tokenizer = Tokenizer(folder)
    data_row = {"messages": CHAT, "answer": 7, **({PREFILLED: prefilled} if prefilled else {})}
    kept = a_row("Fine</think> and you?", kept=True, metadata=data_row, reward=1.0)
    rejected = a_row("Why</think> no.", kept=False, metadata=data_row, reward=0.5)
    run = RunData(tmp_path, "train_rs")
    monkeypatch.setattr(RunData, "steps", lambda _: [1])
    monkeypatch.setattr(RunData, "rows", lambda *_: iter([kept, rejected]))
    monkeypatch.setattr(RunData, "rows_as", lambda *_: iter([kept, rejected]))
    text, _ = tokenizer.apply_chat_template(CHAT)
    prompt, closing = tuple(tokenizer.encode(text, is_chat=True)), tokenizer.closing(True)
    good, bad = ((*tokenizer.encode(row.response, is_chat=True), *closing) for row in (kept, rejected))
    paths = {content: tmp_path / f"{content}.jsonl" for content in ("kept", "pairs", "all")}
    for content, path in paths.items():
        write_dataset(run, path, Wanted(content, shape))  # type: ignore[arg-type]  # a parameter of the test
    (row,) = load_sft_rows([str(paths["kept"])], tokenizer, max_length=500).rows
    assert (row.prompt, row.response) == (prompt, good)
    (pair,) = load_pairs([str(paths["pairs"])], tokenizer, max_length=500).pairs
    assert (pair.chosen, pair.rejected) == (prompt + good, prompt + bad)
    (group,) = load_scored([str(paths["all"])], tokenizer, max_length=500)
    assert [rollout.token_ids for rollout in group.rollouts] == [good, bad]
    assert group.scores == [Score(row.reward or 0.0, row.components) for row in (kept, rejected)]
    assert (group.prompt.token_ids, group.prompt.id) == (prompt, "p")


# Real runs


def words(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
    return [len(set(response.split())) / 4 for response in responses]


@pytest.fixture(scope="module")
def stories(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunData]:
    model = test_data / "stories260k"
    folder = tmp_path_factory.mktemp("stories") / "run"
    prompts = ["Once upon a time", "The dog", "Lily had a", "One day"]
    rs = {"num_rollouts_per_prompt": 4, "length_params": {"max_length": 12}}
    rs_aligner.train(
        reward_fn=words, prompts=prompts, config=settings(rs=rs), model_path=model, output_dir=folder
    )
    return model, open_run(folder)


def settings(**model: Any) -> dict[str, Any]:
    return {
        "trainer": {"accelerator": "cpu", "threads": 1, "rs.max_steps": 1},
        "model": {"global_batch_size": 4, "micro_batch_size": 4, **model},
    }


def config_of(command: str, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    return {
        "trainer": {"accelerator": "cpu", "threads": 1, command: {"max_steps": 1}},
        "exp_manager": {"explicit_log_dir": str(folder)},
        "pretrained_checkpoint": {"restore_from_path": str(model)},
        "model": {
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "data": {"data_prefix": {"train": [str(data)]}},
        },
    }


@pytest.mark.slow
def test_trl_trains_on_the_answers_and_on_the_pairs(
    stories: tuple[Path, RunData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    trl = pytest.importorskip("trl", reason="requirements/dev.txt has it")
    model, run = stories
    how = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    for content, trainer, settings_of in (
        ("kept", trl.SFTTrainer, trl.SFTConfig),
        ("pairs", trl.DPOTrainer, trl.DPOConfig),
    ):
        path = tmp_path / f"{content}.jsonl"
        write_dataset(run, path, Wanted(content))
        data = load_dataset("json", data_files=str(path), cache_dir=str(tmp_path), split="train")
        assert not trl.data_utils.is_conversational(data[0])
        out = str(tmp_path / content)
        made = trainer(str(model), args=settings_of(out, **how, bf16=False), train_dataset=data)
        assert made.train().training_loss > 0


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_our_trainings_read_the_very_tokens_back(
    ending: str, stories: tuple[Path, RunData], tmp_path: Path
) -> None:
    model, run = stories
    tokenizer, ledger = Tokenizer(model), list(ledger_rows(run))
    kept, pairs, everything = (tmp_path / f"{name}{ending}" for name in ("kept", "pairs", "all"))
    write_dataset(run, kept, Wanted("kept"))
    rows = load_sft_rows([str(kept)], tokenizer, max_length=100).rows
    expected = [(row.prompt_token_ids, row.token_ids) for row in ledger if row.kept]
    assert [(row.prompt, row.response) for row in rows] == expected
    write_dataset(run, pairs, Wanted("pairs"))
    full = {row.prompt_token_ids + tuple(row.token_ids) for row in ledger}
    for pair in load_pairs([str(pairs)], tokenizer, max_length=100).pairs:
        closed = [ids if ids in full else ids[:-1] for ids in (pair.chosen, pair.rejected)]
        assert set(closed) <= full  # a cut answer has no end token, and a pair's has
    write_dataset(run, everything, Wanted("all"))
    groups = load_scored([str(everything)], tokenizer, max_length=100)
    assert [len(group.rollouts) for group in groups] == [4, 4, 4, 4]
    found = [(r.token_ids, s) for g in groups for r, s in zip(g.rollouts, g.scores, strict=True)]
    assert [(ids, score.reward) for ids, score in found if isinstance(score, Score)] == [
        (row.token_ids, row.reward) for row in ledger
    ]
    if ending == ".jsonl":
        return  # it has been read; training on it is tried once
    sft = config_of("sft", model, kept, tmp_path / "sft")
    train_sft.fit(load_config(sft, TrainSFTConfig))
    rm = config_of("rm", model, pairs, tmp_path / "rm")
    train_reward_model.fit(load_config(rm, TrainRewardModelConfig))
    read_back = settings(rs={"offline": [str(everything)]}, data={"data_prefix.train": []})
    offline = rs_aligner.train(config=read_back, model_path=model, output_dir=tmp_path / "rs")
    assert offline.metrics[-1]["rollouts/kept"] == 4
    learnt = Ledger.existing(offline.folder / "rollouts").read(1, kept_only=True)
    assert {row.response for row in learnt} == {row.response for row in ledger if row.kept}
