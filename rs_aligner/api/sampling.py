"""Answers from Python: `rs_aligner.generate(prompts=..., model_path=...)`.

Left out on purpose: several ranks, and going on with a file that was cut short.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rs_aligner import progress
from rs_aligner.api import inputs
from rs_aligner.api.inputs import FOLDER, ModelSource, TextsOrRows
from rs_aligner.config import load_config
from rs_aligner.config.generate import GenerateConfig

_FILES, _OUTPUT = "model.data.files", "output"


def generate(
    *,
    prompts: TextsOrRows | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    model_path: ModelSource | None = None,
    output: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Sample answers in this process, and have them judged if the config names a judge.

    Args:
        prompts: as of `train`; None: the config's files.
        config: overrides of the tree of `generate.yaml`.
        model_path: the policy, where the config does not name it: a folder, or a pair (model, tokenizer).
        output: the file of the answers, where the config does not name it; None: they are only returned.

    Returns:
        A row for each prompt, as in the file: `responses`, `rewards`, its data row as `metadata`, ...

    Raises:
        ValueError: config or prompts cannot be used; with the key, or the argument and the row.
        JudgeFailed: the judge scored too little.
    """
    rows = inputs.whole("prompts", prompts)
    with tempfile.TemporaryDirectory(prefix="rs_aligner_") as scratch:
        tree = inputs.tree_from(config, output_dir=scratch)
        inputs.set_key(tree, _OUTPUT, output, "output")
        if OmegaConf.is_missing(tree, _OUTPUT) or OmegaConf.select(tree, _OUTPUT) is None:
            OmegaConf.update(tree, _OUTPUT, str(Path(scratch) / "answers.jsonl"))
        with inputs.given_in_folder(tree, [(_FILES, "prompts", rows)], model_path):
            del tree[FOLDER.partition(".")[0]]  # there is no run's folder
            typed = load_config(tree, GenerateConfig)
            inputs.refuse_ranks(typed, "generate")

        from rs_aligner.commands.generate import write_answers

        with inputs.shown_log(), progress.bars(typed.trainer.enable_progress_bar):
            write_answers(typed)
        with open(typed.output, "rb") as lines:  # of bytes: text has other ends of lines, as U+2028
            return list(map(json.loads, lines))
