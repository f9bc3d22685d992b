"""Answers of a model: `python examples/generate.py output=answers.jsonl model.data.files=prompts.jsonl ...`.

Reads conf/generate.yaml and the overrides, checks them, samples N answers to each prompt from a checkpoint,
has them scored if there is a judge, chooses one (the first, the best, or by a vote of final answers), and
writes a row for each prompt. Exits with status 2 and one message where something has to be mended first.
"""

from __future__ import annotations

import sys

import experiment
import hydra
from omegaconf import DictConfig

from rs_aligner.commands.generate import write_answers
from rs_aligner.config import GenerateConfig, load_config, open_overrides


@hydra.main(version_base=None, config_path="conf", config_name="generate")
def main(raw: DictConfig) -> None:
    with experiment.one_line_errors():
        config = load_config(raw, GenerateConfig)
        experiment.start_ranks(config)
        write_answers(config, is_first=experiment.rank() == 0)


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
