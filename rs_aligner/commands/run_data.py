"""The data of a run, read as its config says: training and held-out sets, and what stands in both.

Held-out sets stay as they are; `model.data.overlap` says what becomes of rows to train on
whose prompt is held out, too. Left out on purpose: what a row is and which prompts are the same (`data`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from rs_aligner.config import (
    GenerateConfig,
    TrainConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
)
from rs_aligner.data import (
    Origins,
    Places,
    PromptSet,
    ReadingTokenizer,
    Share,
    held_apart,
    load_pairs,
    load_prompts,
    load_scored,
    load_sft_rows,
    shares_of,
    tell_duplicates,
)
from rs_aligner.data.stored import only
from rs_aligner.rollout import Group, PreferencePair, Prompt, TrainingRow
from rs_aligner.trainers.rs import RSData

T = TypeVar("T")
Row_co = TypeVar("Row_co", covariant=True)
HeldOut_co = TypeVar("HeldOut_co", covariant=True)
Read_co = TypeVar("Read_co", covariant=True)
_TRAIN = "model.data.data_prefix.train"


class EpochData(NamedTuple, Generic[Row_co, HeldOut_co]):
    """What a training that passes over rows reads.

    Attributes:
        rows: to learn.
        held_out: never learnt; may be empty.
        shares: of the files that the rows come from, where they have weights.
    """

    rows: Sequence[Row_co]
    held_out: Sequence[HeldOut_co]
    shares: Sequence[Share]


def read_prompts(
    files: tuple[str, ...],
    config: TrainRSConfig | TrainSFTConfig | GenerateConfig,
    tokenizer: ReadingTokenizer,
    positions: int,
) -> PromptSet:
    """The prompts of files, which may be none, as `model.data` says; longer ones are left out."""
    if not files:
        return PromptSet((), 0)
    data = config.model.data
    return load_prompts(
        files,
        tokenizer,
        template=data.prompt_template,
        add_bos=data.add_bos,
        columns=data.columns,
        max_prompt_length=config.max_prompt_length(positions),
    )


def read_rs_data(config: TrainRSConfig, tokenizer: ReadingTokenizer, positions: int) -> RSData:
    """Everything that `train_rs` reads.

    Args:
        config: a checked config.
        tokenizer: the policy's.
        positions: of the policy.

    Raises:
        ValueError: a file cannot be used, or has held-out prompts and `model.data.overlap` refuses them.
    """
    data, rs = config.model.data, config.model.rs
    validation = _held_out(config, tokenizer, positions)
    files = data.data_prefix.train_files
    prompts = read_prompts(files, config, tokenizer, positions)
    kept = _apart(config, _TRAIN, prompts.origins, validation.origins)
    tell_duplicates(files, "prompts", prompts.origins)
    scored: Sequence[Group] = ()
    if rs.offline:
        scored = load_scored(
            rs.offline,
            tokenizer,
            template=data.prompt_template,
            add_bos=data.add_bos,
            columns=data.columns,
            max_length=config.model.sequence_length(positions),
        )
        apart = _apart(config, "model.rs.offline", _origins_of(scored), validation.origins)
        scored = only(scored, apart)
    anchors = _read_anchors(config, tokenizer, positions, validation.origins)
    return RSData(
        only(prompts.prompts, kept),
        validation.prompts,
        scored,
        anchors,
        shares=_shares(config, prompts.origins, kept),
    )


def read_sft_data(
    config: TrainSFTConfig, tokenizer: ReadingTokenizer, positions: int
) -> EpochData[TrainingRow, Prompt]:
    """The rows to learn and the held-out prompts; as `read_rs_data`."""
    files = config.model.data.data_prefix.train_files
    validation = _held_out(config, tokenizer, positions)
    rows = _read(load_sft_rows, files, config, tokenizer, positions)
    tell_duplicates(files, "rows", rows.origins)
    kept = _apart(config, _TRAIN, rows.origins, validation.origins)
    return EpochData(only(rows.rows, kept), validation.prompts, _shares(config, rows.origins, kept))


def read_pair_data(
    config: TrainRewardModelConfig, tokenizer: ReadingTokenizer, positions: int
) -> EpochData[PreferencePair, PreferencePair]:
    """The pairs to learn and the held-out ones; as `read_rs_data`."""
    prefix = config.model.data.data_prefix
    pairs = _read(load_pairs, prefix.train_files, config, tokenizer, positions)
    tell_duplicates(prefix.train_files, "pairs", pairs.origins)
    if not prefix.validation:
        return EpochData(pairs.pairs, (), _shares(config, pairs.origins, range(len(pairs.pairs))))
    validation = _read(load_pairs, prefix.validation, config, tokenizer, positions)
    tell_duplicates(prefix.validation, "pairs", validation.origins)
    kept = _apart(config, _TRAIN, pairs.origins, validation.origins)
    return EpochData(only(pairs.pairs, kept), validation.pairs, _shares(config, pairs.origins, kept))


def _held_out(
    config: TrainRSConfig | TrainSFTConfig, tokenizer: ReadingTokenizer, positions: int
) -> PromptSet:
    is_looked_at = config.samples if isinstance(config, TrainSFTConfig) else True
    files = config.model.data.data_prefix.validation if is_looked_at else ()
    found = read_prompts(files, config, tokenizer, positions)
    tell_duplicates(files, "prompts", found.origins)
    return found


def _read_anchors(
    config: TrainRSConfig, tokenizer: ReadingTokenizer, positions: int, held_out: Places
) -> list[TrainingRow]:
    from rs_aligner.objective.rows import shuffled_anchors

    anchor = config.model.rs.objective.anchor
    if not anchor.files:
        return []
    found = _read(load_sft_rows, anchor.files, config, tokenizer, positions)
    tell_duplicates(anchor.files, "rows", found.origins)
    rows = only(found.rows, _apart(config, "model.rs.objective.anchor.files", found.origins, held_out))
    return shuffled_anchors(rows, anchor.weight, config.model.seed)


def _apart(config: TrainConfig, key: str, origins: Places, held_out: Places) -> Sequence[int]:
    return held_apart(key, origins, held_out, config.model.data.overlap)


def _shares(config: TrainConfig, origins: Places, kept: Sequence[int]) -> list[Share]:
    """Of the files to train on, by what is left of them."""
    prefix = config.model.data.data_prefix
    if not prefix.weights:
        return []
    left = np.bincount(np.asarray(origins.files)[np.asarray(kept)], minlength=len(prefix.train_files))
    return shares_of(_TRAIN, prefix.train_files, prefix.weights, left.tolist())


def _origins_of(groups: Sequence[Group]) -> Origins:
    origins = Origins()
    for group in groups:
        origins.add(group.prompt.id, group.prompt.text)
    return origins


class _Loads(Protocol[Read_co]):
    """What reads files of rows with answers."""

    def __call__(
        self,
        files: Sequence[str],
        tokenizer: ReadingTokenizer,
        *,
        template: str | None,
        add_bos: bool | None,
        columns: Mapping[str, str],
        max_length: int,
        max_prompt_length: int | None,
    ) -> Read_co: ...


def _read(
    load: _Loads[Read_co],
    files: Sequence[str],
    config: TrainConfig,
    tokenizer: ReadingTokenizer,
    positions: int,
) -> Read_co:
    """Rows with answers, as `model.data` says."""
    data = config.model.data
    return load(
        files,
        tokenizer,
        template=data.prompt_template,
        add_bos=data.add_bos,
        columns=data.columns,
        max_length=config.model.sequence_length(positions),
        max_prompt_length=data.seq_length,
    )
