"""Weights in PyTorch's own format (`pytorch_model.bin`), read without running anything that is in them.

Such a file is a zip archive of a pickle and of the tensors' bytes. A pickle is a program; it is run by
torch's own reader, which knows how to make tensors and refuses all else (`weights_only`). The tensors are
mapped, not read: what nobody takes of them stays on the disk. Left out on purpose: files from before PyTorch
1.6, which are one pickle and cannot be mapped, and writing (exports are safetensors).

Source: https://pytorch.org/docs/stable/notes/serialization.html.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from types import TracebackType

import torch

from rs_aligner.model.stored import DTYPES, Stored, check_fetched

SHORT = {getattr(torch, name): short for short, name in DTYPES.items()}
"""What safetensors call the types that are read."""
_GLOBAL = re.compile(r"(?:GLOBAL|global|class|function)[: ]+([\w.]+\.[\w.]+)")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_INSTEAD = "take the model as safetensors, or only the weights of it"


class TorchFile:
    """The tensors of a file by name; a context manager, as safetensors' own reader is one.

    Raises:
        ValueError: it is damaged, too old, would run code, or has something else than tensors.
    """

    def __init__(self, file: Path) -> None:
        self._tensors = _tensors(file, _load(file))

    def keys(self) -> list[str]:
        """The tensors' names."""
        return list(self._tensors)

    def get_slice(self, name: str) -> torch.Tensor:
        """A tensor, mapped: what is cut of it is what is read."""
        return self._tensors[name]

    def header(self, file: Path) -> dict[str, Stored]:
        """Type and shape of each tensor."""
        return {
            name: Stored(file, name, SHORT.get(one.dtype, str(one.dtype)), tuple(one.shape))
            for name, one in self._tensors.items()
        }

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors = {}


def read_torch_file(file: Path) -> dict[str, Stored]:
    """The tensors of a file by name.

    Raises:
        ValueError: as `TorchFile`.
    """
    with TorchFile(file) as opened:
        return opened.header(file)


def _load(file: Path) -> object:
    check_fetched(file)
    with file.open("rb") as opened:
        begin = opened.read(4)
    if begin.startswith(_PICKLE):
        raise ValueError(
            f'{file} is in the format of PyTorch before 1.6; write it anew, once: python -c "import torch; '
            f"torch.save(torch.load('{file}', map_location='cpu', weights_only=True), '{file}')\""
        )
    if begin != _ZIP:
        raise ValueError(f"{file} is no file of PyTorch's ({file.stat().st_size:,} bytes): fetch it again")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = f", {found[1]} among it" if found else ""
        raise ValueError(
            f"{file} has more in it than tensors{what}; loading it could run code, so it is refused: "
            f"{_INSTEAD}"
        ) from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file} is damaged, or was cut short ({why}): fetch it again") from None


def _tensors(file: Path, content: object) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no tensors by name but a {type(content).__name__}: {_INSTEAD}")
    for name, one in content.items():
        if isinstance(one, dict):
            raise ValueError(
                f"{file} is a program's own checkpoint, with a dict under {name!r}: save what is there, if "
                "it is the weights, as pytorch_model.bin"
            )
        if not isinstance(one, torch.Tensor) or not isinstance(name, str):
            raise ValueError(f"{file}: {name!r} is a {type(one).__name__} and no tensor: {_INSTEAD}")
        if one.layout is not torch.strided or one.is_quantized or one.is_meta:
            raise ValueError(f"{file}: {name} is sparse, quantised or empty, and is not read: {_INSTEAD}")
    return {name: one.detach() for name, one in content.items()}
