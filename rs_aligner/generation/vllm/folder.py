"""The folder that weights travel through, from the trainer to the servers: a subfolder a policy version.

    weights/step_000012/     a Hugging Face folder, or an adapter folder of `peft`
    weights/step_000012/rs_aligner_canary.json    what they answer, by the project's own decoder (`canary.py`)
    weights/step_000012/rs_aligner_marker         a random word: it is written last, so what has one is whole

A server reads the word before it is asked to take the weights, since a vLLM that is handed a folder that it
cannot see is dead for good. Only the newest folders stay. Left out on purpose: what the servers are told
(`weights.py`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from rs_aligner.files import write_whole
from rs_aligner.generation.decoder import Exports
from rs_aligner.generation.vllm.canary import Canary
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.tensors import check_tensors

if TYPE_CHECKING:  # slow, and a plan looks at engines only
    from rs_aligner.model.runtime import Runtime

MARKER = "rs_aligner_marker"
"""The file with the word, as `rollout_server.guard` knows it, too."""
CANARY = "rs_aligner_canary.json"
KEPT = 2
_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, slots=True)
class Sent:
    """Weights that lie there for the servers.

    Attributes:
        folder: where, as the servers see it, too.
        version: of the policy.
        word: in the folder's marker.
        canary: what they answer.
        is_adapter: whether they are adapters alone, to be put beside the weights that a server has.
    """

    folder: Path
    version: int
    word: str
    canary: Canary
    is_adapter: bool = False

    def name(self, base: str) -> str:
        """By which a server is asked for them: its model's own, or that of the adapter beside it."""
        return f"{base}@{self.word}" if self.is_adapter else base


class WeightsFolder:
    """The versions that lie there. Its methods are collective: every rank calls them in the same order.

    Args:
        exports: how they come there.
        arch: of the policy.
        runtime: of this rank.
        as_adapter: whether adapters alone are written.
    """

    def __init__(
        self, exports: Exports, arch: Architecture, runtime: Runtime, *, as_adapter: bool = False
    ) -> None:
        self.root = exports.root.absolute()
        self._arch, self._runtime, self._as_adapter = arch, runtime, as_adapter
        export = exports.adapters if as_adapter else exports.whole
        assert export is not None, "the policy has no adapters"
        self._export = export

    def write(self, version: int, canary: Canary) -> Sent:
        """Write the present weights as those of `version`, see that all is there, and let older ones go.

        Args:
            version: of the policy.
            canary: what the present weights answer, the same on every rank or at least on the first.

        Raises:
            OSError: they cannot be written; every rank raises it.
            ValueError: what was written is not the whole model; the same.
        """
        folder = self._path(version)

        def finish() -> None:
            if not self._as_adapter:
                check_tensors(folder, self._arch)
            write_whole(folder / CANARY, [canary.to_json()])
            write_whole(folder / MARKER, [f"{token_hex(16)}\n".encode()])
            for old in self._versions()[:-KEPT]:
                remove(self._path(old))

        self._runtime.together(lambda: remove(folder), first_only=True)
        self._export(folder)
        self._runtime.together(finish, first_only=True)
        found = self._found(version)
        assert found is not None, f"{folder} has just been written"
        return found

    def newest(self, version: int, most: int) -> Sent | None:
        """The newest that an earlier start left, at most so many versions behind `version`, but not of it.

        What comes behind `version` is of a run that never was, and what is half is of nobody: both go.
        """

        def clear_up() -> None:
            for path in self.root.glob("step_*"):
                number = _number(path)
                if number is None or number > version or not (path / MARKER).is_file():
                    remove(path)

        self._runtime.together(clear_up, first_only=True)
        left = self._runtime.everyone(self._versions())[0]
        fresh = [number for number in left if version - most <= number < version]
        return self._found(fresh[-1]) if fresh else None

    def _path(self, version: int) -> Path:
        return self.root / f"step_{version:06d}"

    def _versions(self) -> list[int]:
        """Those that are whole, in order."""
        there = (_number(path.parent) for path in self.root.glob(f"step_*/{MARKER}"))
        return sorted(number for number in there if number is not None)

    def _found(self, version: int) -> Sent | None:
        """What the first rank sees of a version, on every rank; None where it cannot be read."""
        found: Sent | None = None
        folder = self._path(version)
        if self._runtime.rank == 0:
            with contextlib.suppress(OSError, ValueError):
                canary = Canary.from_json((folder / CANARY).read_bytes())
                word = (folder / MARKER).read_text().strip()
                found = Sent(folder, version, word, canary, self._as_adapter)
        return self._runtime.everyone(found)[0]


def _number(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def remove(path: Path) -> None:
    """Remove a folder of weights, or all of them; a marker first, so that what is half removed has none."""
    with contextlib.suppress(OSError):
        (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
