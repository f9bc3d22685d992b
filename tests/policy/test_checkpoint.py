"""A checkpoint is whole or not there, whatever happens to who writes it; and it is read without trust."""

from __future__ import annotations

import io
import os
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.metadata import Metadata

from rs_aligner.config import ExpManagerConfig
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import checkpoint, checkpoint_files
from rs_aligner.policy.batches import Split
from rs_aligner.policy.reward_model import load_reward_model
from rs_aligner.policy.training import Trainer
from rs_aligner.record import manifest
from rs_aligner.record.manifest import BrokenCheckpoint, CannotSave, Manifest
from rs_aligner.record.run import Run
from tests.policy.layout_program import new_trainer, rows
from tests.tiny import save_tiny

FILES = [".metadata", "__0_0.distcp", "common.pt", "huggingface/config.json", "metadata.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def trainer(model: Path, rt: Runtime) -> Trainer:
    trainer = new_trainer(model, rt, distributed=True)
    trainer.step(rows(), split=Split(2), learning_rate=1e-2)
    return trainer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, trainer: Trainer, rt: Runtime, model: Path) -> Path:
    """A folder with checkpoints of the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("made")
    for step in (1, 2):
        checkpoint.save(folder / f"step_{step:06d}", trainer, rt, {"steps": step}, model)
    return folder


@pytest.fixture
def saved(made: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint of step 1, beside one of step 2."""
    return shutil.copytree(made, tmp_path / "checkpoints") / "step_000001"


@pytest.fixture
def save(tmp_path: Path, trainer: Trainer, rt: Runtime, model: Path) -> Callable[[int], Path]:
    def save(step: int) -> Path:
        folder = tmp_path / "checkpoints" / f"step_{step:06d}"
        checkpoint.save(folder, trainer, rt, {"steps": step}, model)
        return folder

    return save


def forge(folder: Path) -> None:
    """Make a manifest that fits, as one who writes checkpoints on purpose would."""
    files = {name: manifest.look(folder / name) for name in manifest.files_below(folder)}
    manifest.write(folder, Manifest(manifest.step_of(folder), files))


def limited_open(limit: int, error: BaseException) -> Callable[..., Any]:
    """`Path.open` for checkpoints that take so many bytes in all, and then fail."""
    taken = [0]

    class Limited(io.FileIO):
        def write(self, content: Any) -> int:
            taken[0] += len(memoryview(content).cast("B"))
            if taken[0] > limit:
                raise error
            return super().write(content)

    def open_limited(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb" and "step_" in str(self):
            return Limited(self, "wb")
        return open(self, mode, *args, **kwargs)

    return open_limited


# What a checkpoint is


def test_a_checkpoint_has_a_manifest_of_all_its_files_and_is_about_as_large_as_foretold(
    save: Callable[[int], Path], trainer: Trainer, rt: Runtime
) -> None:
    folder = save(7)
    found = manifest.read(folder)
    assert found.step == 7
    assert set(FILES) <= set(found.files)
    assert found.files == {name: manifest.look(folder / name) for name in manifest.files_below(folder)}
    assert checkpoint.problem_with(folder, rt) is None
    weights = sum(parameter.numel() for parameter in trainer.ddp.module.parameters())
    assert checkpoint.state_bytes(trainer, rt) == 16 * weights


def test_each_rank_reads_its_share_of_the_files(saved: Path) -> None:
    folder = saved
    for name in FILES:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        found = [manifest.problem_with(folder, share=share, shares=3) for share in range(3)]
        assert sorted(problem is None for problem in found) == [False, True, True]
        (folder / name).write_bytes(whole)


def test_a_file_of_another_step_is_named_with_its_step(saved: Path, rt: Runtime) -> None:
    earlier, later = saved, saved.with_name("step_000002")
    shutil.copy(earlier / "common.pt", later / "common.pt")
    problem = checkpoint.problem_with(later, rt)
    assert problem == "common.pt has been changed (another checksum): it is that of step_000001"
    with pytest.raises(BrokenCheckpoint, match=r"step_000002 is no good checkpoint: common\.pt"):
        checkpoint.load_weights(later, load_reward_model(earlier, rt)[0], rt, with_head=False)


# How it is written


def test_nothing_is_started_to_write_it(save: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    for place, name in ((os, "fork"), (os, "posix_spawn"), (subprocess, "Popen")):
        monkeypatch.setattr(place, name, refuse)
    save(1)


def test_all_of_it_is_on_the_disk_before_it_has_its_name(
    save: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Names and contents: a power loss behind the rename finds everything, and one before it nothing."""
    events: list[str] = []
    partial = ""
    sync, rename = os.fsync, Path.rename

    def noted_sync(opened: int) -> None:
        sync(opened)
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{opened}"), tmp_path / "checkpoints"))

    def noted_rename(self: Path, target: Path) -> Path:
        nonlocal partial
        if self.name.endswith(".partial"):
            partial = self.name
            events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    save(1)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    for name in (*FILES, "manifest.json", "huggingface", "."):
        assert str(Path(partial) / name) in before, name
    assert "." in after  # the folder of the checkpoints, which has the new name


class Killed(BaseException):
    """As SIGKILL, in that nobody cleans up."""


FAST_POINTS = ("begin", "manifest", "rename")
POINTS = (*FAST_POINTS, "tensors", "metadata", "common", "sync", "first rename", "removal")


@pytest.mark.parametrize(
    "point", [pytest.param(one, marks=[pytest.mark.slow] * (one not in FAST_POINTS)) for one in POINTS]
)
def test_a_save_that_is_killed_leaves_the_old_or_the_new_one(
    saved: Path,
    save: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    rt: Runtime,
) -> None:
    """Of step 2 there is one already, which gives way to a new one."""

    def kill(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    rename = Path.rename

    def kill_at_rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial") if point == "rename" else self.name == "step_000002":
            raise Killed
        return rename(self, target)

    def kill_at_removal(folder: Path, **how: Any) -> None:
        if folder.name.endswith(".replaced"):
            raise Killed

    patches: dict[str, tuple[Any, str, Any]] = {
        "begin": (checkpoint, "check_room", kill),
        "tensors": (Path, "open", limited_open(500_000, Killed())),
        "metadata": (checkpoint_files.Writer, "finish", kill),
        "common": (checkpoint, "save_config", kill),
        "manifest": (manifest, "write", kill),
        "sync": (checkpoint, "sync_tree", kill),
        "first rename": (Path, "rename", kill_at_rename),
        "rename": (Path, "rename", kill_at_rename),
        "removal": (checkpoint.shutil, "rmtree", kill_at_removal),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*patches[point])
        with pytest.raises(Killed):
            save(2)
    run = Run(ExpManagerConfig.model_validate({"explicit_log_dir": str(tmp_path)}), is_first=True)
    run.prepare_checkpoints(0)
    assert [path.name for path in run.newest_first()] == ["step_000002", "step_000001"]
    assert [checkpoint.problem_with(path, rt) for path in run.newest_first()] == [None, None]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_000001", "step_000002"]


# What the machine lacks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2.5 MB where the run's checkpoints are; skipped where no disk can be made."""
    place = tmp_path / "checkpoints"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "none", str(place)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("needs the right to mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_before_the_save_and_within_it(
    small_disk: Path, save: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, rt: Runtime
) -> None:
    first = save(1)
    (small_disk / "filler").write_bytes(bytes(900_000))
    with pytest.raises(
        CannotSave, match=r"step_000002 cannot be written: no space left on device: .* needed"
    ):
        save(2)
    monkeypatch.setattr(checkpoint, "check_room", lambda folder, wanted: None)
    with pytest.raises(CannotSave) as error:
        save(2)
    assert str(error.value) == f"{small_disk}/step_000002 cannot be written: no space left on device"
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", first.name]
    assert checkpoint.problem_with(first, rt) is None


@pytest.mark.parametrize("at", [500_000, 970_000])
def test_a_disk_that_takes_no_more_is_told_in_a_line_wherever_that_is(
    save: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", limited_open(at, OSError(28, "No space left on device")))
        with pytest.raises(CannotSave, match=r"step_000001 cannot be written: no space left on device$"):
            save(1)
    assert [path.name for path in save(1).parent.iterdir()] == ["step_000001"]


def test_too_few_open_files_are_told_in_a_line(save: Callable[[int], Path]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays so
        with pytest.raises(CannotSave, match="too many open files"):
            save(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Whom a reader trusts


class Evil:
    """Runs code where it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


READS: dict[str, Callable[[Path, Trainer, Runtime], Any]] = {
    "load": checkpoint.load,
    "load_weights": lambda folder, trainer, rt: checkpoint.load_weights(folder, trainer.ddp.module, rt),
    "sharded metadata": lambda folder, *_: dist_checkpointing.serialization.load_sharded_metadata(
        str(folder)
    ),
    "tensors metadata": lambda folder, *_: dist_checkpointing.load_tensors_metadata(str(folder)),
    "plain tensors": lambda folder, *_: dist_checkpointing.load_plain_tensors(str(folder)),
    "common": lambda folder, *_: dist_checkpointing.load_common_state_dict(str(folder)),
}


@pytest.mark.parametrize("way", list(READS))
def test_a_crafted_checkpoint_runs_nothing(
    saved: Path, trainer: Trainer, rt: Runtime, tmp_path: Path, way: str
) -> None:
    evil, folder = Evil(tmp_path / "ran"), saved
    whole = (folder / ".metadata").read_bytes()
    if way != "common":
        metadata = Metadata({}, planner_data=evil)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        forge(folder)
        with pytest.raises(
            BrokenCheckpoint, match=r"\.metadata names (posix|nt)\.system.*nothing of it was run"
        ):
            READS[way](folder, trainer, rt)
        (folder / ".metadata").write_bytes(whole)
    if way not in ("sharded metadata", "tensors metadata"):
        torch.save({"counters": evil}, folder / "common.pt")
        forge(folder)
        with pytest.raises(BrokenCheckpoint, match=r"common\.pt .*nothing of it was run") as error:
            READS[way](folder, trainer, rt)
        assert "\n" not in str(error.value)
    assert not evil.mark.exists()


def test_an_object_among_the_tensors_runs_nothing(
    saved: Path, trainer: Trainer, rt: Runtime, tmp_path: Path
) -> None:
    """Megatron keeps objects between the tensors, which torch's planner would unpickle without care."""
    folder, evil = saved, Evil(tmp_path / "ran")
    found = checkpoint_files.read_metadata(folder)
    content = io.BytesIO()
    torch.save([evil], content)
    tensors = folder / "__0_0.distcp"
    index = next(index for index in found.storage_data if "_extra_state" in index.fqn)
    found.storage_data[index].offset = tensors.stat().st_size
    found.storage_data[index].length = len(content.getvalue())
    tensors.write_bytes(tensors.read_bytes() + content.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    forge(folder)
    with pytest.raises(ValueError, match="step_000001 does not fit this model") as error:
        checkpoint.load(folder, trainer, rt)
    assert "\n" not in str(error.value)
    assert not evil.mark.exists()


def test_a_checkpoint_of_another_model_is_no_broken_one(saved: Path, rt: Runtime, tmp_path: Path) -> None:
    """It is not set aside: it is the config that is wrong."""
    other = new_trainer(save_tiny("qwen3", tmp_path / "qwen3"), rt, distributed=True)
    with pytest.raises(ValueError, match="does not fit this model") as error:
        checkpoint.load(saved, other, rt)
    assert not isinstance(error.value, BrokenCheckpoint)
    assert "\n" not in str(error.value)
