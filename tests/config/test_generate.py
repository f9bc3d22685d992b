"""The config of generate.py: the same defaults in file and schema, and one line for each problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import ConfigError, GenerateConfig, load_config
from rs_aligner.config.keys import meaning
from tests.config.conftest import compose

pytestmark = pytest.mark.timeout(60)


def smallest(workplace: Path, **changes: Any) -> list[str]:
    given = {
        "output": workplace / "answers.jsonl",
        "pretrained_checkpoint.restore_from_path": workplace / "policy",
        "model.data.files": workplace / "train.jsonl",
        **changes,
    }
    return [f"{key}={value}" for key, value in given.items()]


def test_the_yaml_file_and_the_schema_have_the_same_defaults(workplace: Path) -> None:
    written = load_config(compose("generate", smallest(workplace)), GenerateConfig)
    assert written == load_config(
        {
            "output": str(workplace / "answers.jsonl"),
            "pretrained_checkpoint": {"restore_from_path": str(workplace / "policy")},
            "model": {"data": {"files": str(workplace / "train.jsonl")}},
        },
        GenerateConfig,
    )
    in_file = compose("generate", [])

    def keys(model: type[Any], node: Any, prefix: str = "") -> None:
        assert set(node) == set(model.model_fields), prefix
        for name, field in model.model_fields.items():
            assert meaning(model, name) or hasattr(field.annotation, "model_fields"), name
            if hasattr(field.annotation, "model_fields") and node._get_node(name) is not None:
                keys(field.annotation, node[name], f"{prefix}{name}.")

    keys(GenerateConfig, in_file)


def test_an_answer_is_chosen_by_the_judge_if_there_is_one(workplace: Path) -> None:
    assert load_config(compose("generate", smallest(workplace)), GenerateConfig).choice == "first"
    judged = smallest(workplace, **{"remote_rm.reward_model.port": 6000})
    config = load_config(compose("generate", judged), GenerateConfig)
    assert config.choice == "best"
    assert config.remote_rm is not None
    assert config.remote_rm.reward_model.port == 6000
    asked = smallest(workplace, **{"model.answers.choose": "majority", "remote_rm.reward_model.port": 6000})
    assert load_config(compose("generate", asked), GenerateConfig).choice == "majority"


def test_prompts_get_what_the_answer_leaves_of_the_sequence(workplace: Path) -> None:
    config = load_config(compose("generate", smallest(workplace)), GenerateConfig)
    assert config.max_prompt_length(512) == 256
    cut = smallest(workplace, **{"model.data.seq_length": 30, "model.encoder_seq_length": 300})
    assert load_config(compose("generate", cut), GenerateConfig).max_prompt_length(512) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.answers.choose": "best"}, 'model.answers.choose is "best": needs a judge'),
        ({"model.answers.choose": "weighted"}, "needs a judge"),
        ({"model.answers.choose": "worst"}, 'model.answers.choose is "worst": should be'),
        ({"model.data.files": "[]"}, "model.data.files must be set"),
        ({"model.data.files": "nowhere.jsonl"}, "is not there; name JSON Lines, JSON, parquet"),
        ({"pretrained_checkpoint.restore_from_path": "nowhere"}, "is not there; name a Hugging Face folder"),
        ({"trainer.devices": 3, "model.tensor_model_parallel_size": 2}, "3 ranks should be a multiple of"),
        ({"model.tensor_model_parallel_size": 3, "trainer.devices": 3}, "should divide the policy's 8"),
        ({"model.expert_model_parallel_size": 2}, "should divide the data-parallel size, 1"),
        ({"model.answers.length_params.max_length": 512}, "should leave room for the prompt"),
        ({"model.answers.length_params.min_length": 300}, "should be at most model.answers.length_params"),
        ({"model.answers.sampling_params.temperature": 0}, "should be above 0, or"),
        ({"remote_rm.in_process": "true"}, "remote_rm.judge must be set with remote_rm.in_process"),
        ({"model.rs.top_n_rollouts": 1}, "model.rs is not a key"),
        ({"output": "."}, "is a folder; name a file"),
    ],
)
def test_what_cannot_work_is_named(workplace: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(compose("generate", smallest(workplace, **changes)), GenerateConfig)
    assert message in str(error.value)


def test_a_file_that_is_there_is_not_replaced_unasked(workplace: Path) -> None:
    (workplace / "answers.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match="exists; name another file, or set overwrite=true"):
        load_config(compose("generate", smallest(workplace)), GenerateConfig)
    assert load_config(compose("generate", smallest(workplace, overwrite="true")), GenerateConfig).overwrite
