"""RS Aligner: a language model learns from the best of its own answers.

Rejection sampling (best-of-N) fine-tuning with a remote judge, on Megatron. Importing this
package loads nothing heavy; each room imports what it needs. The ways in from Python are in
`rs_aligner.api`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Run", "generate", "reward_model", "serve", "sft", "train"]


def __getattr__(name: str) -> Any:
    """Loads what is asked for, with what it needs."""
    if name in __all__:
        # By name: an import statement here would make every module of the package depend on the trainer.
        return getattr(importlib.import_module("rs_aligner.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
