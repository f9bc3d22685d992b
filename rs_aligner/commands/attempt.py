"""With what a training goes to work: its settings, and fingerprints of what they point to.

The first rank makes it when data and judges are there, before the model is loaded, so that a run that may not
go on is told of early. Left out on purpose: what becomes of a difference (`record/attempts.py`).
"""

from __future__ import annotations

import importlib.util
import json
import logging
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rs_aligner.config import RemoteRMConfig, TrainConfig, TrainRSConfig
from rs_aligner.config import changes as parts
from rs_aligner.config.changes import Part, settings_of
from rs_aligner.files import checksum, checksum_of_file, running_checksum
from rs_aligner.record.attempts import Attempt, attempt_files
from rs_aligner.rollout import Group, PreferencePair, Prompt, TrainingRow

if TYPE_CHECKING:
    from rs_aligner.commands.fitting import Fit
    from rs_aligner.commands.run_data import EpochData
    from rs_aligner.data import Share
    from rs_aligner.data.sums import Sums
    from rs_aligner.reward.client import RemoteGPTRMClient
    from rs_aligner.trainers.rs import RSData

T = TypeVar("T")
_logger = logging.getLogger("rs_aligner")
CACHE = "kv_cache_bytes"
"""What an attempt notes the decoder's budget under, where it comes from a GPU's memory."""


def attempt(
    config: TrainConfig,
    found: Mapping[Part, str],
    planned: Mapping[str, int],
    given: Mapping[str, Any] | None,
) -> Attempt:
    """What a training goes to work with, its model, precision and decoder included.

    Args:
        config: a checked config.
        found: fingerprints of its data and judges.
        planned: how long it is.
        given: the config as it was given.

    Raises:
        ValueError: the model folder cannot be read.
    """
    from rs_aligner.commands.machine import is_on_gpu
    from rs_aligner.generation.native import fingerprint as of_kernels
    from rs_aligner.model.folder import fingerprint as of_model
    from rs_aligner.model.memory import uses_bf16

    on_gpu = is_on_gpu(config)
    everything = {
        parts.PRECISION: "bf16" if uses_bf16(config.trainer.precision, on_gpu) else "fp32",
        parts.MODEL: of_model(Path(config.pretrained_checkpoint.restore_from_path)),
        **found,
    }
    if config.model.peft.restore_from_path is not None:
        everything[parts.ADAPTER] = of_model(Path(config.model.peft.restore_from_path))
    seen = {"device": "gpu" if on_gpu else "cpu"}
    if isinstance(config, TrainRSConfig) and not on_gpu:
        seen["kernels"] = "torch" if config.model.rs.generation.engine == "torch" else of_kernels()
    return Attempt(
        settings_of(config),
        {part.name: fingerprint for part, fingerprint in everything.items()},
        seen,
        dict(planned),
        given=dict(given or {}),
    )


def cache_budget(fit: Fit, folder: Path) -> int | None:
    """The decoder's budget on a GPU where none is set: what its memory leaves, or what earlier starts had.

    What is decoded together depends on it, and with that the last bits; so it comes from sizes and not from
    what happens to be free, and a run that goes on keeps its own.

    Args:
        fit: the training's memory.
        folder: of the run.

    Returns:
        Bytes of keys and values on a rank; None where the config decides.
    """
    if (found := fit.cache_bytes) is None:
        return None
    files, why = attempt_files(folder / "config"), f"what the plan leaves of {fit.room}"
    if files and (before := Attempt.read(files[-1]).seen.get(CACHE)) is not None:
        found, why = int(before), f"as attempt {len(files)} had"
    _logger.info("model.rs.generation.kv_cache_bytes: %d, %s", found, why)
    return found


def of_rs(
    config: TrainRSConfig, data: RSData, judge: RemoteGPTRMClient, watched: RemoteGPTRMClient | None
) -> dict[Part, str]:
    """Fingerprints of what rejection sampling reads and asks."""
    found = of_rs_data(config, data)
    if config.samples:
        found[parts.JUDGE] = of_judge(judge, config.remote_rm)
    if watched is not None and config.watched_rm is not None:
        found[parts.WATCHED] = of_judge(watched, config.watched_rm)
    return found


def of_rs_data(config: TrainRSConfig, data: RSData) -> dict[Part, str]:
    """Fingerprints of what rejection sampling reads."""
    return {
        parts.TRAIN: _drawn(of_prompts(data.prompts), data.shares),
        parts.HELD_OUT: of_prompts(data.validation),
        parts.OFFLINE: of_groups(data.scored),
        parts.ANCHORS: of_rows(data.anchors),
        parts.SELECTORS: _of_code([getattr(one, "function", None) for one in config.model.rs.selection]),
    }


def of_sft(data: EpochData[TrainingRow, Prompt], judge: RemoteGPTRMClient | None) -> dict[Part, str]:
    """Fingerprints of what supervised training reads and asks."""
    found = {
        parts.TRAIN: _drawn(of_rows(data.rows), data.shares),
        parts.HELD_OUT: of_prompts(data.held_out),
    }
    if judge is not None:
        found[parts.SFT_JUDGE] = of_judge(judge, None)
    return found


def of_preferences(data: EpochData[PreferencePair, PreferencePair]) -> dict[Part, str]:
    """Fingerprints of what a reward model is trained on."""
    train = _drawn(of_pairs(data.rows), data.shares)
    return {parts.TRAIN: train, parts.HELD_OUT: of_pairs(data.held_out)}


def _drawn(fingerprint: str, shares: Sequence[Share]) -> str:
    """The fingerprint of files that are drawn from by weight; of others it is their own."""
    if not shares:
        return fingerprint
    numbers = [[f"{share.share:.12g}", share.rows] for share in shares]
    return checksum(json.dumps([fingerprint, numbers]).encode())


def of_prompts(prompts: Sequence[Prompt]) -> str:
    """Of their tokens and rows, not of where they lie."""
    from rs_aligner.data.sums import PromptSums

    return _summed(PromptSums, prompts)


def of_rows(rows: Sequence[TrainingRow]) -> str:
    """Of tokens and weights of supervised rows."""
    from rs_aligner.data.sums import RowSums

    return _summed(RowSums, rows)


def of_pairs(pairs: Sequence[PreferencePair]) -> str:
    """Of the tokens of pairs."""
    from rs_aligner.data.sums import PairSums

    return _summed(PairSums, pairs)


def _summed(kind: type[Sums[T]], items: Sequence[T]) -> str:
    from rs_aligner.data.stored import sums_of  # and with it numpy, which a config error does without

    return str(sums_of(kind, items)["fingerprint"])


def of_groups(groups: Sequence[Group]) -> str:
    """Of prompts with their rollouts and scores."""
    return _sum(
        piece
        for group in groups
        for piece in (
            of_prompts([group.prompt]).encode(),
            *(_tokens(rollout.token_ids) for rollout in group.rollouts),
            repr(group.scores).encode(),
        )
    )


def of_judge(judge: RemoteGPTRMClient, asked: RemoteRMConfig | None) -> str:
    """The judge's own fingerprint; the name under which it is served, where it has none."""
    names = {server.name for server in asked.servers} if asked is not None else set()
    return judge.fingerprint or f"served as {', '.join(sorted(names))}"


def _of_code(functions: Sequence[str | None]) -> str:
    """Of the files that users' functions are in; their names are settings."""
    files = [_file_of(name.rpartition(":")[0]) for name in functions if name is not None]
    return checksum("".join(checksum_of_file(file) for file in files if file is not None).encode())


def _file_of(source: str) -> Path | None:
    if source.endswith(".py"):
        return Path(source).expanduser()
    found = importlib.util.find_spec(source)
    return None if found is None or found.origin is None else Path(found.origin)


def _sum(pieces: Iterable[bytes]) -> str:
    found = running_checksum()
    for piece in pieces:
        found.update(len(piece).to_bytes(8, "little") + piece)
    return found.hexdigest()


def _tokens(token_ids: Sequence[int]) -> bytes:
    return array("q", token_ids).tobytes()
