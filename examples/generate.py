"""Answers of a model: `python examples/generate.py output=answers.jsonl model.data.files=prompts.jsonl ...`.

Reads conf/generate.yaml and the overrides, checks them, samples N answers to each prompt from a checkpoint,
has them scored if there is a judge, chooses one (the first, the best, or by a vote of final answers), and
writes a row for each prompt. Exits with status 2 and one message where something has to be mended first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rs_aligner.cli.configured import generate

if __name__ == "__main__":
    sys.exit(generate(sys.argv[1:], beside=Path(__file__).parent))
