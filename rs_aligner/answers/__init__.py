"""The final answer of a text, and whether two are the same: numbers, mathematics, choices.

`extract` finds where an answer stands; `alone` reads numbers (by `plain` and `numbers`), `forms` everything
else (by `tokens`, `expressions` and `field`); `verdict` decides, with `library` for what only computer
algebra can tell. `choices` is for questions with options.
"""

from rs_aligner.answers.extract import MARK, marked_answer
from rs_aligner.answers.library import Undecided
from rs_aligner.answers.verdict import final_answer, final_answers, is_right, kind_of

__all__ = ["MARK", "Undecided", "final_answer", "final_answers", "is_right", "kind_of", "marked_answer"]
