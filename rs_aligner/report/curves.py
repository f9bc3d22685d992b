"""Which pictures of `metrics.jsonl` a page has: figures over steps, best-of-k, time and rejections.

Each kind of run has its list, and of that what it has figures for. What a key means is in docs/metrics.md,
and in the page's own glossary. Left out on purpose: how a picture is made (`pictures`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rs_aligner.report.pictures import Curve, Frame, Picture, lines, number, stacked
from rs_aligner.report.run_data import RunKind

Rows = Sequence[Mapping[str, float]]


class Line(NamedTuple):
    """A curve of a picture: its name, and the key of its figure; `error` is that of its standard error."""

    name: str
    key: str
    error: str = ""


def curve(rows: Rows, line: Line) -> Curve:
    """A figure over the steps that have it; held-out ones, which only some steps have, with dots."""
    there = [row for row in rows if line.key in row]
    errors = [row[line.error] for row in there if line.error in row]
    return Curve(
        line.name,
        [(row["step"], row[line.key]) for row in there],
        errors if len(errors) == len(there) else (),
        dots=line.key.startswith("validation/"),
    )


def of_figures(rows: Rows, frame: Frame, *wanted: Line) -> Picture | None:
    """A picture of these figures; None without any of them."""
    frame = replace(frame, keys=tuple(line.key for line in wanted if any(line.key in row for row in rows)))
    return lines(frame, [curve(rows, line) for line in wanted])


def best_of_k(rows: Rows) -> Picture | None:
    """Best-of-k over k at the first step, and now: how much choosing gains, and what is left to gain."""
    steps = [row for row in rows if _ks(row)]
    if not steps or max(_ks(steps[-1])) < 2:
        return None
    ends = [steps[0], steps[-1]] if len(steps) > 1 else steps[-1:]
    curves = [
        Curve(f"step {row['step']:g}", [(k, row[f"best_of/{k}"]) for k in _ks(row)], dots=True)
        for row in ends
    ]
    note = "The expected score of the best of k answers to a prompt: at k = 1 the mean of all."
    if (headroom := steps[-1].get("reward/headroom")) is not None:
        below = f"{number(headroom)} below the best of their prompts on average"
        note += f" The kept of the last step are {below if headroom else 'the best of their prompts'}."
    keys = ("best_of/<k>", "reward/headroom")
    return lines(Frame("best-of-k", "Best of k answers", "score", "k", note, keys), curves)


def _ks(row: Mapping[str, float]) -> list[int]:
    found = (re.fullmatch(r"best_of/(\d+)", key) for key in row)
    return sorted(int(match[1]) for match in found if match)


def pass_at_k(rows: Rows) -> Picture | None:
    """Pass@k over steps, where that is not best-of-k again."""
    steps = [row for row in rows if "pass_at/1" in row]
    same = all(abs(row["pass_at/1"] - row.get("best_of/1", -1)) < 1e-9 for row in steps)
    ks = sorted({int(key.partition("/")[2]) for row in steps for key in row if key.startswith("pass_at/")})
    if not steps or same:
        return None
    shown = ks if len(ks) <= 4 else [ks[0], ks[len(ks) // 2], ks[-1]]
    wanted = [Line(f"k = {k}", f"pass_at/{k}") for k in shown]
    frame = Frame("pass-at-k", "Prompts of which one of k answers passes", "share")
    picture = of_figures(rows, frame, *wanted)
    return picture and replace(picture, frame=replace(picture.frame, keys=("pass_at/<k>",)))


def time_by_phase(rows: Rows) -> Picture | None:
    """Seconds of each step by what they went into."""
    steps = [row for row in rows if "time/step" in row]
    parts = [
        Line("handing weights to servers", "time/weights"),
        Line("sampling", "time/generate"),
        Line("waiting for the judge", "time/score_wait"),
        Line("training", "time/train"),
    ]
    frame = Frame(
        "time",
        "Time of a step by phase",
        "seconds",
        note="Looks at held-out prompts and checkpoints are not in it.",
        keys=tuple(part.key for part in parts),
    )
    return stacked(frame, [curve(steps, part) for part in parts])


def rejections(rows: Rows) -> Picture | None:
    """Rollouts of each step by what became of them."""
    reasons = sorted({key for row in rows for key in row if key.startswith("rejected/")})
    parts = [Line("kept", "rollouts/kept")]
    parts += [Line(reason.removeprefix("rejected/").replace("_", " "), reason) for reason in reasons]
    frame = Frame(
        "reasons",
        "Kept, and rejected by reason",
        "rollouts",
        note="A rollout that the judge gave no score is rejected, too, and never counts as one of score 0.",
        keys=("rollouts/kept", "rejected/<reason>"),
    )
    return stacked(frame, [curve([row for row in rows if "rollouts/total" in row], part) for part in parts])


def failures(rows: Rows) -> Picture | None:
    """Rollouts without a score, by judge; only where there are any."""
    wanted = [Line("judge", "rollouts/failed"), Line("watched judge", "watched/failed")]
    there = [line for line in wanted if any(row.get(line.key) for row in rows)]
    return of_figures(rows, Frame("failures", "Rollouts without a score", "rollouts"), *there)


Maker = Callable[[Rows], Picture | None]


def _figures(frame: Frame, *wanted: Line) -> Maker:
    return lambda rows: of_figures(rows, frame, *wanted)


_HELD_OUT = Line("held-out", "validation/reward", "validation/reward_error")
_BARS = "Bars are two standard errors on either side."
_OPTIMIZER: list[Maker] = [
    _figures(
        Frame("loss", "Loss", "loss"),
        Line("loss", "loss"),
        Line("of it the routers' load-balancing loss", "loss/routers"),
    ),
    _figures(Frame("rate", "Learning rate", "rate"), Line("learning rate", "lr")),
    _figures(Frame("gradient", "Norm of the gradient", "norm"), Line("gradient", "grad_norm")),
]
_OF_RS: list[Maker] = [
    _figures(
        Frame("scores", "Scores", "score", note=_BARS),
        Line("all rollouts", "reward/mean"),
        Line("kept", "reward/kept_mean"),
        Line("kept at random", "control/random_mean"),
        _HELD_OUT,
    ),
    best_of_k,
    _figures(
        Frame("watched", "Scores of the watched judge", "score", note=_BARS),
        Line("all rollouts", "watched/mean"),
        Line("kept", "watched/kept_mean"),
        Line("held-out", "validation/watched", "validation/watched_error"),
    ),
    _figures(
        Frame("agreement", "Do the two judges order answers alike?", "by rank, -1 to 1"),
        Line("rank correlation", "watched/rank_correlation"),
        Line("where the watched one places the kept", "tail/watched"),
    ),
    pass_at_k,
    _figures(
        Frame("groups", "What the judge can tell apart", "share of prompts"),
        Line("some answers better than others", "groups/decidable"),
        Line("all passed", "groups/all_passed"),
        Line("none passed", "groups/none_passed"),
    ),
    _figures(
        Frame("drift", "Drift from the starting policy", "nats a token"),
        Line("sampled answers", "kl/to_start"),
        Line("trained rows (KL term)", "kl"),
    ),
    _figures(
        Frame("mismatch", "Decoder and trainer: difference of their log-probabilities", "nats a token"),
        Line("mean", "mismatch/mean"),
        Line("99 of 100 tokens below", "mismatch/p99"),
    ),
    _figures(Frame("entropy", "Entropy", "nats a token"), Line("entropy", "entropy")),
    _figures(
        Frame("distinct", "Variety: different n-grams, and duplicates", "share"),
        Line("different tokens", "distinct/1"),
        Line("different pairs", "distinct/2"),
        Line("different triples", "distinct/3"),
        Line("duplicates", "duplicates/share"),
    ),
    _figures(
        Frame("length", "Length of an answer", "tokens"),
        Line("all rollouts", "response_length/mean"),
        Line("held-out", "validation/response_length/mean"),
    ),
    rejections,
    failures,
    time_by_phase,
    *_OPTIMIZER,
]
_OF_SFT: list[Maker] = [
    _figures(Frame("scores", "Held-out score", "score"), _HELD_OUT),
    *_OPTIMIZER,
    _figures(Frame("time", "Time of a step", "seconds"), Line("step", "time/step")),
]
_OF_REWARD_MODEL: list[Maker] = [
    _figures(
        Frame("accuracy", "Pairs that are ordered right", "share"),
        Line("before they were learnt", "accuracy"),
        Line("held-out", "validation/accuracy"),
    ),
    _figures(Frame("held-out-loss", "Held-out loss", "nats"), Line("held-out", "validation/loss")),
    *_OPTIMIZER,
    _figures(Frame("time", "Time of a step", "seconds"), Line("step", "time/step")),
]
_BY_KIND: dict[RunKind, list[Maker]] = {
    "train_rs": _OF_RS,
    "train_sft": _OF_SFT,
    "train_reward_model": _OF_REWARD_MODEL,
}


def curves(rows: Rows, kind: RunKind) -> Iterator[Picture]:
    """The pictures of a run's figures."""
    for maker in _BY_KIND[kind]:
        if (picture := maker(rows)) is not None:
            yield picture
