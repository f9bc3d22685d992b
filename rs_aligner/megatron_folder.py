"""Where the weights of another Megatron program lie in a folder, by the names of the files.

Megatron-LM, Megatron Bridge and NeMo write the same shards (`torch_dist`): `.metadata`, which says what is
where, and `*.distcp`. They differ in where these are: in the folder of an iteration, in `weights/` (NeMo
2), or in `model_weights/` of a `.nemo` archive (NeMo 1). Imports nothing heavy. Left out on purpose: what
the files hold (`model/megatron_file.py`), and older formats, of which `model_folder.py` tells.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

METADATA = ".metadata"
BACKEND = "metadata.json"  # names the format: torch_dist
LATEST = "latest_checkpointed_iteration.txt"
ARCHIVE = ".nemo"
_INSIDE = ("weights", "model_weights")
_BESIDE = ("common.pt", BACKEND, "run_config.yaml")
_UNPACK = (
    "unpack it (mkdir NEW; tar -xf {} -C NEW), copy config.json and the tokenizer's files into NEW, and name "
    "NEW"
)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a file's bytes are: in a file of their own, or in an archive."""

    file: Path
    start: int
    size: int

    def read(self) -> bytes:
        """All of it."""
        with self.file.open("rb") as opened:
            opened.seek(self.start)
            return opened.read(self.size)


def megatron_weights(folder: Path) -> Path | None:
    """The folder with the shards that belong to a model folder, or the archive that has them; None without.

    Of several iterations it is the one that Megatron has noted as the latest.
    """
    for place in (folder, *(folder / name for name in _INSIDE)):
        if _has_shards(place):
            return place
    found = iterations(folder) or sorted(folder.glob(f"*{ARCHIVE}"))
    return found[0] if len(found) == 1 else None


def iterations(folder: Path) -> list[Path]:
    """The folders of iterations that have shards; of several only the latest, if that is noted."""
    found = [one for one in (*sorted(folder.glob("iter_*")), folder / "release") if _has_shards(one)]
    return [one for one in found if one == _latest(folder)] or found


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder that Megatron's weights are in, and what they say of themselves."""
    place = megatron_weights(folder)
    if place is None:
        return []
    if place.is_file():
        return [place]
    beside = [place / name for name in (METADATA, *_BESIDE)]
    return [one for one in (*beside, *sorted(place.glob("*.distcp"))) if one.is_file()]


def spans(place: Path) -> dict[str, Span]:
    """The files of the shards' folder by name, and what an archive has besides them by its path in there.

    Raises:
        ValueError: the archive is none, is compressed, or has no shards.
    """
    if not place.is_file():
        return {one.name: Span(one, 0, one.stat().st_size) for one in place.iterdir() if one.is_file()}
    try:
        with tarfile.open(place, "r:") as archive:
            members = {
                one.name.removeprefix("./"): Span(place, one.offset_data, one.size)
                for one in archive
                if one.isreg()
            }
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{place} is damaged, or a compressed archive, which cannot be read in place ({error}): "
            f"{_UNPACK.format(place)}"
        ) from None
    inside = next((one.removesuffix(METADATA) for one in members if one.endswith(f"/{METADATA}")), None)
    if inside is None:
        raise ValueError(
            f"{place} has no sharded weights (model_weights/{METADATA}): older .nemo archives have one file "
            "a rank, or zarr. Convert it with NeMo's own converter (convert_<model>_nemo_to_hf.py in its "
            "scripts/checkpoint_converters)"
        )
    return {name.removeprefix(inside): one for name, one in members.items()}


def _has_shards(folder: Path) -> bool:
    return (folder / METADATA).is_file() and next(folder.glob("*.distcp"), None) is not None


def _latest(folder: Path) -> Path | None:
    """The folder that Megatron's own note names."""
    try:
        said = (folder / LATEST).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / (f"iter_{int(said):07d}" if said.isdecimal() else said)
