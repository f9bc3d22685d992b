"""What reading many prompts costs: CPU seconds (all threads) and memory, for a file of short ones.

    python benchmarks/loading.py [--prompts 1000000] [--tokens 23] [--model FOLDER] [--against CHECKOUT ...]
        [--turns 1] [--out results.json]

A row has an id and a text of so many tokens: words of the test data's openings, drawn at random. The file is
made first and not counted. What counts is `load_prompts` in a process of its own, from the file to prompts
with their tokens and the digests that tell overlaps; tokenizer and imports are there before. A first start
reads a large file into a store of the node, a second one maps it. With `--against` code of other checkouts
reads the same file in turns, before each pair of starts. CPU seconds grow with what else the machine does,
since two processes share a core's caches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", ROOT.parent / "shared" / "data"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What reading many prompts costs")
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=23)
    parser.add_argument("--model", type=Path, default=DATA / "stories260k")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="roots of other checkouts")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--file", type=Path, help="read this file; how this script runs itself")
    how = parser.parse_args(arguments)
    if how.file is not None:
        print(json.dumps(load(how.file, how.model)))
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        write(file, how.prompts, how.tokens, how.model)
        for turn in range(how.turns):
            for root, what in [
                *((other.resolve(), other.name) for other in how.against),
                *((ROOT, start) for start in ("first start", "second start")),
            ]:
                scratch = Path(folder) / f"{turn}"
                scratch.mkdir(exist_ok=True)
                found.append({"what": what, **_start(root, file, how.model, scratch)})
                print(_line(found[-1]), flush=True)
    if how.out:
        how.out.write_text(json.dumps({"cores": os.cpu_count(), "starts": found}, indent=1) + "\n")


def _start(root: Path, file: Path, model: Path, scratch: Path) -> dict[str, Any]:
    """Read the file with the code of a checkout, in a process of its own."""
    command = [sys.executable, "-P", __file__, "--file", str(file), "--model", str(model)]
    load = os.getloadavg()[0]
    env = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(scratch)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return {"load": load, **json.loads(done.stdout.splitlines()[-1])}


def _line(found: dict[str, Any]) -> str:
    return (
        f"{found['what']:<14} {found['prompts']:,} prompts of {found['tokens']:.1f} tokens: "
        f"{found['cpu_seconds']:.1f} CPU s, {found['seconds']:.1f} s, {found['mebibytes']:.0f} MiB "
        f"(load {found['load']:.1f})"
    )


def write(file: Path, number: int, tokens: int, model: Path) -> None:
    """Write a file of prompts, each of so many tokens."""
    from rs_aligner.model.tokenizer import Tokenizer

    tokenizer, draw = Tokenizer(model), random.Random(0)
    lines = (DATA / "tinystories" / "prompts_train.jsonl").read_text().splitlines()
    words = sorted({word for line in lines for word in json.loads(line)["text"].split()})
    size = {word: len(tokenizer.encode(f"a {word}")) - len(tokenizer.encode("a")) for word in words}
    with file.open("w") as rows:
        for place in range(number):
            said, left = "A", tokens - len(tokenizer.encode("A"))
            while left > 0:
                word = draw.choice(words)
                said, left = (
                    (f"{said} {word}", left - size[word]) if size[word] <= left else (f"{said}.", left - 1)
                )
            rows.write(json.dumps({"id": f"p{place}", "text": said}) + "\n")


def load(file: Path, model: Path) -> dict[str, Any]:
    """Read a file with the package that is found first, and say what it took."""
    from rs_aligner.data import load_prompts
    from rs_aligner.model.tokenizer import Tokenizer

    tokenizer = Tokenizer(model)
    load_prompts([str(DATA / "tinystories" / "prompts_train.jsonl")], tokenizer, max_prompt_length=400)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    found = load_prompts([str(file)], tokenizer, max_prompt_length=400)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    number = len(found.prompts)
    sample = [len(found.prompts[place].token_ids) for place in range(0, number, max(1, number // 1000))]
    return {
        "prompts": number,
        "tokens": sum(sample) / len(sample),
        "cpu_seconds": cpu,
        "seconds": seconds,
        "mebibytes": (after.ru_maxrss - before.ru_maxrss) / 1024,
    }


if __name__ == "__main__":
    main()
