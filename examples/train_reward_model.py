"""A reward model from pairs: `python examples/train_reward_model.py exp_manager.explicit_log_dir=runs/rm`.

Reads conf/train_reward_model.yaml and the overrides, checks them, trains a model to tell the better of two
answers, and leaves metrics, checkpoints and the reward model in the run's folder. `final/` there is what
`serve_reward.py judge.name=megatron_reward_model judge.kwargs.folder=...` serves. Exits with status 2 and
one message where something has to be mended first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rs_aligner.cli.configured import reward_model

if __name__ == "__main__":
    sys.exit(reward_model(sys.argv[1:], beside=Path(__file__).parent))
