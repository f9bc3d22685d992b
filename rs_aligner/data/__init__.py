"""Prompt files, chat templates, and an order whose place can be saved exactly.

Left out on purpose: packing; and streaming, since an order needs to know all rows.
"""

from rs_aligner.data.order import DataOrder, Draw
from rs_aligner.data.overlap import Origins, Places, held_apart, tell_duplicates
from rs_aligner.data.pairs import PairSet, load_pairs
from rs_aligner.data.prompts import PromptSet, load_prompts
from rs_aligner.data.reading import ReadingTokenizer
from rs_aligner.data.scored import load_scored
from rs_aligner.data.sft import SFTSet, load_sft_rows
from rs_aligner.data.shares import Share, shares_of

__all__ = [
    "DataOrder",
    "Draw",
    "Origins",
    "PairSet",
    "Places",
    "PromptSet",
    "ReadingTokenizer",
    "SFTSet",
    "Share",
    "held_apart",
    "load_pairs",
    "load_prompts",
    "load_scored",
    "load_sft_rows",
    "shares_of",
    "tell_duplicates",
]
