"""Serve rollouts by vLLM: `python examples/serve_rollouts.py pretrained_checkpoint.restore_from_path=MODEL`.

Reads conf/serve_rollouts.yaml and the overrides, checks them, starts vLLM in its own environment (which
`bash scripts/setup_vllm.sh` makes), says when it is ready, and serves until Ctrl-C or SIGTERM. Exits with
status 2 and the reason if the config, the model or the address cannot be used, and 1 if the server breaks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rs_aligner.cli.configured import serve_rollouts

if __name__ == "__main__":
    sys.exit(serve_rollouts(sys.argv[1:], beside=Path(__file__).parent))
