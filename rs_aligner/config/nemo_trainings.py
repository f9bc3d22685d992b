"""The keys of NeMo-Aligner's supervised training and of its reward model's, and what stands for each here.

By their `gpt_sft.yaml` and `training_rm.yaml`. A key stands for all that is below it; those of rejection
sampling that all their trainings share come from `upstream`. For translated command lines only: here these
keys are unknown ones. Left out on purpose: keys of forks, and of what there is no training for here.
"""

from __future__ import annotations

from collections.abc import Mapping

from rs_aligner.config.upstream import TRAIN_RS, Refusal, Upstream

_OF_RS = ("trainer.rs", "model.rs", "remote_rm")
_VALIDATION = "held-out rows are looked at whole, in batches of model.micro_batch_size"
_NO_HELD_OUT_LOSS = (
    "there is no held-out loss here; a judge scores answers to held-out prompts (judge.name, "
    "model.data.data_prefix.validation)"
)
_FILES = "rows are read once, by the process itself, whole or not at all"
_BATCHES = "an epoch's rows are all learnt, in batches whose sizes differ by at most one"
_STAGES = "model.activations_checkpoint_num_layers is that of every pipeline stage"
_MEGATRON = "how the model is built in Megatron is not a setting"
_NO_DROPOUT = Refusal("there is no dropout here; set it to 0", (0, False))
_EXPORT = "final/ will be a Hugging Face folder, written once, at the end"


def _under(section: str, names: str, why: str) -> dict[str, str]:
    return {f"{section}.{name}": why for name in names.split()}


def _with_shared(no_effect: Mapping[str, str], refused: Mapping[str, Refusal]) -> Upstream:
    """What rejection sampling has in common with the other trainings, and more."""
    same = {key: why for key, why in TRAIN_RS.no_effect.items() if not key.startswith(_OF_RS)}
    never = {key: why for key, why in TRAIN_RS.refused.items() if not key.startswith(_OF_RS)}
    built = {
        **_under("model", "sync_batch_comm gradient_as_bucket_view use_flash_attention", _MEGATRON),
        **_under("model", "share_embeddings_and_output_weights transformer_engine", _MEGATRON),
        "model.activations_checkpoint_layers_per_pipeline": _STAGES,
        "exp_manager.checkpoint_callback_params.save_best_model": _EXPORT,
        "model.save_nemo_on_validation_end": _EXPORT,
    }
    dropout = dict.fromkeys(
        ("model.hidden_dropout", "model.attention_dropout", "model.ffn_dropout"), _NO_DROPOUT
    )
    return Upstream(frozenset(), {**same, **built, **no_effect}, {**never, **dropout, **refused})


SFT = _with_shared(
    {
        "trainer.sft.limit_val_batches": _NO_HELD_OUT_LOSS,
        "trainer.sft.inference_metrics": _NO_HELD_OUT_LOSS,
        "exp_manager.checkpoint_callback_params.monitor": _NO_HELD_OUT_LOSS,
        "exp_manager.checkpoint_callback_params.mode": _NO_HELD_OUT_LOSS,
        "model.data.validation_ds": _NO_HELD_OUT_LOSS,
        "model.inference": _NO_HELD_OUT_LOSS,
        "model.encoder_seq_length": "NeMo-Aligner takes it from the model; rows have model.data.train_ds."
        "max_seq_length, which is model.encoder_seq_length here",
        "model.answer_only_loss": "only answers are learnt, as there, where nothing reads it",
        "model.data.sample": "trainer.sft.max_epochs passes are made, or trainer.sft.max_steps",
        **_under("model.data.train_ds", "shuffle", "rows are always shuffled, by model.seed"),
        **_under("model.data.train_ds", "memmap_workers index_mapping_dir hf_dataset num_workers", _FILES),
        **_under("model.data.train_ds", "min_seq_length truncation_field truncation_method", _FILES),
        **_under("model.data.train_ds", "drop_last packed_sequence", _BATCHES),
    },
    {
        "model.resume_from_checkpoint": TRAIN_RS.refused["exp_manager.resume_from_checkpoint"],
        "model.seq_len_interpolation_factor": Refusal("positions are those of the model's own config"),
        "model.data.chat": Refusal(
            "rows with messages (or conversations, as ShareGPT has them) are chats without being told so, "
            "and of each the last answer is learnt: leave the key out if that is what you want"
        ),
        "model.data.chat_prompt_tokens": Refusal("what stands around a turn is the chat template's"),
        "model.data.train_ds.file_names": Refusal(
            "name the files in model.data.data_prefix.train=[a.jsonl, b.jsonl]"
        ),
        "model.data.train_ds.concat_sampling_probabilities": Refusal(
            "a weight stands before its file in model.data.data_prefix.train=[0.3, a.jsonl, 0.7, b.jsonl]"
        ),
        "model.data.train_ds.label_key": Refusal(
            "the answer of a row is its response, completion, or output beside an input", ("output",)
        ),
        "model.data.train_ds.prompt_template": Refusal(
            "there the template has the answer, too, here only the prompt: model.data.prompt_template="
            "'Q: {input}' (by default the input as it is)",
            ("{input} {output}",),
        ),
        "model.data.train_ds.add_eos": Refusal("an answer always ends with the end token", (True,)),
        "model.data.train_ds.add_sep": Refusal("nothing is put between prompt and answer"),
    },
)
SFT_RENAMED = {
    "name": "exp_manager.name",
    "model.restore_from_path": "pretrained_checkpoint.restore_from_path",
    "model.data.train_ds.file_path": "model.data.data_prefix.train",
    "model.data.train_ds.global_batch_size": "model.global_batch_size",
    "model.data.train_ds.micro_batch_size": "model.micro_batch_size",
    "model.data.train_ds.max_seq_length": "model.encoder_seq_length",
    "model.data.train_ds.add_bos": "model.data.add_bos",
}

REWARD_MODEL = _with_shared(
    {
        "trainer.rm.limit_val_batches": _VALIDATION,
        "model.output_sequence": "one score is read behind the last token",
        "model.use_avg_pool": "one score is read behind the last token",
        "model.force_head_dtype": "the head has the precision of the model",
        "model.data.shuffle_documents": "pairs are always shuffled, by model.seed",
        **_under("model.data", "train_ds validation_ds", _FILES),
    },
    {
        "model.reward_model_type": Refusal(
            "only pairs are learnt from ({prompt, chosen, rejected} a row)", ("binary_ranking",)
        ),
        "model.regression": Refusal("only pairs are learnt from ({prompt, chosen, rejected} a row)"),
    },
)
_BY = "exp_manager.checkpoint_callback_params"
_BY_LOSS = (f"{_BY}.monitor=validation/loss", f"{_BY}.mode=min")
REWARD_MODEL_VALUES = {
    f"{_BY}.monitor": {
        **dict.fromkeys(("val_loss", "validation_loss"), _BY_LOSS),
        "val_acc": (f"{_BY}.monitor=validation/accuracy", f"{_BY}.mode=max"),
    }
}
PAIRS = (
    "a pair is two lines there, {text} with the better answer and then the other one, and here one row, "
    "{prompt, chosen, rejected}: docs/guides/from_nemo_aligner.md"
)
"""What else has to change besides the command line."""
