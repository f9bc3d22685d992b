"""Who is kept, and why.

`build_chain` makes the chain of selectors that the config names; `Chain.select` turns a step's groups into a
`Selection`, a keep mask with a reason for each rollout. A step is selected as a whole, and every rank that
holds it comes to the same selection by itself. `topk` has the plain recipe's choice as a tensor function;
`base` says what a selector is; the selectors are in `bars` (by reward), `pessimistic` (by judges that are
not trusted), `filters` (by what a rollout is) and `distinct` (by what the others are). What measures
likeness is in `likeness`.
"""

from rs_aligner.selection.base import Progress, Selector
from rs_aligner.selection.chain import Chain, build_chain, chain_of
from rs_aligner.selection.result import KEPT, NOT_SCORED, Selection, nothing_kept, selection_of
from rs_aligner.selection.topk import select_topk

__all__ = [
    "KEPT",
    "NOT_SCORED",
    "Chain",
    "Progress",
    "Selection",
    "Selector",
    "build_chain",
    "chain_of",
    "nothing_kept",
    "select_topk",
    "selection_of",
]
