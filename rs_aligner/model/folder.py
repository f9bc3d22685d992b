"""A model folder looked at whole before anything of it is loaded: kind, sizes, tensors and tokenizer.

Each command and the served reward model ask this first, so that a folder of no use is told in seconds.
Left out on purpose: the weights of a run's checkpoint, which Megatron looks at when it loads them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from rs_aligner.files import MANIFEST, checksum, checksums_of_files, hugging_face_part
from rs_aligner.megatron_folder import weight_files
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import SCORE
from rs_aligner.model.families.registry import as_reward_model, read_architecture
from rs_aligner.model.new_rows import MULTIPLE, enlarged
from rs_aligner.model.tensors import check_tensors
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.model_folder import belongs_to_a_model, problem_with

_logger = logging.getLogger("rs_aligner")


def read_model_folder(
    path: str,
    key: str,
    *,
    use: Literal["generate", "score", "train_scoring"] = "generate",
    resize: bool | None = None,
) -> tuple[Tokenizer, Architecture]:
    """The tokenizer and the sizes of the model in a folder, if it can be used.

    Args:
        path: a Hugging Face folder or a checkpoint of a run.
        key: the setting that names it, for messages.
        use: what the model is for: to generate, to score as a reward model, or to be trained to score, which
            both kinds can be.
        resize: whether the embedding is to get a row for each token that it lacks; None where there is no
            key to ask for it.

    Returns:
        Tokenizer and sizes, with those rows.

    Raises:
        ValueError: it cannot; with the reason and what would work.
    """
    if (problem := problem_with(path)) is not None:
        raise ValueError(f"{key} is {path!r}: {problem}")
    source = hugging_face_part(Path(path))
    arch = read_architecture(source)
    if use == "generate" and arch.value_head:
        raise ValueError(f"{key}: {path} is a reward model: it has a value head and cannot generate text")
    if use == "score" and not arch.value_head:
        raise ValueError(
            f"{key}: {path} is no reward model (a *ForSequenceClassification model with one label); train "
            "one with `rs-aligner reward-model`"
        )
    if source == Path(path):
        if use == "train_scoring" and not arch.value_head:
            check_tensors(source, as_reward_model(arch), leave=(SCORE,))
        else:
            check_tensors(source, arch)
    tokenizer = Tokenizer(source)
    return tokenizer, _with_all_rows(source, tokenizer, arch, resize)


def _with_all_rows(
    folder: Path, tokenizer: Tokenizer, arch: Architecture, resize: bool | None
) -> Architecture:
    """See to it that the embedding has a row for each token; it may have more (a padded vocabulary)."""
    larger = enlarged(arch, tokenizer.num_ids)
    if larger == arch:
        return arch
    found = f"{folder}: the tokenizer has {tokenizer.num_ids:,} tokens, added ones included"
    if resize:
        _logger.info(
            "%s, the embedding %s: it gets %s, a multiple of %d, the new rows being the mean of the old",
            *(found, f"{arch.vocab_size:,}", f"{larger.vocab_size:,}", MULTIPLE),
        )
        return larger
    key = "" if resize is None else "Set pretrained_checkpoint.resize_token_embeddings=true, or enlarge"
    raise ValueError(
        f"{found}, and the model's embedding {arch.vocab_size:,} (vocab_size in config.json). "
        f"{key or 'Enlarge'} the model once, with transformers: "
        f"model.resize_token_embeddings({tokenizer.num_ids}), then model.save_pretrained(...); or take the "
        "tokenizer that belongs to the model"
    )


def fingerprint(folder: Path) -> str:
    """What a model folder holds, in 16 hexadecimal digits; another one as soon as a bit of it is another.

    Taken are names, sizes and checksums of config, tokenizer and weights, not where the folder lies, nor
    what nobody reads. Each file is read once, up to four at a time: at 2 GB/s, which a good disk gives, a
    folder of 16 GB takes 8 s. Of a run's checkpoint only the manifest is read, which has the checksums of all
    of it.

    Raises:
        ValueError: a file cannot be read.
    """
    manifest = folder / MANIFEST
    known = sorted(filter(belongs_to_a_model, folder.iterdir()))
    files = [manifest] if manifest.is_file() else [*known, *weight_files(folder)]
    try:
        sums = checksums_of_files(files)
        found = [f"{path.name} {path.stat().st_size} {one}" for path, one in zip(files, sums, strict=True)]
    except OSError as error:
        raise ValueError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return checksum("\n".join(found).encode())
