"""Whether all ranks hold the same step, before any of them trains on it.

Each rank selects by itself, so what says different things of the same rollouts (a user's function that uses
`hash()`, say) would have ranks train on different rows: where their numbers differ the ranks wait for each
other until a timeout, and where they are equal the weights are of no selection at all. So the ranks compare
digests, in one small exchange a step. Only where these differ is it looked up what does.

What a rank comes to without the others is compared: the candidates (the data's order, a bank, the rounds of
`model.rs.until`), the selection, the supervised rows that come next, and what held-out prompts have shown,
which patience goes by. Left out on purpose: weights, which a run compares by training, and the clock, which
ranks ask together (`pace.out_of_time`).
"""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Any

from rs_aligner.data.stored import sums_of
from rs_aligner.data.sums import DIGEST_BYTES, PromptSums
from rs_aligner.record.marker import put_marker, remove_markers, sees_marker
from rs_aligner.rollout import Group, Prompt, Score, TrainingRow
from rs_aligner.selection import KEPT, Selection
from rs_aligner.trainers.failures import RanksDiffer
from rs_aligner.trainers.protocols import Collective

_SELECTORS = (
    "All ranks have the same rollouts and scores, so a selector says different things of the same. Causes "
    "are hash() of a text (another one in each process unless PYTHONHASHSEED is set), the order of a set, a "
    "random draw without a seed made of the texts, the time, or a file that is not the same on all nodes; "
    "make it a function of its arguments alone (docs/selection.md)"
)
_FILES = "see that all nodes read the same data files and run folder, and the same config"


def digest(*parts: Any) -> int:
    """A number below 2^48 that differs where the parts do, the same in every process.

    Args:
        parts: bytes, or what JSON can express.
    """
    state = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(part if isinstance(part, bytes) else json.dumps(part, default=str).encode())
        state.update(b"\0")
    return int.from_bytes(state.digest(), "big")


def digest_of_prompts(prompts: Sequence[Prompt]) -> int:
    """Of their ids and tokens."""
    return int(sums_of(PromptSums, prompts)["digest"])


def digest_of_rows(rows: Sequence[TrainingRow]) -> int:
    """Of supervised rows: tokens and weights."""
    return digest(
        *(part for row in rows for part in (_tokens(row.prompt), _tokens(row.response), row.weight))
    )


def digest_of_group(group: Group) -> int:
    """Of a prompt with its rollouts and their scores."""
    parts: list[Any] = [group.prompt.id, _tokens(group.prompt.token_ids)]
    for rollout, score in zip(group.rollouts, group.scores, strict=True):
        reward = repr(score.reward) if isinstance(score, Score) else None
        parts += [rollout.index, rollout.policy_version, _tokens(rollout.token_ids), reward]
    return digest(*parts)


def check_folder(ranks: Collective, folder: Path, *, is_first: bool) -> None:
    """See that all ranks have the run's folder: each writes there, and continues from there. A collective.

    Args:
        ranks: that are compared.
        folder: the run's, which the first rank has made.
        is_first: whether this is the first rank.

    Raises:
        ValueError: a rank has another folder under this name; every rank raises it, and that rank says where
            it is.
    """
    word = token_hex(8)
    if is_first:
        put_marker(folder, word)
    word = ranks.gather(word)[0]
    is_seen = sees_marker(folder, word)
    rank = int(os.environ.get("RANK", "0"))
    blind = int(ranks.maximum({"blind": -1.0 if is_seen else float(rank)})["blind"])
    if is_first:
        remove_markers(folder)
    if blind < 0:
        return
    where = f"exp_manager.explicit_log_dir={folder}"
    on = f" on {socket.gethostname()}" if not is_seen else ", whose own message says on which host"
    blind = blind if is_seen else rank
    raise ValueError(
        f"{where} is not seen by rank {blind}{on}: it has another folder there, or none. Choose one on a "
        "file system that all hosts share"
    )


def check_inputs(policy: Collective, inputs: Mapping[str, int]) -> None:
    """Compare what a run starts from.

    Args:
        policy: whose ranks are compared; a collective.
        inputs: a digest of each part, by what it is called in the message.

    Raises:
        RanksDiffer: a part is not the same on all ranks.
    """
    different = _different(policy, inputs)
    if different:
        raise RanksDiffer(f"{' and '.join(different)} are not the same on all ranks: {_FILES}")


def check_step(
    policy: Collective,
    step: int,
    groups: Sequence[Group],
    selection: Selection | Exception,
    further: Mapping[str, int],
) -> Selection:
    """Compare a step before it is trained on.

    Args:
        policy: whose ranks are compared; a collective.
        step: which.
        groups: what was chosen from.
        selection: of these groups, or why this rank has none.
        further: a digest of each further part that training depends on.

    Returns:
        The selection.

    Raises:
        RanksDiffer: naming the first rollout that one rank keeps and another rejects, and the selector.
        Exception: what this rank has instead of a selection.
    """
    of_groups = [digest_of_group(group) for group in groups]
    parts = {
        "the candidates": digest(of_groups),
        **further,
        "failures": int(isinstance(selection, Exception)),
        "the selections": 0
        if isinstance(selection, Exception)
        else digest(selection.reasons, selection.keep.tolist()),
    }
    different = _different(policy, parts)
    if isinstance(selection, Exception):
        raise selection
    if not different:
        return selection
    if "failures" in different:
        raise RanksDiffer(f"step {step}: the selection failed on another rank, whose message says why")
    what = (
        f"step {step}: {' and '.join(different)} are not the same on all ranks, and nothing of it was trained"
    )
    if "the candidates" in different:
        first = _first_group(policy, groups, of_groups)
        raise RanksDiffer(f"{what}. First difference: {first}; {_FILES}")
    if "the selections" in different:
        raise RanksDiffer(f"{what}. {_first_rollout(policy, groups, selection)}. {_SELECTORS}")
    raise RanksDiffer(f"{what}; {_FILES}")


def _different(policy: Collective, numbers: Mapping[str, int]) -> list[str]:
    """The names under which not all ranks have the same number; the same on every rank."""
    low, high = _range(policy, numbers)
    return [name for name in numbers if low[name] != high[name]]


def _range(policy: Collective, numbers: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Of each number the least and the largest over all ranks, in one exchange."""
    both = {f"+{name}": float(number) for name, number in numbers.items()}
    both |= {f"-{name}": -float(number) for name, number in numbers.items()}
    found = policy.maximum(both)
    return {name: -int(found[f"-{name}"]) for name in numbers}, {
        name: int(found[f"+{name}"]) for name in numbers
    }


def _first_group(policy: Collective, groups: Sequence[Group], digests: Sequence[int]) -> str:
    low, high = _range(policy, {"groups": len(groups)})
    if low != high:
        return f"there are {low['groups']} prompts on one rank and {high['groups']} on another"
    places = [str(place) for place in range(len(groups))]
    different = _different(policy, dict(zip(places, digests, strict=True)))
    group = groups[int(different[0])]
    return f"the rollouts or scores of prompt {group.prompt.id} ({different[0]} of the step, on this rank)"


def _first_rollout(policy: Collective, groups: Sequence[Group], selection: Selection) -> str:
    """The first selector of the chain that the ranks differ by, and the first rollout by which they do.

    What a selector rejects the next ones do not see, so of several differences that of the first selector is
    the cause. A reason stands for its place in the chain: the lower of two is of the rank that rejects.
    """
    order = [*selection.possible, KEPT]
    places = {reason: number for number, reason in enumerate(order)}
    stages = {
        f"{row}/{place}": places.get(reason, 0)
        for row, reasons in enumerate(selection.reasons)
        for place, reason in enumerate(reasons)
    }
    low, high = _range(policy, stages)
    names = [name for name in stages if low[name] != high[name]]
    if not names:
        return "The ranks keep the same rollouts for the same reasons, but in masks of different shapes"
    stage = min(low[name] for name in names)
    first = next(name for name in names if low[name] == stage)
    row, place = map(int, first.split("/"))
    prompt, index = groups[row].prompt.id, groups[row].rollouts[place].index
    left = sum(number > stage for number in stages.values())
    kept = sum(number == len(order) - 1 for number in stages.values())
    least, most = _range(policy, {"left": left, "kept": kept})
    other = "is kept" if high[first] == len(order) - 1 else f"is rejected there as {order[high[first]]!r}"
    return (
        f"First difference: rollout {index} of prompt {prompt} is rejected as {order[stage]!r} on one rank "
        f"and {other} on another; that selector leaves {least['left']} rollouts of the step "
        f"{_and(least['left'], most['left'])}, and {least['kept']} are kept in the end "
        f"{_and(least['kept'], most['kept'])}"
    )


def _and(least: int, most: int) -> str:
    return f"on one rank and {most} on another" if least != most else "on each"


def _tokens(token_ids: Sequence[int]) -> bytes:
    return array("q", token_ids).tobytes()
