"""Makes the quickstart's task: additions such as `417+38=`, and an untrained policy small enough for a CPU.

Nothing is downloaded. The first number has up to --digits digits, the second up to one fewer. No addition
is in a file twice or in two files, not even with its numbers swapped:

    sft.jsonl         {"prompt": "417+38=", "response": "455"}    what the starting policy learns from
    dev.jsonl         {"text": "417+38=", "answer": "455"}        to tell when it has learnt enough
    train.jsonl       the same                                    prompts of the rejection sampling
    validation.jsonl  the same                                    held out, to measure by
    policy_start/     a Hugging Face Llama of 0.3 million random weights with one token per character
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from small_policy import save_policy

SIZES = {"sft.jsonl": 20_000, "dev.jsonl": 500, "train.jsonl": 8_000, "validation.jsonl": 1_000}


def additions(digits: int, seed: int) -> Iterator[tuple[str, str]]:
    """Endless distinct additions, as question and answer."""
    rng, seen = random.Random(seed), set()
    while True:
        a, b = rng.randrange(10**digits), rng.randrange(10 ** (digits - 1))
        if frozenset((a, b)) not in seen:
            seen.add(frozenset((a, b)))
            yield f"{a}+{b}=", str(a + b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--digits", type=int, default=3, choices=range(3, 10), help="of the first number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--heads", type=int, default=4, help="of the policy; vLLM on a CPU takes 3, of 32 each"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    problems = additions(args.digits, args.seed)
    for name, size in SIZES.items():
        keys = ("prompt", "response") if name == "sft.jsonl" else ("text", "answer")
        with (args.out / name).open("w") as file:
            for _ in range(size):
                file.write(json.dumps(dict(zip(keys, next(problems), strict=True))) + "\n")
    sizes = {"hidden": 96, "layers": 3, "heads": args.heads, "positions": 64}
    save_policy(args.out / "policy_start", "0123456789+=", args.seed, **sizes)


if __name__ == "__main__":
    main()
