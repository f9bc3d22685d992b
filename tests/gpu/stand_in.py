"""Stands in for the interpreter of `scripts/gpu_check.sh` where there is no GPU: `test_gpu_check.py` runs it.

It sees a GPU; it runs other tests than those of a GPU with the real pytest, and the real benchmark with a
tiny shape on a CPU, so the files are those that the real ones write. Whatever else is asked for is run as it
is. The environment says what goes otherwise: STAND_IN_TESTS is the folder of tests, STAND_IN_FULL the shapes
for which there is no memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BENCHMARK = "benchmarks/generation.py"


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == "-c":
        return
    if arguments[:2] == ["-m", "pytest"]:
        assert "tests/gpu" in arguments
        arguments = [os.environ["STAND_IN_TESTS"] if one == "tests/gpu" else one for one in arguments]
    elif arguments[0] == BENCHMARK:
        benchmark(arguments[1:])
        return
    os.execv(sys.executable, [sys.executable, *arguments])


def benchmark(arguments: Sequence[str]) -> None:
    """The real program, whose shapes are all tiny and on the CPU."""
    shape = arguments[arguments.index("--shapes") + 1]
    if shape in os.environ.get("STAND_IN_FULL", "").split(","):
        sys.exit("torch.OutOfMemoryError: CUDA out of memory.")
    sys.path.insert(0, str(Path(BENCHMARK).parent))
    import generation
    import on_device

    compare = on_device.compare

    def tiny(shape: str, accelerator: str, repeats: int) -> dict[str, Any]:
        assert accelerator == "gpu"
        sizes = {"num_prompts": 2, "num_rollouts": 3, "prompt_length": 20, "max_length": 5}
        return compare("tiny", "cpu", repeats, **sizes)

    on_device.compare = tiny
    sys.argv = [BENCHMARK, *arguments]
    generation.main()


if __name__ == "__main__":
    main(sys.argv[1:])
