"""The final answer of a text, and whether two are the same: numbers, mathematics, choices.

`extract` finds where an answer stands, `alone` reads numbers, `verdict` decides.
"""

from rs_aligner.answers.extract import MARK, marked_answer
from rs_aligner.answers.verdict import final_answer, is_right

__all__ = ["MARK", "final_answer", "is_right", "marked_answer"]
