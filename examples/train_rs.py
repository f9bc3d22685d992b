"""Rejection sampling fine-tuning: `python examples/train_rs.py exp_manager.explicit_log_dir=runs/first ...`.

Reads conf/train_rs.yaml and the overrides, checks them, waits for the judge (see serve_reward.py), trains,
and leaves metrics, ledger, checkpoints and the trained policy in the run's folder. Exits with status 2 and
one message where something has to be mended first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rs_aligner.cli.configured import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:], beside=Path(__file__).parent))
