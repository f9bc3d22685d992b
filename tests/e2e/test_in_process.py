"""`remote_rm.in_process`: a run by the command line without any server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rs_aligner.record.ledger import Ledger
from tests.e2e.launch import read_metrics, run_script
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def test_a_run_needs_no_server(tmp_path: Path) -> None:
    save_tiny_with_tokenizer(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(8)))
    (tmp_path / "mine.py").write_text(
        "def judge(prompts, responses, metadata):\n"
        "    return [{'reward': len(set(r)), 'length': len(r)} for r in responses]\n"
    )
    run = tmp_path / "run"
    done = run_script(
        "train_rs.py",
        f"exp_manager.explicit_log_dir={run}",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={tmp_path / 'policy'}",
        f"model.data.data_prefix.train={tmp_path / 'prompts.jsonl'}",
        *(
            "model.rs.num_rollout_samples=4",
            "model.rs.length_params.max_length=8",
            "model.global_batch_size=4",
        ),
        *("trainer.accelerator=cpu", "remote_rm.in_process=true"),
        f"remote_rm.judge.function={tmp_path / 'mine.py'}:judge",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert [row["rollouts/scored"] for row in read_metrics(run)] == [16, 16]
    for line in Ledger(run / "rollouts").read(1):
        assert line.reward == len(set(line.response))
        assert line.components == {"length": float(len(line.response))}
        assert line.judge
    page = (run / "report.html").read_text()
    assert f"report: {run / 'report.html'}" in done.stdout
    assert "It finished, with 2 steps." in page
    assert "Nobody can tell: no held-out answers were scored." in page
