"""The ways in from Python beside `train`: a model in memory, other trainings, answers, a server, frames."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import transformers

import rs_aligner
from rs_aligner.config import RemoteRMConfig
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.rollout import Prompt, Rollout, Score
from tests.fake_run import FakeLogger, FakeRun
from tests.tiny import save_tiny_with_tokenizer

ROW = {"prompt": "1 is ", "number": 1}


def settings(command: str, **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "trainer": {"accelerator": "cpu", "threads": 1, f"{command}.max_steps": 1},
        "model": {"global_batch_size": 2, "micro_batch_size": 2},
    }
    return {**tree, **changes}


def for_trl(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    assert set(columns) <= {"number"}
    return [float(len(set(completion))) for completion in completions]


def lengths(samples: list[str], prompts: list[str], outputs: list[str], **_: Any) -> dict[str, list[int]]:
    assert samples == [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    return {"length": [len(output) for output in outputs]}


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_one_model_in_memory_goes_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    given = save_tiny_with_tokenizer(tmp_path / "given")
    model = transformers.AutoModelForCausalLM.from_pretrained(given)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given)
    mine, logger = {"model_path": (model, tokenizer)}, FakeLogger()

    def train(**rs: Any) -> rs_aligner.api.TrainResult:
        tree = settings("rs")
        tree["model"]["rs"] = {"num_rollouts_per_prompt": 3, "length_params.max_length": 6, **rs}
        return rs_aligner.train(
            reward_fn=for_trl,
            metric_fn=lengths,
            prompts=[ROW, "2 is "],
            eval_prompts=["held out "],
            config={**tree, "exp_manager.create_tensorboard_logger": True},
            loggers=[logger],
            output_dir="runs/mine",
            **mine,
        )

    trained = train()
    assert (trained.folder / "policy_given" / "config.json").is_file()
    assert not list(trained.folder.glob(".policy_given*"))
    held_out = rs_aligner.Run("runs/mine").held_out
    expected = held_out[held_out.step == 1].response.str.len().mean()
    assert trained.metrics[-1]["validation/metrics/length"] == pytest.approx(expected)
    assert [step for step, _ in logger.rows] == [0, 1]
    assert list((trained.folder / "logs").iterdir())
    assert train().metrics == trained.metrics  # the same model again: nothing is left to do
    with pytest.raises(ValueError, match=r"this run had other settings(.|\n)*max_length: 6 -> 7"):
        train(**{"length_params.max_length": 7})

    sft = rs_aligner.sft(rows=[{"prompt": "1 is ", "response": "one"}] * 2, config=settings("sft"), **mine)
    assert sft.folder == Path("runs/sft_001")
    rm = rs_aligner.reward_model(
        pairs=[{"prompt": "1 is ", "chosen": "one", "rejected": "two"}] * 2, config=settings("rm"), **mine
    )
    for result in (sft, rm):
        assert [row["step"] for row in result.metrics] == [1]
        assert (result.final / "model.safetensors").is_file()
    answers = rs_aligner.generate(
        prompts=[ROW, "2 \u2028is\x85 "],  # neither ends a line of JSON
        config={
            "trainer": {"accelerator": "cpu", "threads": 1},
            "model.answers": {"num_rollouts_per_prompt": 2, "length_params.max_length": 6},
        },
        model_path=sft.final,
        output=tmp_path / "answers.jsonl",
    )
    assert [len(row["responses"]) for row in answers] == [2, 2]
    assert answers[0]["metadata"]["number"] == 1
    assert answers[1]["text"] == "2 \u2028is\x85 "
    assert (tmp_path / "answers.jsonl").is_file()
    with pytest.raises(ValueError, match=r"model_path is \(\w+, str\): it should be a folder, or"):
        rs_aligner.sft(rows=[ROW], model_path=(model, "tokenizer"), config=settings("sft"))
    with pytest.raises(ValueError, match="pairs is empty"):
        rs_aligner.reward_model(pairs=[], config=settings("rm"), model_path=given)
    assert not Path("runs/sft_002").exists()


def test_a_metric_that_fails_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    from rs_aligner.reward.judges.callables import metrics_by
    from rs_aligner.rollout import Group

    group = Group(Prompt("p", "text", (1,)), [Rollout(0, 0, (1,), "a", "stop")], [Score(1.0)])
    assert metrics_by(lengths)([group]) == {"length": 1.0}
    assert metrics_by(lambda samples: 1 / 0)([group]) == {}
    assert "metric_fn gave no figures: ZeroDivisionError" in caplog.text
    with pytest.raises(ValueError, match=r"metric_fn\(texts\) cannot be called with the keywords"):
        metrics_by(lambda texts: {})


def test_a_run_is_data_frames(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path)
    fake.start(steps=2)
    run = rs_aligner.Run(tmp_path)
    assert list(run.metrics.index) == [0, 1, 2]
    assert run.metrics.loc[1, "rollouts/total"] == 16
    rollouts = run.rollouts
    assert len(rollouts) == 24
    kept = rollouts[rollouts.kept & (rollouts.step == 1)]
    assert kept.reward.mean() == pytest.approx(run.metrics.loc[1, "reward/kept_mean"])
    assert set(run.held_out.step) == {0, 2}
    assert run.report() == tmp_path / "report.html"
    assert run.report().is_file()
    assert (run.kind, run.folder) == ("train_rs", tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        rs_aligner.Run(tmp_path / "nowhere")


def test_a_run_without_a_step_is_an_empty_frame(tmp_path: Path) -> None:
    from rs_aligner.record.format import RunRecord

    RunRecord("train_rs").write(tmp_path)
    run = rs_aligner.Run(tmp_path)
    assert len(run.metrics) == len(run.rollouts) == 0
    assert "reward" in run.rollouts


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_judge_is_served_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def score(prompts, responses, metadata):\n    return [len(one) for one in responses]\n")

    def use() -> None:
        with rs_aligner.serve(config={"judge.function": f"{judge}:score"}) as served:
            process = psutil.Process(served.process)
            processes.extend([process, *process.children(recursive=True)])
            config = RemoteRMConfig.model_validate({"endpoints": [served.address]})
            with RemoteGPTRMClient(config) as client:
                client.wait_until_ready()
                future = client.submit(Prompt("p", "text", (1,)), Rollout(0, 0, (1,), "four", "stop"))
                client.flush()
                assert future.result(timeout=30) == Score(4.0)
            raise RuntimeError("of the block")

    processes: list[psutil.Process] = []
    with pytest.raises(RuntimeError, match="of the block"):
        use()
    assert len(processes) > 1
    assert not [process for process in processes if process.is_running()]
    broken = {"judge.function": f"{judge}:nothing"}
    with (
        pytest.raises(ValueError, match=r"server has ended: judge\.function"),
        rs_aligner.serve(config=broken),
    ):
        pass
    with (
        pytest.raises(ValueError, match="another process cannot find"),
        rs_aligner.serve(reward_fn=lambda prompts, responses, metadata: [0.0]),
    ):
        pass


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_served_judge_ends_with_a_program_that_is_killed_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def score(prompts, responses, metadata):\n    return [len(one) for one in responses]\n"
    )
    program = (
        "import rs_aligner, time\n"
        "with rs_aligner.serve(config={'judge.function': 'judge.py:score'}) as served:\n"
        "    print(served.address, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    processes: list[psutil.Process] = []
    try:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().rpartition(":")[2])
        processes = psutil.Process(parent.pid).children(recursive=True)
        server = processes[0].pid
        assert list(Path("/dev/shm").glob(f"pytrtion{server}-*"))
        names = [process.name() for process in processes]
        assert any("tritonserver" in name for name in names)
        assert any("stub" in name for name in names)
        assert len(processes) >= 4  # the server and the judge's own process besides
        parent.kill()
        parent.wait()
        _, left = psutil.wait_procs(processes, timeout=30)
        assert left == []
        assert not list(Path("/dev/shm").glob(f"pytrtion{server}-*"))
        assert not list(Path(tempfile.gettempdir()).glob(f"rs_judge_{server}_*"))
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        parent.kill()
        parent.wait()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
