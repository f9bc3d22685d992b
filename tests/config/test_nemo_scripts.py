"""NeMo-Aligner's command lines as ours: what carries over, what is left out, what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.cli import help as helps
from rs_aligner.cli.main import main
from rs_aligner.config import TrainRewardModelConfig, TrainSFTConfig, load_config
from rs_aligner.config.keys import walk
from rs_aligner.config.nemo_scripts import SCRIPTS, translate
from rs_aligner.config.upstream import SERVE_REWARD, TRAIN_RS
from tests.config.conftest import compose
from tests.config.test_upstream import listed
from tests.tiny import save_tiny_with_tokenizer

# As in NeMo-Aligner's guides to rejection sampling, supervised training and reward models.
ACTOR = """
--config-path=examples/nlp/gpt/conf --config-name=gpt_rs_actor
"model.data.data_prefix={train: [a.jsonl], validation: [b.jsonl], test: [b.jsonl]}"
pretrained_checkpoint.restore_from_path=model exp_manager.checkpoint_callback_params.save_top_k=1
exp_manager.explicit_log_dir=runs/old trainer.rs.max_epochs=1 trainer.rs.max_steps=313
trainer.rs.val_check_interval=4 trainer.num_nodes=1 trainer.devices=8 ++model.tensor_model_parallel_size=4
model.global_batch_size=32 model.micro_batch_size=1 "model.optim.lr=${multiply:1e-6,1.001}"
model.optim.sched.warmup_steps=0 model.optim.sched.constant_steps=312 model.optim.sched.min_lr=1e-6
model.optim.weight_decay=0.01 model.rs.num_rollout_samples=32 model.rs.rollout_micro_batch_size=16
model.rs.forward_micro_batch_size=16 model.rs.val_rollout_micro_batch_size=8 model.data.data_impl=jsonl
remote_rm.reward_model.ip=node1 remote_rm.reward_model.port=5555 model.rs.num_rollouts_per_prompt=8
model.rs.top_n_rollouts=1
"""
SERVER = """
trainer.num_nodes=1 trainer.devices=8 ++model.tensor_model_parallel_size=4 rm_model_file=rm.nemo
inference.port=5567
"""
SFT = """
trainer.precision=bf16 trainer.num_nodes=1 trainer.devices=8 trainer.sft.max_steps=-1
trainer.sft.limit_val_batches=40 trainer.sft.val_check_interval=1000 trainer.sft.save_interval=100
model.megatron_amp_O2=True model.restore_from_path=gpt.nemo model.optim.lr=5e-6 model.answer_only_loss=True
model.data.num_workers=0 model.data.train_ds.micro_batch_size=1 model.data.train_ds.global_batch_size=128
model.data.train_ds.file_path=dolly.jsonl model.data.train_ds.max_seq_length=4096
model.data.validation_ds.micro_batch_size=1 model.data.validation_ds.global_batch_size=128
model.data.validation_ds.file_path=dolly.jsonl exp_manager.create_wandb_logger=True
exp_manager.explicit_log_dir=/results exp_manager.wandb_logger_kwargs.project=sft_run
exp_manager.wandb_logger_kwargs.name=dolly_sft_run exp_manager.resume_if_exists=True
exp_manager.resume_ignore_no_checkpoint=True exp_manager.create_checkpoint_callback=True
exp_manager.checkpoint_callback_params.save_nemo_on_train_end=True
exp_manager.checkpoint_callback_params.monitor=val_loss
"""
REWARD_MODEL = """
trainer.num_nodes=1 trainer.devices=8 ++model.micro_batch_size=1 ++model.global_batch_size=512
++model.data.data_impl=jsonl pretrained_checkpoint.restore_from_path=gpt.nemo
"model.data.data_prefix={train: [train.jsonl], validation: ['test 1.jsonl'], test: ['test 1.jsonl']}"
exp_manager.create_wandb_logger=False exp_manager.wandb_logger_kwargs.project=rm_training
exp_manager.explicit_log_dir=/results trainer.rm.save_interval=500 trainer.rm.val_check_interval=100
trainer.rm.limit_val_batches=100000 exp_manager.checkpoint_callback_params.monitor=val_loss
++model.activations_checkpoint_granularity=full ++model.mcore_gpt=True
"""


def test_a_documented_command_line_carries_over_whole(capsys: pytest.CaptureFixture[str]) -> None:
    given = shlex.split(ACTOR)
    assert main(["examples/nlp/gpt/train_gpt_rs_actor.py", *given]) == 0
    told = capsys.readouterr().out
    left_out = [line for line in told.splitlines() if line.startswith("#")]
    expected = ("--config-path", "--config-name", "model.data.data_prefix.test=[b.jsonl]", "model.rs.forward")
    assert len(left_out) == 5
    for part in (*expected, "model.rs.val_rollout_micro_batch_size=8"):
        assert any(part in line for line in left_out)
    command = shlex.split(told.partition("rs-aligner train ")[2].replace("\\\n", ""))
    same = {one.lstrip("+") for one in given if not one.startswith(("-", "model.data.data"))}
    files = {"model.data.data_prefix.train=[a.jsonl]", "model.data.data_prefix.validation=[b.jsonl]"}
    assert set(command) == files | {one for one in same if "forward" not in one and "val_rollout" not in one}


@pytest.mark.parametrize(
    ("script", "given", "schema"),
    [
        ("train_gpt_sft.py", SFT, TrainSFTConfig),
        ("train_reward_model.py", REWARD_MODEL, TrainRewardModelConfig),
    ],
)
def test_a_documented_command_line_of_the_other_trainings_becomes_one_that_ours_reads(
    script: str, given: str, schema: Any, tmp_path: Path
) -> None:
    found = translate(script, shlex.split(given))
    assert found.refused == ()
    save_tiny_with_tokenizer(tmp_path / "model")
    there = tmp_path / "data.jsonl"
    there.write_text("{}\n")
    overrides = []
    for override in found.command[2:]:
        key, _, value = override.partition("=")
        if key.startswith("model.data.data_prefix"):
            value = f"[{there}]"
        elif key == "pretrained_checkpoint.restore_from_path":
            assert value == "gpt.nemo"
            value = str(tmp_path / "model")
        elif key == "model.encoder_seq_length":
            assert value == "4096"
            value = "64"  # of the tiny one
        overrides.append(f"{key}={value}")
    config = load_config(compose(helps.OF[found.command[1]].config, overrides), schema)
    assert config.world_size == 8
    assert config.model.global_batch_size in (128, 512)
    monitor = config.exp_manager.checkpoint_callback_params.monitor
    assert monitor == ("validation/loss" if script == "train_reward_model.py" else "val_global_rewards")


def test_a_file_with_a_space_in_its_name_keeps_its_quotes() -> None:
    command = translate("train_reward_model.py", shlex.split(REWARD_MODEL)).command
    assert "model.data.data_prefix.validation=['test 1.jsonl']" in command


def test_the_server_keeps_its_port_and_says_what_becomes_of_the_model_file() -> None:
    found = translate("serve_reward_model.py", shlex.split(SERVER))
    assert found.command == ("rs-aligner", "serve", "inference.port=5567")
    [refused] = found.refused
    assert refused.startswith("rm_model_file=rm.nemo: a reward model is served by judge.name=megatron")


# Every key of gpt_sft.yaml and training_rm.yaml; the optimizer's are the same in both.
SFT_KEYS = """
name
trainer: num_nodes devices accelerator precision logger enable_checkpointing use_distributed_sampler max_time
trainer: max_epochs max_steps
trainer.sft: max_epochs max_steps val_check_interval save_interval limit_val_batches gradient_clip_val
trainer.sft: inference_metrics
exp_manager: explicit_log_dir exp_dir name create_wandb_logger wandb_logger_kwargs resume_if_exists
exp_manager: resume_ignore_no_checkpoint create_checkpoint_callback
exp_manager.checkpoint_callback_params: monitor save_top_k mode save_nemo_on_train_end filename
exp_manager.checkpoint_callback_params: model_parallel_size save_best_model
model: seed tensor_model_parallel_size pipeline_model_parallel_size restore_from_path resume_from_checkpoint
model: save_nemo_on_validation_end sync_batch_comm megatron_amp_O2 encoder_seq_length sequence_parallel
model: activations_checkpoint_granularity activations_checkpoint_method activations_checkpoint_num_layers
model: activations_checkpoint_layers_per_pipeline answer_only_loss gradient_as_bucket_view
model: seq_len_interpolation_factor use_flash_attention hidden_dropout attention_dropout ffn_dropout inference
model.peft: peft_scheme restore_from_path
model.peft.lora_tuning: target_modules adapter_dim adapter_dropout column_init_method row_init_method
model.peft.lora_tuning: layer_selection weight_tying position_embedding_strategy
model.data: chat sample num_workers dataloader_type
model.data.chat_prompt_tokens: system_turn_start turn_start label_start end_of_turn end_of_name
model.data.train_ds: file_path global_batch_size micro_batch_size shuffle memmap_workers max_seq_length
model.data.train_ds: min_seq_length drop_last label_key add_eos add_sep add_bos truncation_field
model.data.train_ds: index_mapping_dir prompt_template hf_dataset truncation_method file_names
model.data.train_ds: concat_sampling_probabilities
model.data.validation_ds: file_path global_batch_size micro_batch_size shuffle max_seq_length drop_last
model.data.validation_ds: prompt_template output_original_text
"""
REWARD_MODEL_KEYS = """
trainer: num_nodes devices accelerator precision logger enable_checkpointing use_distributed_sampler max_time
trainer: max_epochs max_steps
trainer.rm: max_epochs max_steps val_check_interval save_interval limit_val_batches gradient_clip_val
exp_manager: explicit_log_dir exp_dir name max_time_per_run create_wandb_logger wandb_logger_kwargs
exp_manager: resume_from_checkpoint resume_if_exists resume_ignore_no_checkpoint create_checkpoint_callback
exp_manager.checkpoint_callback_params: monitor save_top_k mode always_save_nemo save_nemo_on_train_end
exp_manager.checkpoint_callback_params: filename model_parallel_size
pretrained_checkpoint: restore_from_path
model: mcore_gpt share_embeddings_and_output_weights reward_model_type output_sequence use_avg_pool
model: force_head_dtype micro_batch_size global_batch_size megatron_amp_O2 encoder_seq_length
model: max_position_embeddings seed precision overwrite_base_config
model.regression: num_attributes merge_attributes attribute_weights loss_mask_val
model.optim: name bucket_cap_mb overlap_grad_sync contiguous_grad_buffer lr weight_decay betas
model.optim.sched: name warmup_steps constant_steps min_lr
model.data: data_impl splits_string seq_length skip_warmup num_workers dataloader_type reset_position_ids
model.data: reset_attention_mask eod_mask_loss index_mapping_dir
model.data.data_prefix: train validation test
"""


@pytest.mark.parametrize(
    ("script", "keys"), [("train_gpt_sft.py", SFT_KEYS), ("train_reward_model.py", REWARD_MODEL_KEYS)]
)
def test_each_key_of_their_config_files_has_an_answer(script: str, keys: str) -> None:
    for key in listed(keys):
        found = translate(script, [f"{key}=something"])
        assert len((*found.command[2:], *found.left_out, *found.refused)) == 1
        assert not any("is not a key here" in line for line in found.refused), key


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
    for given, command in (
        ("model.data.train_ds.file_path=a.jsonl", "model.data.data_prefix.train=a.jsonl"),
        ("++model.data.train_ds={file_path: a.jsonl}", "model.data.data_prefix.train=a.jsonl"),
        ("model.restore_from_path=m", "pretrained_checkpoint.restore_from_path=m"),
        ("model.data.train_ds.max_seq_length=64", "model.encoder_seq_length=64"),
    ):
        assert translate("train_gpt_sft.py", [given]).command == ("rs-aligner", "sft", command)


@pytest.mark.parametrize(
    ("override", "harmless"),
    [
        ("model.data.train_ds.label_key=text", "model.data.train_ds.label_key=output"),
        (
            "model.data.train_ds.prompt_template='Q: {input} A: {output}'",
            "model.data.train_ds.prompt_template='{input} {output}'",
        ),
        ("model.hidden_dropout=0.1", "model.hidden_dropout=0.0"),
        ("model.data.chat=True", "model.data.chat=False"),
        ("model.data.train_ds.add_eos=False", "model.data.train_ds.add_eos=True"),
    ],
)
def test_what_changes_what_is_learnt_is_refused_and_what_asks_for_nothing_is_not(
    override: str, harmless: str
) -> None:
    assert translate("train_gpt_sft.py", [override]).refused
    found = translate("train_gpt_sft.py", [harmless])
    assert (found.command[2:], found.refused) == ((), ())


def test_what_is_refused_says_why_and_ends_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--config-name",
        "mine",
        "model.peft.lora_tuning.weight_tying=true",
        "model.nothing=1",
        "trainer.rm.max_epochs=2",
    ]
    assert main(["train_reward_model.py", *given]) == 2
    out = capsys.readouterr().out
    assert "left out: --config-name mine: configs of NeMo-Aligner are not read" in out
    assert "model.peft.lora_tuning.weight_tying=true: each layer has adapters of its own" in out
    assert "model.nothing=1: is not a key here; the nearest one is model." in out
    assert "{text} with the better answer and then the other one" in out
    assert out.endswith("rs-aligner reward-model \\\n    trainer.rm.max_epochs=2\n")
