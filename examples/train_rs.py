"""Rejection sampling fine-tuning: `python examples/train_rs.py exp_manager.explicit_log_dir=runs/first ...`.

Reads conf/train_rs.yaml and the overrides, checks them, waits for the judge (see serve_reward.py), trains,
and leaves metrics, ledger, checkpoints and the trained policy in the run's folder. Exits with status 2 and
one message where something has to be mended first.
"""

from __future__ import annotations

import sys

import experiment
import hydra
from omegaconf import DictConfig

from rs_aligner.config import TrainRSConfig, load_config, num_optimizer_steps, open_overrides, plan


@hydra.main(version_base=None, config_path="conf", config_name="train_rs")
def main(raw: DictConfig) -> None:
    with experiment.one_line_errors():
        config = load_config(raw, TrainRSConfig)
        experiment.start_ranks(config)
        experiment.keep_config(raw, config.exp_manager.explicit_log_dir)
        train(config)


def train(config: TrainRSConfig) -> None:
    # What can be wrong comes first, what is slow to import last.
    from rs_aligner.reward.client import RemoteGPTRMClient

    first, files = experiment.rank() == 0, config.model.data.data_prefix
    with RemoteGPTRMClient(config.remote_rm) as client:
        if first:
            experiment.say("waiting for the judge")
            client.wait_until_ready()
        tokenizer, positions = experiment.read_tokenizer(config)
        longest = config.max_prompt_length(positions)
        prompts = experiment.read_prompts(files.train, config, tokenizer, longest)
        validation = experiment.read_prompts(files.validation, config, tokenizer, longest)
        if first:
            print(plan(config, len(prompts), len(validation)))
            print(experiment.memory(config, len(prompts), max(len(p.token_ids) for p in prompts)), flush=True)

        from rs_aligner.run import Run
        from rs_aligner.trainer import RSTrainer

        steps = num_optimizer_steps(config, len(prompts))
        with experiment.policy_of(config, tokenizer, steps) as policy:
            judge = client if policy.runtime.is_source else None
            run = Run(config.exp_manager, is_writer=first, loggers=experiment.loggers(config.exp_manager))
            RSTrainer(config, policy, judge, prompts, validation, run).fit()
            run.close()
    if first:
        print(f"the trained policy: {run.final}\nfigures and rollouts: {run.folder}/metrics.jsonl, rollouts/")


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
