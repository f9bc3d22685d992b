"""`rs_aligner.train`: real runs in this process, judged by a function, and what it refuses."""

from __future__ import annotations

import json
import linecache
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import rs_aligner
from rs_aligner.config import ConfigError
from rs_aligner.objective import terms
from rs_aligner.record.ledger import Ledger
from rs_aligner.reward.judges.callables import judge_of
from rs_aligner.reward.protocol import JudgeFailed
from tests.conftest import ROOT
from tests.policy.full_kl import FullKL
from tests.tiny import save_tiny_with_tokenizer

PROMPTS: list[Any] = [{"prompt": f"{n} is ", "number": n} for n in range(4)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("policy"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def settings(**changes: Any) -> dict[str, Any]:
    """A run of one step of four prompts, some keys nested and some dotted."""
    return {
        "trainer": {"accelerator": "cpu", "threads": 1, "rs.max_steps": 1},
        "model.global_batch_size": 4,
        "model": {
            "optim": {"lr": 1e-2, "sched": {"name": "constant", "warmup_steps": 0}},
            "rs": {"num_rollouts_per_prompt": 3, "length_params.max_length": 6},
        },
        **changes,
    }


def distinct(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return [float(len(set(response))) for response in responses]


# Real runs


def start_in(folder: Path, policy: Path) -> str:
    """What a second start in the folder of a run at work is told; it changes nothing there."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "examples" / "train_rs.py"), "trainer.accelerator=cpu"),
            "model.rs.length_params.max_length=6",
            f"exp_manager.explicit_log_dir={folder}",
            f"model.data.data_prefix.train=[{folder / 'prompts.jsonl'}]",
            f"pretrained_checkpoint.restore_from_path={policy}",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    return line


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_both_forms_train_in_one_process_and_leave_a_whole_run(policy: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    refusals: list[str] = []

    def in_trlx_form(
        samples: list[str], prompts: list[str], outputs: list[str], **kwargs: Any
    ) -> list[float]:
        seen.append({"samples": samples, "prompts": prompts, "outputs": outputs, **kwargs})
        if (tmp_path / "first" / "metrics.jsonl").exists() and not refusals:
            refusals.append(start_in(tmp_path / "first", policy))
        return [float(len(set(output))) for output in outputs]

    first = rs_aligner.train(
        reward_fn=in_trlx_form,
        prompts=PROMPTS,
        eval_prompts=["held out ", "also "],
        config=settings(),
        model_path=policy,
        output_dir=tmp_path / "first",
    )
    second = rs_aligner.train(
        reward_fn=distinct,
        prompts=[row["prompt"] for row in PROMPTS],
        eval_prompts=["held out ", "also "],
        config=settings(),
        model_path=policy,
        output_dir=tmp_path / "second",
    )
    for result in (first, second):
        assert [row["step"] for row in result.metrics] == [0, 1]
        assert result.metrics[1]["rollouts/scored"] == 12
        assert result.metrics[1]["rollouts/kept"] == 4
        assert "validation/reward" in result.metrics[1]
        assert (result.final / "model.safetensors").is_file()
        assert (result.folder / "config.yaml").is_file()
        for line in Ledger(result.folder / "rollouts").read(1):
            assert line.reward == len(set(line.response))
            assert line.judge

    [refusal] = refusals
    assert f"is in use by process {os.getpid()} on " in refusal
    assert not (tmp_path / "first" / "owner").exists()

    def figures(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    # The same judge, seed and prompts: the same run, whatever ran in the process before.
    assert figures(first.metrics) == figures(second.metrics)
    assert (
        (first.final / "model.safetensors").read_bytes()
        == (second.final / "model.safetensors").read_bytes()
        != (policy / "model.safetensors").read_bytes()
    )
    real = [call for call in seen if call["prompts"][0] != "1 + 1 = "]
    assert {n for call in real for n in call["number"] if n is not None} == {0, 1, 2, 3}
    for call in real:
        assert "prompt" not in call
        assert "text" not in call
        for sample, prompt, output in zip(call["samples"], call["prompts"], call["outputs"], strict=True):
            assert sample == prompt + output
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judge-")]
    torch_distributed = sys.modules["torch.distributed"]
    assert not torch_distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_reward_function_may_set_alarms_and_leave_some_behind(policy: Path, tmp_path: Path) -> None:
    class TooSlow(Exception):
        pass

    def late(number: int, frame: Any) -> None:
        raise TooSlow

    def bounded(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        rewards = []
        for place, response in enumerate(responses):
            signal.signal(signal.SIGALRM, late)  # as math_verify does, which raises in any other thread
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            try:
                while place == 1:  # takes for ever
                    pass
                rewards.append(float(len(set(response))))
            except TooSlow:
                rewards.append(-1.0)
        return rewards  # the last alarm is still to come, in the midst of the run

    before = signal.getsignal(signal.SIGALRM)
    result = rs_aligner.train(
        reward_fn=bounded, prompts=PROMPTS, config=settings(), model_path=policy, output_dir=tmp_path / "run"
    )
    assert signal.getsignal(signal.SIGALRM) is before
    rows = Ledger(result.folder / "rollouts").read(1)
    assert result.metrics[-1]["rollouts/scored"] == len(rows) == 12
    assert [row.reward for row in rows].count(-1.0) == 1  # 12 rows are one call
    assert result.metrics[-1]["time/score_wait"] >= 0.02  # what it takes is not the sampling's


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_goes_on_where_it_was_after_ctrl_c_too_and_a_judge_that_fails_ends_it(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = interrupted = False

    def may_break(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        if interrupted and not prompts[0].startswith("1 + 1"):
            signal.raise_signal(signal.SIGINT)  # noted, and heeded behind this batch
        if broken and not prompts[0].startswith("1 + 1"):
            raise RuntimeError("out of order")
        return distinct(prompts, responses, metadata)

    def go(steps: int) -> rs_aligner.api.TrainResult:
        return rs_aligner.train(
            reward_fn=may_break,
            prompts=[row["prompt"] for row in PROMPTS],
            config=settings(**{"trainer.rs.max_epochs": 3, "trainer.rs.max_steps": steps}),
            model_path=policy,
            output_dir=tmp_path / "run",
        )

    assert [row["step"] for row in go(1).metrics] == [1]
    broken = True
    with pytest.raises(
        JudgeFailed, match="scored none of 12 rollouts: 12 x the judge raised RuntimeError: out"
    ):
        go(2)
    broken, interrupted = False, True
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"the run goes on behind step 1 \(.*/step_000001\)"):
        go(2)
    assert signal.getsignal(signal.SIGINT) == handler
    interrupted = False
    assert [row["step"] for row in go(2).metrics] == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_rows_that_weights_stand_before_are_drawn_by_their_shares(policy: Path, tmp_path: Path) -> None:
    import pandas

    few, many = PROMPTS[:2], pandas.DataFrame([{"prompt": f"{n} makes "} for n in range(6)])
    given: dict[str, Any] = {
        "prompts": [3, few, 1, many],
        "config": settings(**{"trainer.rs.max_steps": 2, "model.rs.num_rollout_samples": 4}),
        "model_path": policy,
        "output_dir": tmp_path / "run",
    }
    result = rs_aligner.train(reward_fn=distinct, **given)
    assert [row["data/share/prompts.jsonl"] for row in result.metrics] == [0.75, 0.75]
    assert [row["data/share/prompts_2.jsonl"] for row in result.metrics] == [0.25, 0.25]
    ledger = Ledger.existing(result.folder / "rollouts")
    drawn = [row.prompt for step in (1, 2) for row in ledger.read(step) if row.index == 0]
    assert sorted(prompt.endswith("is ") for prompt in drawn) == [False] * 2 + [True] * 6
    assert {drawn.count(row["prompt"]) for row in few} == {3}
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        rs_aligner.train(reward_fn=distinct, **{**given, "prompts": [3, [], 1, many]})
    with pytest.raises(ValueError, match=r"data_prefix\.train is -3\.0: a weight should be above 0"):
        rs_aligner.train(
            reward_fn=distinct, **{**given, "prompts": [-3, few, 1, many], "output_dir": tmp_path / "new"}
        )
    given["prompts"] = [1, few, 3, many]
    with pytest.raises(
        ValueError, match=r"(?s)the data to train on.*allow_changes=\[model\.data\.data_prefix"
    ):
        rs_aligner.train(reward_fn=distinct, **given)


def test_a_watched_judge_anchors_and_offline_rollouts_come_by_the_config(
    policy: Path, tmp_path: Path
) -> None:
    (tmp_path / "anchors.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 4)
    sampled = rs_aligner.train(
        reward_fn=distinct,
        prompts=PROMPTS,
        config=settings(
            **{
                "watched_rm": {"in_process": True, "judge": {"name": "length", "kwargs": {"at_most": 1}}},
                "model.rs.objective.anchor": {"files": [str(tmp_path / "anchors.jsonl")], "share": 0.5},
            }
        ),
        model_path=policy,
        output_dir=tmp_path / "sampled",
    )
    row = sampled.metrics[-1]
    assert "watched/mean" in row
    assert row["kl/to_start"] == pytest.approx(0, abs=1e-4)  # the first step samples from the start itself
    offline = rs_aligner.train(  # nothing is scored, so no judge is needed
        config=settings(
            **{
                "model.rs.offline": [str(sampled.folder / "rollouts")],
                "model.data.data_prefix.train": [],
                "trainer.rs.val_check_interval": None,
            }
        ),
        model_path=policy,
        output_dir=tmp_path / "offline",
    )
    assert offline.metrics[-1]["reward/mean"] == pytest.approx(row["reward/mean"])
    assert offline.metrics[-1]["rollouts/kept"] == 4


# What is refused, before anything slow


def test_a_run_keeps_the_starting_policy_for_a_term_that_compares_logits(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "TERMS", [*terms.TERMS, FullKL.of])
    result = rs_aligner.train(
        reward_fn=distinct,
        prompts=PROMPTS[:2],
        model_path=policy,
        output_dir=tmp_path / "run",
        config=settings(**{"model.rs.kl_samples": 0}),
    )
    assert result.metrics[-1]["full_kl"] == pytest.approx(0, abs=1e-6)  # of the step's own beginning


def test_a_users_selector_is_imported_before_the_judge_is_waited_for(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import nowhere_to_be_found\n")
    chain = [{"name": "function", "function": f"{tmp_path / 'mine.py'}:keep"}]
    with pytest.raises(
        ValueError, match=r"model\.rs\.selection\.0\.function: importing .* failed: .*nowhere"
    ):
        rs_aligner.train(  # no judge is there to be reached
            prompts=PROMPTS, config=settings(**{"model.rs.selection": chain}), model_path=policy
        )


def refused(tmp_path: Path, **arguments: Any) -> str:
    """The message; nothing may stay behind."""
    policy = tmp_path / "policy"
    policy.mkdir(exist_ok=True)
    (policy / "config.json").write_text("{}")
    (policy / "model.safetensors").touch()
    given = {"reward_fn": distinct, "prompts": ["a"], "config": settings(), "model_path": policy}
    with pytest.raises(ValueError, match=r".") as error:
        rs_aligner.train(**{**given, **arguments})
    assert not (tmp_path / "runs" / "train_001").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": None}, "model.data.data_prefix.train must be set"),
        ({"prompts": "one"}, "prompts is one str: it should be a list"),
        ({"prompts": ["a", 3]}, r"prompts[1] is a int: it should be a text, or a row"),
        ({"prompts": [{"text": "a", "what": {1, 2}}]}, "prompts[0] cannot be written as JSON"),
        ({"eval_prompts": []}, "eval_prompts is empty"),
        ({"reward_fn": 3}, "reward_fn is a int: it should be a function"),
        (
            {"reward_fn": lambda texts: [0.0]},
            "reward_fn(texts) should be f(prompts, responses, metadata), TRL",
        ),
        ({"reward_fn": lambda prompts, responses, metadata: [0.0]}, "1 results for 2 rows"),
        ({"reward_fn": lambda prompts, responses, metadata: 0.5}, "returned a float, not a list"),
        ({"reward_fn": lambda prompts, responses, metadata: undefined_name}, "NameError"),  # noqa: F821 (on purpose)
        (
            {"reward_fn": lambda samples, tokenizer: [0.0]},
            "cannot be called with the keywords samples: missing",
        ),
        ({"reward_fn": lambda **rows: [0.0], "prompts": [{"text": "a", "outputs": 1}]}, "key 'outputs'"),
        (
            {"reward_fn": None, "config": settings(**{"remote_rm.in_process": True})},
            "remote_rm.judge must be",
        ),
        ({"config": settings(**{"remote_rm.endpoints": ["a:1"]})}, "but reward_fn is the judge"),
        ({"config": settings(**{"trainer.devices": 2})}, "2 ranks, but rs_aligner.train has one"),
        ({"config": settings(**{"model.rs.top_n_rollout": 2})}, "the nearest one is model.rs.top_n_rollouts"),
        ({"config": {3: 4}}, "3 should be a text"),
        ({"config": {"model": {"seed": object()}}}, "model.seed cannot be set to <object"),
        ({"config": "nowhere"}, "there is no file nowhere.yaml"),
        ({"config": {"pretrained_checkpoint.restore_from_path": "other"}}, "is other in the config, and"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    assert message in refused(tmp_path, **arguments)


def test_under_a_launcher_it_says_which_script_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "4 ranks, but rs_aligner.train has one: use `rs-aligner train`" in refused(tmp_path)


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    refused(tmp_path, output_dir=tmp_path / "mine", config=settings(**{"model.rs.top_n_rollout": 2}))
    assert (tmp_path / "mine" / "notes").read_text() == "keep"


def test_a_judge_that_fails_on_made_up_rows_is_only_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        raise KeyError("made up")

    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        refused(tmp_path, reward_fn=picky, config=settings(**{"model.rs.top_n_rollout": 2}))
    assert "may be right for real ones: KeyError" in caplog.text


# The two forms


def scores(function: Any, keys: tuple[str, ...] = ()) -> list[Any]:
    judge = judge_of(function, keys)
    return list(judge.score_texts(["a", "b"], ["c", "d"], [{"text": "a", "n": 1}, {"text": "b"}]))


def test_the_form_is_told_by_the_names_of_the_parameters() -> None:
    class Callable:
        def __call__(self, samples: list[str]) -> list[str]:
            return samples

    def ours(prompts: Any, responses: Any, metadata: Any) -> Any:
        return list(zip(prompts, responses, [row.get("n") for row in metadata], strict=True))

    by_position = [("a", "c", 1), ("b", "d", None)]
    assert scores(ours) == by_position
    assert scores(lambda x, y, z: ours(x, y, metadata=z)) == by_position
    assert scores(lambda *columns: list(ours(*columns))) == by_position
    assert scores(lambda samples, prompts, outputs: samples) == ["ac", "bd"]
    assert scores(lambda outputs: outputs) == ["c", "d"]
    assert scores(Callable()) == ["ac", "bd"]
    assert scores(lambda samples, n: n, ("text", "n")) == [1, None]
    assert scores(lambda **rows: [sorted(rows)] * 2, ("text", "n", "prompt"))[0] == [
        "n",
        "outputs",
        "prompts",
        "samples",
    ]


def test_a_function_for_trl_is_called_as_trl_does() -> None:
    assert scores(lambda completions, **rows: completions) == ["c", "d"]
    assert scores(lambda prompts, completions, n: list(zip(prompts, n, strict=True)), ("text", "n")) == [
        ("a", 1),
        ("b", None),
    ]
    judge = judge_of(lambda prompts, completions, **_: [None, len(completions[1][0]["content"])])
    chat = {"messages": [{"role": "user", "content": "b"}], "prefilled": "<think>"}
    first, second = judge.score_texts(["a", "b"], ["c", "d"], [{}, chat])
    # A judge may give failures, and here gives numbers.
    assert (math.isnan(first), second) == (True, len("<think>d"))  # type: ignore[arg-type]  # rewards are there


def test_a_function_may_say_which_form_it_has() -> None:
    def odd(prompts: Any, samples: Any, outputs: Any) -> Any:
        return list(zip(prompts, samples, strict=True))

    assert scores(odd) == [("a", "ac"), ("b", "bd")]
    odd.reward_form = "ours"  # type: ignore[attr-defined]  # what users set on their functions
    assert scores(odd) == [("a", "c"), ("b", "d")]
    odd.reward_form = "mine"  # type: ignore[attr-defined]  # what users set on their functions
    with pytest.raises(
        ValueError, match=r"reward_fn\.reward_form is 'mine': it should be one of ours, trl, trlx"
    ):
        scores(odd)


def test_the_fingerprint_is_the_codes() -> None:
    one = judge_of(lambda samples: [0.0])
    other = judge_of(lambda samples: [1.0])
    assert one.fingerprint != other.fingerprint
    assert judge_of(distinct).fingerprint == judge_of(distinct).fingerprint
    assert judge_of(max).fingerprint  # no source, and no signature


# The config


def test_a_yaml_file_is_read_with_what_it_builds_on(tmp_path: Path) -> None:
    from rs_aligner.config.tree import read_tree

    (tmp_path / "base.yaml").write_text("model: {seed: 1, rs: {top_n_rollouts: 1}}\nhydra: {run: x}\n")
    (tmp_path / "mine.yaml").write_text("defaults: [base, _self_]\nmodel: {seed: 2}\n")
    for name in ("mine", "mine.yaml"):
        assert read_tree(tmp_path / name) == {"model": {"seed": 2, "rs": {"top_n_rollouts": 1}}}
    (tmp_path / "odd.yaml").write_text("defaults: [{a: b}]\n")
    with pytest.raises(ConfigError, match="only names of files beside it work"):
        read_tree(tmp_path / "odd")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="should hold keys and values"):
        read_tree(tmp_path / "list")
    (tmp_path / "bad.yaml").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tree(tmp_path / "bad")


def test_the_files_of_the_examples_are_read_too() -> None:
    from rs_aligner.config.tree import read_tree

    root = Path(rs_aligner.__file__).resolve().parents[1]
    tree = read_tree(root / "examples" / "conf" / "stories.yaml")
    assert tree.model.rs.num_rollout_samples == 128
    assert tree.model.rs.top_n_rollouts == 1
    assert "hydra" not in tree


def test_importing_the_package_stays_light() -> None:
    code = "import json, sys, rs_aligner; print(json.dumps(sorted(sys.modules)))"
    root = Path(rs_aligner.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True
    )
    assert not {"torch", "pydantic", "rs_aligner.api"} & set(json.loads(done.stdout))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rs_aligner.trian  # noqa: B018 (asking is enough)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_that_keeps_a_tenth_of_what_it_could_still_trains_at_its_rate(
    policy: Path, tmp_path: Path
) -> None:
    """The schedule is planned for what could be kept, so the run ends in the first tenth of it."""

    def one_in_ten(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [float(row.get("number", 1) % 10 == 0) for row in metadata]

    result = rs_aligner.train(
        reward_fn=one_in_ten,
        prompts=[{"prompt": f"{n} is ", "number": n} for n in range(40)],
        config={
            "trainer": {"accelerator": "cpu", "threads": 1, "rs.max_epochs": 3},
            "model.global_batch_size": 4,
            "model.optim.lr": 1e-3,
            "model.rs": {"num_rollouts_per_prompt": 2, "min_reward": 1, "length_params.max_length": 4},
        },
        model_path=policy,
        output_dir=tmp_path / "few",
    )
    # 40 could be kept in each of 3 steps, in 10 batches: a schedule of 30 steps with 2 to warm up.
    assert [row["rollouts/kept"] for row in result.metrics] == [4, 4, 4]
    rates = [row["lr"] for row in result.metrics]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    before, after = (
        safetensors.torch.load_file(folder / "model.safetensors") for folder in (policy, result.final)
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_function_whose_file_has_changed_since_is_a_judge_all_the_same(tmp_path: Path) -> None:
    file, scope = tmp_path / "cell.py", dict[str, Any]()
    exec(compile("judge = lambda prompts, responses, rows: [1.0]\n", file, "exec"), scope)
    for changed in ("judge = (\n", "    judge = 1\n  other = 2\n", "'''"):
        file.write_text(changed)
        linecache.checkcache(str(file))
        assert isinstance(judge_of(scope["judge"]).fingerprint, str)
