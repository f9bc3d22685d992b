"""The judge dies for good under a true run of `examples/train_rs.py`: it saves, says why, and can go on."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from rs_aligner.record.ledger import Ledger
from tests.e2e.launch import read_metrics, run_script
from tests.ports import free_port
from tests.reward.triton_judge import FINGERPRINT, triton_judge, truth
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(560)]

STEPS = 6


def test_a_run_whose_judge_is_killed_saves_and_stops_with_one_message_and_continues(tmp_path: Path) -> None:
    """On two ranks; on one, `tests/reward/client/test_faults.py`."""
    save_tiny_with_tokenizer(tmp_path / "policy")
    prompts = "".join(json.dumps({"text": f"{number}", "id": f"p{number}"}) + "\n" for number in range(24))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    run, port = tmp_path / "run", free_port()
    arguments = [
        f"exp_manager.explicit_log_dir={run}",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={tmp_path / 'policy'}",
        f"model.data.data_prefix.train={tmp_path / 'prompts.jsonl'}",
        *("model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=4"),
        *("model.rs.length_params.max_length=8", "model.global_batch_size=4"),
        *(f"trainer.rs.max_steps={STEPS}", "trainer.rs.save_interval=100", "trainer.devices=2"),
        *("trainer.accelerator=cpu", f"remote_rm.endpoints=[127.0.0.1:{port}]", "remote_rm.give_up_after=3"),
        "remote_rm.max_failed_fraction=0",
    ]
    with triton_judge(tmp_path / "judge", port) as judge:

        def kill_after_two_steps() -> None:
            while not (run / "rollouts" / "step_000002.jsonl").exists():
                time.sleep(0.005)
            judge.kill()

        killer = threading.Thread(target=kill_after_two_steps, daemon=True)
        killer.start()
        stopped = run_script("train_rs.py", *arguments, timeout=240)
        killer.join(timeout=10)
        assert stopped.returncode == 1, stopped.stdout
        assert "Traceback" not in stopped.stdout
        errors = [line for line in stopped.stdout.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, stopped.stdout
        for part in (
            f"127.0.0.1:{port}",
            "ConnectionRefused",
            " x no judge can be asked",
        ):
            assert part in errors[0]
        done = read_metrics(run)[-1]["step"]
        behind = f"behind step {done} ({run}/checkpoints/step_{done:06d})"
        assert errors[0].endswith(f"; start the same command again: the run goes on {behind}")
        assert 2 <= done < STEPS
        assert [folder.name for folder in (run / "checkpoints").iterdir()] == [f"step_{done:06d}"]
        judge.start()
        judge.wait_until_ready()
        continued = run_script("train_rs.py", *arguments, timeout=240)
    assert continued.returncode == 0, continued.stdout
    assert [row["step"] for row in read_metrics(run)] == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        for line in Ledger(run / "rollouts").read(step):
            assert (line.reward, line.judge) == (truth(line.response), FINGERPRINT)
