"""Serve a judge: `python examples/serve_reward.py judge.name=exact_answer inference.port=5555`.

Reads conf/serve_reward.yaml and the overrides, checks them, and serves until Ctrl-C or SIGTERM. Exits with
status 2 and the reason if the config, the judge or the address cannot be used, and 1 if the server breaks.
With check=true it examines the judge instead and ends, with status 1 if the judge does not pass.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rs_aligner.cli.configured import serve

if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:], beside=Path(__file__).parent))
