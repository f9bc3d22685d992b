"""What the scripts end with: one line and a status for what a user can mend, a stack trace for our faults."""

from __future__ import annotations

import errno

import pytest

from rs_aligner.cli import scripts
from rs_aligner.cli.errors import one_line_errors
from rs_aligner.config import ConfigError
from rs_aligner.record.lease import LeaseLost
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.trainers.failures import RanksDiffer

COMMANDS = [
    scripts.train_rs,
    scripts.train_sft,
    scripts.train_reward_model,
    scripts.generate,
    scripts.serve_reward,
]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError(["model.seed is -1"]), 2, "error: model.seed is -1\n"),
        (ConnectionError("no judge is ready"), 2, "error: no judge is ready\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (JudgeFailed("step 3: half failed"), 1, "error: step 3: half failed\n"),
        (RanksDiffer("step 3 differs"), 1, "error: step 3 differs\n"),
        (LeaseLost("runs/first was taken over"), 1, "error: runs/first was taken over\n"),
        (FloatingPointError("the loss is NaN"), 1, "error: the loss is NaN\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_needs_no_stack_trace_is_one_line_and_a_status(error, status, line, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err == line


def test_what_every_rank_comes_to_one_of_them_says(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise JudgeFailed("step 3: half failed")
    assert ended.value.code == 1
    assert capsys.readouterr().err == ""


def test_a_fault_of_ours_keeps_its_stack_trace_unless_a_command_cannot_go_on_for_it(capsys):
    with pytest.raises(RuntimeError, match="shapes"), one_line_errors():
        raise RuntimeError("shapes differ")
    with pytest.raises(SystemExit) as ended, one_line_errors(RuntimeError):
        raise RuntimeError("Triton failed")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: Triton failed\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError(["a key is wrong"]), 2), (KeyboardInterrupt(), 130)]
)
def test_every_command_goes_through_that_door(command, error, status, monkeypatch, capsys):
    def load_config(*_: object) -> None:
        raise error

    monkeypatch.setattr(scripts, "load_config", load_config)
    with pytest.raises(SystemExit) as ended:
        command({})
    assert ended.value.code == status
    [line] = capsys.readouterr().err.splitlines()
    assert line in ("error: a key is wrong", "error: interrupted")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/x"), "no space left on device: runs/a/x"),
        (OSError(errno.EROFS, "Read-only file system", "runs/a"), "read-only file system: runs/a"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files (raise ulimit -n)"),
        (MemoryError(), "out of memory: nothing more is known"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 7 bytes\nand more"),
            "out of memory: DefaultCPUAllocator: can't allocate memory: you tried 7 bytes",
        ),
        (
            ImportError("libx.so: failed to map segment from shared object"),
            "out of memory: libx.so: failed to map segment from shared object",
        ),
    ],
)
def test_what_the_machine_lacks_is_one_line_and_to_be_mended(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_file_that_is_missing_where_nobody_expects_it_keeps_its_trace() -> None:
    with pytest.raises(FileNotFoundError), one_line_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")
