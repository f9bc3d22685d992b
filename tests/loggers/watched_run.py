"""A program for a terminal: runs with a live view, one after the other, in several surroundings.

Its texts would move the cursor, name the window and colour the screen if they were taken for more than text.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rs_aligner.cli.ranks import show_log
from rs_aligner.loggers import terminal
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure
from tests.fake_run import FakeRun, Result
from tests.loggers.samples import of_step

EVIL = "\x1b[2J\x1b]0;owned\x07[red]markup[/red]\x9b5A\x1b[?25l"


def score(prompt: Prompt, rollout: Rollout) -> Result:
    if rollout.index == 3:
        return ScoreFailure(f"the judge said {EVIL}")
    if rollout.index == 0:
        print("a line that somebody prints")
    return Score(rollout.seed / 1e6)


def crash() -> None:
    raise RuntimeError("the power is gone")


def watch(folder: Path, *, fails: bool) -> None:
    view = terminal.View(folder)
    if terminal.can_draw():
        view.start()
    run = FakeRun(folder)
    run.prompts = [Prompt(f"p{i}", f"{EVIL} prompt {i}", (100 + i,)) for i in range(6)]
    run.logger = view  # type: ignore[assignment]  # in the fake one's place
    try:
        run.start(
            score,
            steps=2,
            interval=1,
            epochs=9,
            seconds_per_rollout=0.05,
            before_train=crash if fails else lambda: None,
        )
        view.log_rollouts(of_step(EVIL), 2)
    except RuntimeError as error:
        print(f"it failed: {error}")
    finally:
        view.finalize("success")
    print("the shell goes on")


def main() -> None:
    show_log()
    folder = Path(sys.argv[1])
    for name, env in {
        "drawn": {},
        "plain": {"TERM": "dumb"},
        "grey": {"NO_COLOR": "1"},
        "failed": {},
    }.items():
        print(f"== {name}", flush=True)
        before = dict(os.environ)
        os.environ.update(env)
        watch(folder / name, fails=name == "failed")
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    main()
