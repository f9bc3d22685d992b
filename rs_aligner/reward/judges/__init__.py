"""The judges that a server (or, for a small run, the trainer itself) can serve.

`base` says what a judge is and how its rows are scored, `load` finds the one that the config names. The
rest are judges, a file for each kind. To add one, write a function or a class as `base` describes and name
it: users in `judge.function`, this project in `load.BUILT_IN`.
"""

from typing import TYPE_CHECKING, Any

from rs_aligner.reward.judges.base import (
    BadResult,
    JudgeFunction,
    Metadata,
    ServedJudge,
    TokenJudge,
    Value,
    content_hash,
    remarks_of,
    rows_at_once,
    score_rows,
    takes_calls_at_once,
)

if TYPE_CHECKING:
    from rs_aligner.reward.judges.load import BUILT_IN, load_judge

__all__ = [
    "BUILT_IN",
    "BadResult",
    "JudgeFunction",
    "Metadata",
    "ServedJudge",
    "TokenJudge",
    "Value",
    "content_hash",
    "load_judge",
    "remarks_of",
    "rows_at_once",
    "score_rows",
    "takes_calls_at_once",
]


def __getattr__(name: str) -> Any:
    """What is in `load`, when it is asked for: a worker's process is started often, and needs none of it."""
    if name in ("BUILT_IN", "load_judge"):
        from rs_aligner.reward.judges import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
