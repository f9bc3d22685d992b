"""Whole runs that train adapters, from Python; what one of them leaves is used by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import rs_aligner
from rs_aligner.config import ConfigError
from rs_aligner.model.tokenizer import Tokenizer
from tests.tiny import save_tiny_with_tokenizer

LORA = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 2}}
ALONE = {"trainer": {"accelerator": "cpu", "threads": 1}}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "trainer": {
            "accelerator": "cpu",
            "threads": 1,
            "rs.max_steps": 2,
            "rs.max_epochs": 2,
            "rs.save_interval": 1,
        },
        "exp_manager.report": False,
        "model.global_batch_size": 4,
        "model.peft": LORA,
        "model.optim": {"lr": 1e-2, "sched": {"name": "constant", "warmup_steps": 0}},
        "model.rs": {"num_rollouts_per_prompt": 3, "length_params.max_length": 6, "objective.kl": 0.1},
        **changes,
    }


def distinct(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return [float(len(set(response))) for response in responses]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_runs_train_adapters_go_on_bit_for_bit_and_hand_them_over(tmp_path: Path) -> None:
    """Rejection sampling with a KL term, stopped and not; supervised, a reward model and answers upon it."""
    base = save_tiny_with_tokenizer(tmp_path / "base")

    def train(folder: str, **changes: Any) -> rs_aligner.TrainResult:
        return rs_aligner.train(
            reward_fn=distinct,
            prompts=[f"{n} is " for n in range(4)],
            eval_prompts=["held out "],
            config=settings(**changes),
            model_path=base,
            output_dir=tmp_path / folder,
        )

    through = train("through")
    train("stopped", trainer={**settings()["trainer"], "rs.max_steps": 1})
    stopped = train("stopped")
    weights = (through.final / "model.safetensors").read_bytes()
    assert weights == (stopped.final / "model.safetensors").read_bytes()
    assert weights != (base / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"model.peft.lora_tuning.adapter_dim: 2 -> 4"):
        train("stopped", **{"model.peft": {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 4}}})

    alone = {**LORA, "export": "adapter"}
    common = {key: value for key, value in settings().items() if key not in ("model.rs", "trainer")}
    common |= {**ALONE, "model.peft": alone}
    far = {**common, "trainer.sft.max_epochs": 10, "model.optim.lr": 0.1}
    texts = [{"prompt": f"{n} is ", "response": f"{n}."} for n in range(4)]
    supervised = rs_aligner.sft(rows=texts, config=far, model_path=base, output_dir=tmp_path / "sft")
    assert (supervised.final / "adapter_model.safetensors").is_file()
    pairs = [{"prompt": f"{n} is ", "chosen": f"{n}.", "rejected": "no"} for n in range(4)]
    rewards = rs_aligner.reward_model(
        pairs=pairs, config={**common, "model.peft": LORA}, model_path=base, output_dir=tmp_path / "rm"
    )
    assert "score.weight" in load_file(rewards.final / "model.safetensors")
    answers = [
        rs_aligner.generate(
            prompts=["3 is "],
            model_path=base,
            config={
                **ALONE,
                "model.answers.sampling_params.use_greedy": True,
                "model.answers.length_params.max_length": 8,
                "model.peft.restore_from_path": adapter,
            },
        )
        for adapter in (None, str(supervised.final))
    ]
    plain, adapted = (found[0]["responses"][0] for found in answers)
    tokens = torch.tensor([Tokenizer(base).encode("3 is ")])
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(supervised.final)
    )
    assert plain != adapted
    made = model.generate(input_ids=tokens, do_sample=False, min_new_tokens=1, max_new_tokens=8)[
        0, tokens.shape[1] :
    ]
    assert adapted == Tokenizer(base).decode(made.tolist())
