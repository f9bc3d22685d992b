"""Prompt files, chat templates, and a sampler whose place can be saved exactly.

Left out on purpose: index files, packing and streaming; the prompts of a run fit in memory.
"""

from rs_aligner.data.overlap import Origins, held_apart, tell_duplicates
from rs_aligner.data.pairs import PairSet, load_pairs
from rs_aligner.data.prompts import PromptSet, load_prompts
from rs_aligner.data.reading import Tokenizer
from rs_aligner.data.sampler import Draw, PromptSampler
from rs_aligner.data.scored import load_scored
from rs_aligner.data.sft import SFTSet, load_sft_rows

__all__ = [
    "Draw",
    "Origins",
    "PairSet",
    "PromptSampler",
    "PromptSet",
    "SFTSet",
    "Tokenizer",
    "held_apart",
    "load_pairs",
    "load_prompts",
    "load_scored",
    "load_sft_rows",
    "tell_duplicates",
]
