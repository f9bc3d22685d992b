"""What is asked of a decoder: waves of prompts in, a stream of finished rollouts out.

A wave is the set of prompts decoded together; for servers, a replica's whole share. How that is done is the
engine's business (`engines.py`). What is decoded together depends on the prompts, the config and the tokens
only, never on the clock. Where some of a wave's rollouts are there already, since the run was killed in it,
the others are decoded alone if that gives them the same bits, or if nobody promises equal ones
(`Decoder.rows_stand_alone`); if not, the whole wave is decoded again for its shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rs_aligner.generation.decoder import Decoder, Wave
from rs_aligner.generation.rows import RolloutRow
from rs_aligner.generation.sampling import Controls, derive_seed
from rs_aligner.generation.text import DecodingTokenizer, EndStrings
from rs_aligner.rollout import Rollout
from rs_aligner.sample_request import SampleRequest

ALL = slice(None)


def generate(
    decoder: Decoder,
    tokenizer: DecodingTokenizer,
    request: SampleRequest,
    *,
    seed: int,
    policy_version: int = 0,
    share: slice = ALL,
    limits: Mapping[tuple[int, int], int] | None = None,
    stops: Callable[[], bool] = lambda: False,
) -> Iterator[Rollout]:
    """Draw the rollouts that are asked for; each is yielded as soon as it ends.

    Every rank of a replica must run this with the same arguments and to the end.

    Args:
        decoder: of the policy.
        tokenizer: of the policy.
        request: what is asked for. A rollout's group is the number of its prompt there.
        seed: with the step, the prompt's position and the rollout's index it gives a rollout's seed.
        policy_version: written into the rollouts.
        share: which of the prompts are this replica's.
        stops: whether to stop short, asked between tokens; the same on every rank of a replica.
        limits: most tokens of single rollouts, by (group, index), where that is less than `max_length`.

    Raises:
        ValueError: a single rollout may not fit into the decoder's cache, or no token may come.
    """
    controls = Controls.of(request.sampling, request.lengths)
    end_strings = EndStrings(tokenizer, controls.end_strings)
    mine = list(enumerate(request.prompts))[share]
    whole = max(1, len(mine))  # a replica may have no prompt of a short step
    wave_size = whole if decoder.is_served else request.wave_size or whole
    for start in range(0, len(mine), wave_size):
        if stops():
            return
        rows = [
            RolloutRow(
                group,
                index,
                _seed(seed, request, prompt.position, index, in_a_row=decoder.is_served),
                prompt,
                min((limits or {}).get((group, index), controls.max_length), controls.max_length),
            )
            for group, prompt in mine[start : start + wave_size]
            for index in request.indices
        ]
        missing = {
            (row.group, row.index)
            for row in rows
            if request.lacks(row.group, row.index, seed=row.seed, policy_version=policy_version)
        }
        if decoder.rows_stand_alone:
            rows = [row for row in rows if (row.group, row.index) in missing]
        if not missing:
            continue
        wave = Wave(rows, controls, end_strings, stops, request.wave_size)
        for row, tokens, log_probs, reason in decoder.decode(wave):
            if (row.group, row.index) not in missing:
                continue  # decoded again for the shapes of the others
            yield Rollout(
                group=row.group,
                index=row.index,
                token_ids=tuple(tokens),
                text=end_strings.text(row.prompt.token_ids, tokens, has_ended=reason == "stop"),
                finish_reason=reason,
                policy_version=policy_version,
                seed=row.seed,
                log_probs=tuple(log_probs),
            )


def _seed(seed: int, request: SampleRequest, position: int, index: int, *, in_a_row: bool) -> int:
    """A rollout's, below 2**63; `in_a_row` are those of a prompt, from the first one that is asked for."""
    if not in_a_row:
        return derive_seed(seed, request.step, position, index)
    first = derive_seed(seed, request.step, position, request.first_index)
    return (first >> 1) + index - request.first_index
