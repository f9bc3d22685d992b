"""`remote_rm.in_process`: a run by the command line without any server."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from rs_aligner.midranks import midranks
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import groups_of
from rs_aligner.rollout import Score
from tests.e2e.launch import read_metrics, run_script
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def run_with(folder: Path, judge: str, *overrides: str) -> CompletedProcess[str]:
    """A run of two steps in `folder / "run"`, with a judge's code in `folder / "mine.py"`."""
    save_tiny_with_tokenizer(folder / "policy")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(8)))
    (folder / "mine.py").write_text(judge)
    done = run_script(
        "train_rs.py",
        f"exp_manager.explicit_log_dir={folder / 'run'}",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={folder / 'policy'}",
        f"model.data.data_prefix.train={folder / 'prompts.jsonl'}",
        *("model.rs.num_rollout_samples=4", "model.rs.length_params.max_length=8"),
        *("model.global_batch_size=4", "trainer.accelerator=cpu", "remote_rm.in_process=true"),
        *overrides,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done


def test_a_run_needs_no_server(tmp_path: Path) -> None:
    done = run_with(
        tmp_path,
        "def judge(prompts, responses, metadata):\n"
        "    return [{'reward': len(set(r)), 'length': len(r)} for r in responses]\n",
        f"remote_rm.judge.function={tmp_path / 'mine.py'}:judge",
    )
    run = tmp_path / "run"
    assert [row["rollouts/scored"] for row in read_metrics(run)] == [16, 16]
    for line in Ledger(run / "rollouts").read(1):
        assert line.reward == len(set(line.response))
        assert line.components == {"length": float(len(line.response))}
        assert line.judge
    page = (run / "report.html").read_text()
    assert f"report: {run / 'report.html'}" in done.stdout
    assert "It finished, with 2 steps." in page
    assert "Nobody can tell: no held-out answers were scored." in page


def test_what_two_judges_in_one_find_good_is_trained_on(tmp_path: Path) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine.py"
    done = run_with(
        tmp_path,
        "def many(prompts, responses, metadata):\n    return [len(set(r)) for r in responses]\n\n"
        "def short(prompts, responses, metadata):\n    return [-len(r) for r in responses]\n",
        "exp_manager.report=false",
        "model.rs.selection=[{name: pessimistic, components: [many, short]}]",
        f"remote_rm.judge.parts={{many: {{function: '{mine}:many'}}, short: {{function: '{mine}:short'}}}}",
    )
    assert "(the best 1 by the lowest of many and short)" in done.stdout
    ledger = Ledger.existing(run / "rollouts")
    for group in groups_of([row for step in (1, 2) for row in ledger.read(step)]):
        many, short = (
            midranks([score.components[name] for score in group.scores if isinstance(score, Score)])
            for name in ("many", "short")
        )
        lowest = [min(views) for views in zip(many, short, strict=True)]
        kept = [row.kept for step in (1, 2) for row in ledger.read(step) if row.prompt_id == group.prompt.id]
        assert lowest[kept.index(True)] == max(lowest)
        assert kept.count(True) == 1
    for row in read_metrics(run):
        assert row["rejected/not_in_pessimistic_top_n"] == 12
        assert row["rejected/score_without_many_or_short"] == 0
