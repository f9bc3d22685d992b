"""Supervised training: `python examples/train_sft.py exp_manager.explicit_log_dir=runs/sft ...`.

Reads conf/train_sft.yaml and the overrides, checks them, trains on prompts with their responses, and leaves
metrics, checkpoints and the trained policy in the run's folder. With a judge (it runs in this process) it
stops as soon as held-out answers are good enough. Exits with status 2 and one message where something has
to be mended first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rs_aligner.cli.configured import sft

if __name__ == "__main__":
    sys.exit(sft(sys.argv[1:], beside=Path(__file__).parent))
