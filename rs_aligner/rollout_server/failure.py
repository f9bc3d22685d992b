"""Why a vLLM failed, in one line, by its log; and which models its kernels for a CPU cannot run.

Left out on purpose: whatever else it refuses, which it says itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of vLLM 0.32 on a CPU."""
_PREFIX = re.compile(r"^\([^)]*pid=\d+\) (?:(?:ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?")
_ERROR = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception): (?P<said>\S.*)")
_USAGE = re.compile(r"[\w.-]+: error: (?P<said>.+)")
_DEAD = "EngineCore encountered an issue"
_ECHOES = (
    _DEAD,
    "Engine core initialization failed",
    "Worker failed with error",
    "WorkerProc initialization failed",
)
_REFUSALS = "VLLMValidationError: "  # of a request, which fails alone
KILLED = "its engine ended without a word, as one that is killed does, or that the system has no memory for"
_SHOWN = 300


def reason_of(log: str) -> str:
    """The last error of a log that no other error made, nor a request; empty where nothing tells of one."""
    lines = [_PREFIX.sub("", line).rstrip() for line in log.splitlines()]
    found = ""
    for number, line in enumerate(lines):
        match = _ERROR.fullmatch(line) or _USAGE.fullmatch(line)
        if match is None or any(other in line for other in (*_ECHOES, _REFUSALS)):
            continue
        found = match["said"]
        if "validation error" in found:  # of pydantic, which says what in the next line
            found = "".join(lines[number + 1 : number + 2]).strip().removeprefix("Value error, ")
    return found[:_SHOWN] or (KILLED if _DEAD in log else "")


def head_size_problem(made: Mapping[str, Any]) -> str | None:
    """Why vLLM's kernels for a CPU cannot run a model of this config.json; None where nothing shows that."""
    size = made.get("head_dim")
    width = made.get("hidden_size", made.get("n_embd"))
    heads = made.get("num_attention_heads", made.get("n_head"))
    if size is None and width and heads:
        size = width // heads
    if size is None or size in CPU_HEAD_SIZES:
        return None
    known = ", ".join(map(str, CPU_HEAD_SIZES))
    return f"has heads of {size}, and vLLM on a CPU runs those of {known} only; engine=auto decodes it here"
