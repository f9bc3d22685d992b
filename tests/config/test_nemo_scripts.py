"""NeMo-Aligner's command lines as ours: what carries over, what is left out, what is refused."""

from __future__ import annotations

import pytest

from rs_aligner.cli.main import main
from rs_aligner.config.keys import walk
from rs_aligner.config.nemo_scripts import SCRIPTS, translate
from rs_aligner.config.upstream import SERVE_REWARD, TRAIN_RS

# As in NeMo-Aligner's documentation.
DOCUMENTED = [
    "pretrained_checkpoint.restore_from_path=model",
    "model.data.data_prefix={train: [a.jsonl], validation: [b.jsonl], test: [b.jsonl]}",
    "exp_manager.explicit_log_dir=runs/old",
    "trainer.rs.max_steps=313",
    "trainer.num_nodes=1",
    "++model.tensor_model_parallel_size=4",
    "model.optim.sched.constant_steps=312",
    "++model.rs.length_params.max_length=512",
    "remote_rm.reward_model.port=5555",
    "exp_manager.wandb_logger_kwargs.project=mine",
]


def test_a_documented_command_line_carries_over_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples/nlp/gpt/train_gpt_rs_actor.py", *DOCUMENTED]) == 0
    told = capsys.readouterr().out
    assert told.startswith("rs-aligner train \\\n")
    assert "#" not in told
    for override in DOCUMENTED:
        assert override.lstrip("+") in told


@pytest.mark.parametrize(
    ("script", "upstream"), [("train_gpt_rs_actor.py", TRAIN_RS), ("serve_reward_model.py", SERVE_REWARD)]
)
def test_every_key_of_the_three_lists_is_answered_as_its_list_says(script: str, upstream: object) -> None:
    for key in upstream.used:
        assert translate(script, [f"{key}=1"]).command[2:] == (f"{key}=1",)
    for key, reason in upstream.no_effect.items():
        found = translate(script, [f"++{key}=1"])
        assert (found.command[2:], found.left_out) == ((), (f"{key}=1: {reason}",))
    for key, refusal in upstream.refused.items():
        found = translate(script, [f"{key}=something"])
        assert (found.command[2:], found.refused) == ((), (f"{key}=something: {refusal.reason}",))
        assert translate(script, [f"{key}={str(refusal.harmless[0]).lower()}"]).refused == ()


def test_what_has_another_name_here_gets_it() -> None:
    for script in SCRIPTS.values():
        assert set(script.renamed.values()) <= {key for key, _ in walk(script.schema)}
    given = [
        "model.data.train_ds.file_path=a.jsonl",
        "model.restore_from_path=m",
        "model.answer_only_loss=True",
    ]
    command = ("model.data.data_prefix.train=a.jsonl", "pretrained_checkpoint.restore_from_path=m")
    assert translate("train_gpt_sft.py", given).command == ("rs-aligner", "sft", *command)
    assert translate("train_gpt_sft.py", ["model.answer_only_loss=false"]).refused


def test_what_is_refused_says_why_and_ends_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--config-name",
        "mine",
        "model.peft.peft_scheme=lora",
        "model.nothing=1",
        "trainer.rm.max_epochs=2",
    ]
    assert main(["train_reward_model.py", *given]) == 2
    out = capsys.readouterr().out
    assert "left out: --config-name mine: configs of NeMo-Aligner are not read" in out
    assert "model.peft.peft_scheme=lora: LoRA is not there yet" in out
    assert "model.nothing=1: is not a key here; the nearest one is model." in out
    assert out.endswith("rs-aligner reward-model \\\n    trainer.rm.max_epochs=2\n")
