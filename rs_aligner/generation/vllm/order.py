"""A run of rollouts on order: each is handed on as it ends, and what is missing then is asked for again.

A server's answer is a stream, and may break off anywhere. What was handed on by then was checked, and stays;
it is never asked for again. The rest is as few requests as it can be: the first stands in the order's place,
and any others are told of, to be ordered by themselves. A response that vLLM ended at a string that our text
does not have is ordered once more, to be sampled without a look at strings: the same tokens again, and those
that follow. Left out on purpose: who is asked (`remote.asking`), and how many orders there are at once
(`decoder.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue

from rs_aligner.generation.rows import Ended
from rs_aligner.generation.vllm.completion import Choice, Choices
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.controls import Run
from rs_aligner.remote.errors import BadAnswer

COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Unsampled:
    """A run without its rollouts, or without some of them, and why."""

    reason: str


Result = Unsampled | None
"""Of an order; None where all of its rollouts were handed on, or are other orders'."""
Told = list[Ended] | Run | Result
"""Of an order: rollouts that have ended, runs that have to be ordered, and at last the result."""


class Order:
    """A run that is asked for until it is there. Used by one thread at a time.

    Args:
        run: the rollouts.
        told: where they are handed on.

    Attributes:
        run: what is missing of it; None once nothing is.
    """

    def __init__(self, run: Run, told: SimpleQueue[Told]) -> None:
        self.run: Run | None = run
        self._told = told

    def ask(self, link: VllmConnection, model: str, timeout: float, check: Callable[[], None]) -> None:
        """Ask a server once.

        Args:
            link: to it.
            model: its name there.
            timeout: seconds for all of the answer.
            check: raises where the server has other weights than it should, by what it has just said.

        Raises:
            TransportError, BadAnswer: there is no answer, or only a part of one; `run` is what is missing.
        """
        run = self.run
        assert run is not None, "all of it is there"
        ended: set[int] = set()
        try:
            with link.stream(COMPLETIONS, timeout, run.body(model)) as events:
                check()  # with these it begins
                choices = Choices(run.num_choices, run.limit)
                for event in events:
                    for place, choice in choices.take(event):
                        check()
                        ended |= self._hand_on(run, place, choice)
                choices.finish()
        except BaseException:
            parts = run.without(ended)
            self.run = parts[0] if parts else None
            for other in parts[1:]:
                self._told.put(other)
            raise
        self.run = None
        for early in run.without(ended):
            self._told.put(replace(early, stops_at_strings=False))

    def _hand_on(self, run: Run, place: int, choice: Choice) -> set[int]:
        """Hand a response on, up to where it ends by our rules; returns the places of its rollouts."""
        places = range(len(run.rows)) if run.num_choices == 1 else [place]  # greedy ones are all equal
        end = run.asked.ends(run.rows[place].prompt.token_ids, choice.tokens, run.limit)
        if end is None:
            may_be_early = run.stops_at_strings and run.asked.controls.end_strings
            if may_be_early and choice.reason == "stop":
                return set()
            had = f"{len(choice.tokens)} of {run.limit} tokens"
            raise BadAnswer(f"a response ended by {choice.reason!r} after {had}")
        length, reason = end
        tokens, log_probs = choice.tokens[:length], choice.log_probs[:length]
        self._told.put([(run.rows[one], list(tokens), list(log_probs), reason) for one in places])
        return set(places)
