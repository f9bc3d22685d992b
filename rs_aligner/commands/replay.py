"""`rs-aligner replay`: what other settings would have kept of the rollouts that a run has sampled.

Left out on purpose: how that is found (`report/replay.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from rs_aligner.report.alternative import Alternative, alternative, settings
from rs_aligner.report.replay import recorded, replay
from rs_aligner.report.run_data import RunData, open_run
from rs_aligner.report.tally import Outcome, Ratio


def main(arguments: Sequence[str]) -> None:
    """Print what was kept, and what would have been.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: there is no run, or it cannot be asked that.
        SystemExit: the arguments cannot be read, or ask for help.
    """
    args = _parser().parse_args(arguments)
    run = open_run(args.run)
    steps = _steps(run, args.step)
    outcomes = [recorded(run, steps), *replay(run, steps, _alternatives(run, args))]
    if bank := settings(run).pool.max_staleness:
        print(
            f"note: the run chose from what it had kept in the {bank} steps before, too "
            "(model.rs.pool.max_staleness); here each step chooses from what it sampled itself, so what was "
            "kept of that may be less than the same selection keeps here.",
            file=sys.stderr,
        )
    if args.json:
        print(json.dumps([as_json(outcome) for outcome in outcomes]))
        return
    which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    print(f"{run.folder}, {which}: {outcomes[0].reward.num:,} prompts, {outcomes[0].seen:,.0f} rollouts")
    print(table(outcomes))
    if len(steps) > 1 or steps[0] > 1:
        print("Behind step 1 the policy is the one that the run's own selection has trained.")


def table(outcomes: Sequence[Outcome]) -> str:
    """Outcomes, a line each, with standard errors over prompts."""
    has_component = any(one.selected.value != one.reward.value for one in outcomes)
    head = ["", "N", "kept", "kept reward", "by chance", "gain over chance", "best of N", "from"]
    if has_component:
        head.insert(3, "selected by")
    lines = [head]
    for one in outcomes:
        line = [
            one.words,
            str(one.num_rollouts),
            f"{one.kept:,.0f}",
            _with_error(one.reward),
            _number(one.chance.value),
            _with_error(one.gain),
            _number(one.best.value),
            one.how,
        ]
        if has_component:
            line.insert(3, _with_error(one.selected))
        lines.append(line)
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in (0, len(head) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values; what is undefined is null."""
    figures = {"selected": outcome.selected, "reward": outcome.reward, "gain": outcome.gain}
    return {
        "selection": outcome.words,
        "num_rollouts": outcome.num_rollouts,
        "from": outcome.how,
        "seen": outcome.seen,
        "kept": outcome.kept,
        **{name: ratio.value for name, ratio in figures.items()},
        **{f"{name}_error": ratio.error for name, ratio in figures.items()},
        "chance": outcome.chance.value,
        "best_of_n": outcome.best.value,
        "rejected": outcome.reasons,
    }


def _alternatives(run: RunData, args: argparse.Namespace) -> list[Alternative]:
    selections: list[Any] = [None] if not args.selection else list(map(_chain, args.selection))
    return [
        alternative(
            run,
            selection=selection,
            rollouts=args.rollouts,
            top_n=args.top_n,
            bar=args.bar,
            component=args.component,
        )
        for selection in selections
    ]


def _chain(text: str) -> list[Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--selection {text}: {' '.join(str(error).split())}") from None
    if not isinstance(found, list):
        example = "[{name: positive}, {name: topk, k: 2}]"
        raise ValueError(f"--selection {text} should be a list of selectors, such as '{example}'")
    return found


def _steps(run: RunData, step: int | None) -> list[int]:
    if run.kind != "train_rs":
        raise ValueError(f"{run.folder} is a run of {run.kind}, which selects nothing")
    there = run.steps()
    if not there:
        raise ValueError(f"{run.folder} has no rollouts yet: its first step is not selected")
    if step is None:
        return there
    if step not in there:
        raise ValueError(f"--step {step}: the ledger has steps {there[0]} to {there[-1]}")
    return [step]


def _with_error(ratio: Ratio) -> str:
    error = "" if ratio.error is None else f" ± {ratio.error:.4f}"
    return _number(ratio.value) + error


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rs-aligner replay",
        description="What other settings would have kept of the answers that a run has sampled and judged. "
        "Nothing is sampled. Figures are means over the kept, with standard errors over prompts.",
        epilog="Example: rs-aligner replay runs/mine --step 1 --rollouts 4 "
        "--selection '[{name: positive}, {name: topk, k: 2}]' --selection '[{name: median}]'. "
        "docs/after_a_run.md says which of it is exact and which an estimate.",
    )
    parser.add_argument("run", help="the folder of a run of rejection sampling")
    parser.add_argument("--selection", action="append", help="model.rs.selection; may be given several times")
    parser.add_argument(
        "--rollouts", type=int, metavar="N", help="model.rs.num_rollouts_per_prompt, or fewer"
    )
    parser.add_argument("--top-n", type=int, metavar="K", help="model.rs.top_n_rollouts")
    parser.add_argument("--bar", type=float, metavar="R", help="model.rs.min_reward")
    parser.add_argument(
        "--component", metavar="NAME", help="select by this part of the score, or by: watched"
    )
    parser.add_argument("--step", type=int, metavar="K", help="of one step only; all of the ledger otherwise")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
