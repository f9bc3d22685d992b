"""The judge that runs the program in a response against the tests of its row.

`row` reads the tests and `extract` the program, `judge` runs them in the sandbox (`rs_aligner.sandbox`),
`outcome` says what has passed.
"""

from rs_aligner.reward.judges.code.judge import CodeJudge

__all__ = ["CodeJudge"]
