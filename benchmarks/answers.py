"""How well answers are compared, and what it costs: `final_answer` beside `math-verify` alone.

    python benchmarks/answers.py               all pairs; some minutes, most of them math-verify's
    python benchmarks/answers.py --quick       fewer pairs of the grammar, fewer rollouts

Pairs of a response and a reference (`tests/answers`): a collection of what users of verifiers report, pairs
written by hand in the styles of MATH, college and olympiad sets before the readers were, and pairs that a
grammar draws which knows nothing of the readers. `math-verify` gets the response as it is and the reference
between dollar signs, as its own page advises, with its own settings, in the main thread, where its time limit
works. Ours asks it only about what it has read and cannot decide; its process is started before the clock is.

Times are CPU time in milliseconds for a pair that was not seen before. The cost lines are for plain numbers
(GSM8K's references), for words without a number, and for the selector `distinct_answers`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Behind the path that they are found on (E402).
from rs_aligner.answers import Undecided, final_answer, is_right, library, reading, verdict  # noqa: E402  # behind the path
from tests.answers.grammar import drawn  # noqa: E402  # behind the path
from tests.answers.pairs import pairs  # noqa: E402  # behind the path

DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", "../shared/data"))
Pair = tuple[str, str]
WORDS = "and so they all went home to see whether there was any of it left in the kitchen\n"


def ours(response: str, reference: str) -> bool:
    try:
        return is_right(response, reference)
    except Undecided:
        return False


def math_verify_alone(response: str, reference: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"${reference}$"), parse(response)))


def forget() -> None:
    """What was read is read again."""
    for cached in (verdict._expected, verdict._short, verdict._squeezed, reading._read):
        cached.cache_clear()
    library.shared()._known.clear()


def cpu_seconds() -> float:
    """CPU time of this process, and of math-verify's in hundredths of a second."""
    process = library.shared()._child._process
    times = psutil.Process(process.pid).cpu_times() if process is not None else None
    return time.process_time() + (times.user + times.system if times is not None else 0.0)


def accepted(side: Callable[[str, str], bool], found: Sequence[Pair]) -> tuple[int, list[float]]:
    """How many pairs are accepted, and milliseconds for each."""
    forget()
    times, count = [], 0
    for pair in found:
        start = cpu_seconds()
        count += side(*pair)
        times.append((cpu_seconds() - start) * 1e3)
    return count, times


def compare(num_drawn: int) -> list[dict[str, Any]]:
    sets = {
        "collection": (pairs("answers_right"), pairs("answers_wrong")),
        "by hand": (pairs("hand_right"), pairs("hand_wrong")),
        "grammar": (drawn(num_drawn, right=True), drawn(num_drawn, right=False)),
    }
    rows = []
    for name, (right, wrong) in sets.items():
        for side in (ours, math_verify_alone):
            calls = library.shared().calls
            good, times = accepted(side, right)
            bad, more = accepted(side, wrong)
            times += more
            rows.append(
                {
                    "pairs": name,
                    "side": "final_answer" if side is ours else "math-verify",
                    "right_accepted": good,
                    "right": len(right),
                    "wrong_accepted": bad,
                    "wrong": len(wrong),
                    "ms_median": statistics.median(times),
                    "ms_mean": statistics.fmean(times),
                    "ms_max": max(times),
                    "asked_library": library.shared().calls - calls,
                }
            )
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['pairs']} | {row['side']} | {row['right_accepted']} of {row['right']} | "
        f"{row['wrong_accepted']} of {row['wrong']} | "
        f"{row['ms_median']:.2f} | {row['ms_mean']:.2f} | {row['ms_max']:.0f} |"
    )


def each(call: Callable[[str], object], texts: Sequence[str]) -> float:
    """Milliseconds a text, the best of five rounds: what other programs take away is not counted."""
    best = float("inf")
    for _ in range(5):
        forget()
        start = time.process_time()
        for text in texts:
            call(text)
        best = min(best, (time.process_time() - start) / len(texts) * 1e3)
    return best


def costs(num_rollouts: int) -> dict[str, float]:
    from rs_aligner.rollout import Group, Prompt, Rollout, Score
    from rs_aligner.selection.base import Progress
    from rs_aligner.selection.distinct import DistinctAnswers

    lines = (DATA / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(text)["answer"] for text in lines]
    found: dict[str, float] = {}
    styles = {
        "marked": "#### {}",
        "boxed": r"so \boxed{{{}}}.",
        "sentence": "The answer is {}.",
        "with a unit": "#### {} dollars per day",
        "in prose": "Thus they walk {} miles (or so they say).",
    }
    for name, style in styles.items():
        texts = [text.rpartition("####")[0] + style.format(text.rpartition("#### ")[2]) for text in solutions]
        references = dict(zip(texts, solutions, strict=True))
        # Mypy sees no type of the lambda.
        found[f"plain number, {name}"] = each(lambda text, by=references: is_right(text, by[text]), texts)  # type: ignore[misc]  # bound by default
    for size in (280, 1690, 2000):
        text = (WORDS * 40)[:size]
        found[f"words, {size} characters"] = each(lambda said: is_right(said, "18"), [text] * 100)
        found[f"words, {size} characters, vote"] = each(final_answer, [text] * 100)
    texts = (
        [text for text, _ in drawn(1200, right=True)]
        + solutions
        + [(WORDS * 40)[n : n + 800] for n in range(600)]
    )
    number = 8
    groups = [
        Group(
            Prompt(str(row), "", (1,)),
            [
                Rollout(row, n, (1,), f"{row} {texts[(row * number + n) % len(texts)]}", "stop")
                for n in range(number)
            ],
            [Score(0.0)] * number,
        )
        for row in range(num_rollouts // number)
    ]
    selector = DistinctAnswers(1, None)
    forget()
    start = time.process_time()
    progress = Progress(1, 1)
    for group in groups:
        selector.of_group(group, list(range(number)), progress)
    seconds = time.process_time() - start
    found["distinct_answers, s for 100,000 rollouts"] = seconds / (len(groups) * number) * 100_000
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "answers.json")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    library.shared().same(r"\ln 4", r"2 \ln 2")  # starts it
    math_verify_alone(r"\boxed{\ln 4}", r"2 \ln 2")
    load = os.getloadavg()[0]
    print("| pairs | side | right accepted | wrong accepted | ms: median | mean | max |\n|" + "---|" * 7)
    rows = compare(48 if args.quick else 300)
    spent = costs(4_000 if args.quick else 100_000)
    for name, figure in spent.items():
        print(f"{name:<42} {figure:.3f}")
    result = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": load,
        "pairs": rows,
        "costs": spent,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    library.shared().close()


if __name__ == "__main__":
    main()
